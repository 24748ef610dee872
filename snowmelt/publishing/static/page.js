// Samples the model beside this file. model.json says how; see snowmelt/publishing/static_model.py.
"use strict";

// The browser runs these bytes or none. A hash: openssl dgst -sha384 -binary FILE | base64
const RUNTIME = {
  place: "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/",
  script: ["ort.wasm.bundle.min.mjs", "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"],
  binary: ["ort-wasm-simd-threaded.wasm", "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"],
};
const SMOOTH_FROM = 128; // pixels; smaller images are shown with their pixels

const find = (id) => document.getElementById(id);
const form = find("settings");
let ort, model, denoiser, decoder;
let image = null; // the last one, (C, H, W) in [0, 1]
let latest = 0;
let queue = Promise.resolve();

// ---- Files ----

async function load(url, options, onPart) {
  const name = url.split("/").pop();
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    throw new Error(`${name} can't be loaded from ${new URL(url, location.href).host}: ${error.message}`);
  }
  if (!response.ok) throw new Error(`${name} can't be loaded: the server answered ${response.status}`);
  if (!onPart) return response;
  const parts = [];
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    onPart(value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function loadRuntime() {
  const [script, binary] = await Promise.all(
    [RUNTIME.script, RUNTIME.binary].map(([name, integrity]) => load(RUNTIME.place + name, { integrity })),
  );
  const code = new Blob([await script.text()], { type: "text/javascript" });
  ort = await import(URL.createObjectURL(code));
  ort.env.wasm.wasmBinary = await binary.arrayBuffer();
  ort.env.wasm.proxy = true; // in a worker, so that the page can be used meanwhile
}

async function loadGraphs() {
  const names = Object.keys(model.bytes);
  const total = names.reduce((sum, name) => sum + model.bytes[name], 0);
  let received = 0;
  const onPart = (length) => {
    received += length;
    find("progress").value = received / total;
    say(`Loading the model: ${megabytes(received)} of ${megabytes(total)} MB`);
  };
  const graphs = await Promise.all(names.map((name) => load(name, {}, onPart)));
  names.forEach((name, i) => {
    const bytes = graphs[i].length; // those of a pointer of Git LFS, say
    if (bytes !== model.bytes[name]) throw new Error(`${name} has ${bytes} bytes, and should have ${model.bytes[name]}`);
  });
  return Object.fromEntries(names.map((name, i) => [name, graphs[i]]));
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

// ---- Noise ----

// The first 32 bits of numpy.random.SeedSequence(seed) for a seed of 32 bits: O'Neill's seed_seq, with numpy's constants.
function seedSequence(seed) {
  let constant = 0x43b0d7e5;
  const hash = (value, factor) => {
    value ^= constant;
    constant = Math.imul(constant, factor);
    value = Math.imul(value, constant);
    return value ^ (value >>> 16);
  };
  const pool = [seed, 0, 0, 0].map((word) => hash(word, 0x931e8875));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) {
      if (from === to) continue;
      const mixed = Math.imul(0xca01f9dd, pool[to]) - Math.imul(0x4973f715, hash(pool[from], 0x931e8875));
      pool[to] = mixed ^ (mixed >>> 16);
    }
  }
  constant = 0x8b51f9dd;
  return hash(pool[0], 0x58f38ded) >>> 0;
}

// MT19937 (Matsumoto & Nishimura 1998): a function that returns its next 32 bits.
function mersenneTwister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let next = 624;
  return () => {
    if (next === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      next = 0;
    }
    let y = state[next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

// Unit normal numbers, 16 or more: torch.randn(size, generator=image_generators(seed, [0])[0]) on a CPU. Sixteen uniform
// ones make as many by Box and Muller's method; where 16 doesn't divide the size, the last 16 numbers are drawn anew.
function noise(size, seed) {
  const next = mersenneTwister(seedSequence(seed));
  const values = new Float32Array(size);
  const fill = (from, to) => {
    for (let i = from; i < to; i++) values[i] = (next() & 0xffffff) / 2 ** 24;
  };
  const toNormal = (from) => {
    for (let i = from; i < from + 8; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - values[i]));
      const angle = 2 * Math.PI * values[i + 8];
      values[i] = radius * Math.cos(angle);
      values[i + 8] = radius * Math.sin(angle);
    }
  };
  fill(0, size);
  for (let i = 0; i + 16 <= size; i += 16) toNormal(i);
  if (size % 16) {
    fill(size - 16, size);
    toNormal(size - 16);
  }
  return values;
}

// ---- Sampling ----

// A graph's output for inputs by name; the runtime keeps what it is given, so it gets copies.
async function run(session, inputs) {
  const tensors = {};
  for (const [name, values, shape] of inputs) {
    const type = values instanceof BigInt64Array ? "int64" : "float32";
    tensors[name] = new ort.Tensor(type, values.slice(), shape);
  }
  const outputs = await session.run(tensors);
  return outputs[session.outputNames[0]].data;
}

function expected(x, level, label) {
  const inputs = [["x_t", x, [1, ...model.data]], ["level", Float32Array.from(level), [level.length]]];
  if (label !== null) inputs.push(["label", BigInt64Array.of(BigInt(label)), [1]]);
  return run(denoiser, inputs);
}

// The x0 that is expected, away from that of no class where it is guided (Ho & Salimans 2022, eq. 6).
async function guided(x, level, { label, guidance }) {
  const x0 = await expected(x, level, label);
  if (guidance === 1 || label === model.null_class) return x0;
  const none = await expected(x, level, model.null_class);
  return x0.map((value, i) => none[i] + guidance * (value - none[i]));
}

// After each step: x_t before it, scaled to unit variance, the expected x0, and the state after it.
async function* steps(settings) {
  const table = model.tables[settings.steps - 1];
  const [channels, height, width] = model.data;
  let x = noise(channels * height * width, settings.seed).map((value) => value * table.start);
  for (const step of table.steps) {
    let x0 = await guided(x, step.level, settings);
    if (model.clip !== null) x0 = x0.map((value) => Math.min(Math.max(value, -model.clip), model.clip));
    const size = Math.hypot(step.level[0], step.level[1]);
    const seen = x.map((value) => value / size);
    x = x.map((value, i) => step.x * value + step.x0 * x0[i]);
    yield { seen, x0, x };
  }
}

// (C, H, W) in [0, 1] of what the network makes.
async function decode(x) {
  const pixels = decoder ? await run(decoder, [["latents", x, [1, ...model.data]]]) : x;
  return pixels.map((value) => Math.min(Math.max(value / 2 + 0.5, 0), 1));
}

// ---- The page ----

function say(text) {
  find("status").textContent = text;
}

function complain(error) {
  find("problem").textContent = error.message ?? error;
  find("problem").hidden = false;
  find("progress").hidden = true;
  say("");
}

function draw(canvas, pixels) {
  const [channels, height, width] = model.image;
  const area = height * width;
  const data = new ImageData(width, height);
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 4; c++) {
      const missing = c === 3 ? 1 : pixels[i]; // opaque; gray in all colours
      data.data[4 * i + c] = Math.round(255 * (c < channels && channels > 1 ? pixels[c * area + i] : missing));
    }
  }
  [canvas.width, canvas.height] = [width, height];
  canvas.classList.toggle("smooth", width >= SMOOTH_FROM);
  canvas.getContext("2d").putImageData(data, 0, 0);
}

function column(number) {
  const item = document.createElement("li");
  for (const what of ["noisy image", "expected image"]) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [model.image[2], model.image[1]];
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Step ${number}: ${what}`);
    item.append(canvas);
  }
  item.append(String(number));
  return item;
}

function readSettings() {
  const { label, seed, steps, guidance } = form.elements;
  return {
    label: label.value === "" ? model.null_class : Number(label.value),
    seed: Number(seed.value),
    steps: Number(steps.value),
    guidance: Number(guidance.value),
  };
}

function showSettings() {
  for (const output of form.querySelectorAll("output")) output.value = find(output.htmlFor.value).value;
}

async function make(turn) {
  if (turn !== latest) return; // there are newer settings
  const settings = readSettings();
  const columns = Array.from({ length: settings.steps }, (_, i) => column(i + 1));
  find("strip").replaceChildren(...columns);
  find("strip").style.setProperty("--steps", settings.steps);
  const start = performance.now();
  let done = 0;
  let pixels;
  say(`Step 1 of ${settings.steps}`);
  for await (const { seen, x0, x } of steps(settings)) {
    const [above, below] = columns[done].querySelectorAll("canvas");
    draw(above, await decode(seen));
    draw(below, await decode(x0));
    done += 1;
    pixels = await decode(done === settings.steps ? x : x0);
    if (turn !== latest) return;
    draw(find("image"), pixels);
    say(`Step ${done} of ${settings.steps}`);
  }
  image = pixels;
  const seconds = (performance.now() - start) / 1000;
  const name = model.classes[settings.label];
  const what = [...(name ? [`class ${name}`] : []), `seed ${settings.seed}`, settings.steps === 1 ? "1 step" : `${settings.steps} steps`].join(", ");
  find("image").setAttribute("aria-label", `Image: ${what}`);
  say(`${what}: ${seconds.toFixed(seconds < 1 ? 2 : 1)} s`);
  showCommand(settings);
}

// Without a class, generate.py takes all in turn, and not the null class.
function showCommand({ label, seed, steps, guidance }) {
  const name = model.classes[label];
  const words = ["python generate.py", `--model ${model.name}`, `--scheduler ${model.scheduler}`, `--seed ${seed}`];
  words.push(`--num_inference_steps ${steps}`, "--num_images 1");
  if (name) words.push(`--class_label ${/^[\w-]+$/.test(name) ? name : label}`);
  if (guidance !== 1) words.push(`--guidance_scale ${guidance}`);
  const pieces = words.map((text) => Object.assign(document.createElement("span"), { textContent: text }));
  find("command").replaceChildren(...pieces.flatMap((piece) => [piece, " "]));
  find("same").hidden = model.classes.length > 0 && label === model.null_class;
}

function sample() {
  showSettings();
  if (!form.checkValidity()) return;
  find("problem").hidden = true;
  const turn = ++latest;
  queue = queue.then(() => make(turn)).catch(complain);
}

function save() {
  find("image").toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `seed-${form.elements.seed.value}.png`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

function setUp() {
  const { label, seed, steps, guidance } = form.elements;
  const known = model.classes.length > 0;
  if (known && model.null_class !== null) label.add(new Option("any", ""));
  model.classes.forEach((name, i) => label.add(new Option(name, i, i === 0, i === 0)));
  label.closest(".field").hidden = !known;
  guidance.closest(".field").hidden = !known || model.null_class === null;
  guidance.max = Math.max(6, model.guidance_scale);
  guidance.value = model.guidance_scale;
  steps.max = model.tables.length;
  steps.value = model.steps;
  model.name = document.querySelector("header a").textContent;
  form.addEventListener("input", sample);
  form.addEventListener("submit", (event) => event.preventDefault());
  find("next").addEventListener("click", () => {
    seed.value = (Number(seed.value) + 1) % 2 ** 32;
    sample();
  });
  find("save").addEventListener("click", save);
  find("controls").disabled = false;
  find("progress").hidden = true;
}

async function begin() {
  model = await (await load("model.json", {})).json();
  const [graphs] = await Promise.all([loadGraphs(), loadRuntime()]);
  say("Preparing the model");
  denoiser = await ort.InferenceSession.create(graphs["denoiser.onnx"]);
  if (graphs["decoder.onnx"]) decoder = await ort.InferenceSession.create(graphs["decoder.onnx"]);
  setUp();
  sample();
}

begin().catch(complain);

"""publish.py on folders and options that it must refuse, and what of a failure is left: nothing."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from snowmelt.evaluation.alignment import write_alignment
from tests.hostile.conftest import Refuse
from tests.hostile.models import (
    INDEX,
    MODELS,
    UNET,
    Damage,
    both,
    change,
    fifo,
    intact,
    link,
    put,
    remove,
)
from tests.pipelines.models import tiny_pipeline
from tests.publishing.test_export import REPORT, digest_of

RUN, METRICS, TOLD = "run.json", "metrics.jsonl", "report/report.json"
CONFIG = {"dataset_name": "digits", "split": "train", "learning_rate": 1e-4, "lr_scheduler": "cosine"}
LINE = {"step": 1, "loss": 0.5, "images_per_second": 10.0, "peak_memory_mb": 5.0}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with all that is read of one, and a file that is nobody's business."""
    root = tmp_path_factory.mktemp("sandbox")
    folder = root / "good"
    tiny_pipeline(num_class_embeds=4, id2label={0: "a", 1: "b", 2: "c"}).save_pretrained(folder)
    facts = {"config": CONFIG, "num_images": 5, "images_per_step": 8, "software": {"torch": "2"}, "hardware": "a CPU"}
    put(RUN, json.dumps(facts | {"mixed_precision": "no"}))(folder)
    put(METRICS, json.dumps(LINE) + "\n")(folder)
    put(TOLD, json.dumps(REPORT | {"weights": digest_of(folder)}))(folder)
    write_alignment(folder / "alignment.md", "| prompts |\n", digest_of(folder))
    (folder / "samples").mkdir()
    for name in ("samples/step-00001.png", "loss.png", "alignment.png", "evaluation.png", "report/sweep-eta.png"):
        Image.new("L", (4, 4)).save(folder / name)
    (root / "secret").mkdir()
    put("config.json", "{}")(root / "secret")
    put("secret.txt", "secret")(root)
    return root


FILES: list[tuple[Damage, str]] = [
    (put(RUN, "{"), r"run.json: not valid JSON"),
    (put(RUN, "[]"), r"run.json: must map names to values"),
    (put(RUN, '{"config": {}}'), r"run.json: has no 'num_images'"),
    (change(RUN, config=5), r"run.json: 'config' must be a mapping, is 5"),
    (change(RUN, images_per_step=0), r"'images_per_step' must be at least 1, is 0"),
    (change(RUN, images_per_step=True), r"'images_per_step' must be a whole number, is True"),
    (change(RUN, num_images="many"), r"'num_images' must be a whole number"),
    (change(RUN, software=[]), r"'software' must be a mapping"),
    (change(RUN, hardware=None), r"'hardware' must be text, is None"),
    (change(RUN, config=CONFIG | {"dataset_name": "a\nb"}), r"run.json: 'dataset_name' must be a name on the Hub"),
    (change(RUN, config=CONFIG | {"dataset_name": 'x", os.system("y'}), r"'dataset_name' must be a name on the Hub"),
    (change(RUN, config=CONFIG | {"pretrained_model_name_or_path": '"); import os'}), r"must be a name on the Hub"),
    (link(RUN, "/etc/passwd"), r"run.json leads out of the model, to /etc/passwd"),
    (fifo(RUN), r"run.json is no regular file"),
    (put(METRICS, "{\n"), r"metrics.jsonl.*not valid JSON"),
    (put(METRICS, "5\n"), r"metrics.jsonl.*must map names to values"),
    (put(METRICS, '{"loss": 1}\n'), r"metrics.jsonl.*: has no 'step'"),
    (put(METRICS, json.dumps(LINE | {"images_per_second": 0}) + "\n"), r"increasing steps and speeds above 0"),
    (put(METRICS, 2 * (json.dumps(LINE) + "\n")), r"increasing steps and speeds above 0"),
    (put(METRICS, json.dumps(LINE | {"loss": "x"}) + "\n"), r"'loss' must be a whole number or a number, is 'x'"),
    (put(METRICS, b"\xff\n"), r"metrics.jsonl: is not text in UTF-8"),
    (link(METRICS, "../secret.txt"), r"metrics.jsonl leads out of the model"),
    (put(TOLD, "{"), r"report.json: not valid JSON"),
    (change(TOLD, results=5), r"'results' must be a list, is 5"),
    (change(TOLD, results=[5]), r"report.json: results: must map names to values"),
    (change(TOLD, results=[{"metric": "fd"}]), r"report.json: results: has no 'name'"),
    (change(TOLD, results=[REPORT["results"][0] | {"value": "low"}]), r"'value' must be a whole number or a number"),
    (change(TOLD, sampler={}), r"report.json: sampler: has no 'scheduler'"),
    (change(TOLD, features=[]), r"'features' must be a mapping"),
    (change(TOLD, features={"name": "f", "accuracy": "all"}), r"'accuracy' must be a whole number or a number"),
    (change(TOLD, dataset={}), r"report.json: dataset: has no 'name'"),
    (change(TOLD, dataset=REPORT["dataset"] | {"name": "a b\nc"}), r"'dataset' must be a name on the Hub"),
    (change(TOLD, num_images=None), r"'num_images' must be a whole number"),
    (link(TOLD, "/etc/passwd"), r"report.json leads out of the model, to /etc/passwd"),
    (link("loss.png", "/etc/passwd"), r"loss.png leads out of the model, to /etc/passwd"),
    (link("samples/step-00001.png", "/etc/passwd"), r"step-00001.png leads out of the model"),
    (link("alignment.png", "../secret.txt"), r"alignment.png leads out of the model"),
    (link("alignment.md", "../secret.txt"), r"alignment.md leads out of the model"),
    (link("report/sweep-eta.png", "/etc/passwd"), r"sweep-eta.png leads out of the model"),
    (link("README.md", "/etc/passwd"), r"README.md leads out of the model, to /etc/passwd"),
    (link("README.md", "nowhere"), r"README.md leads nowhere"),
    (fifo("loss.png"), r"loss.png is no regular file"),
    (link("unet/config.json", "../../secret/config.json"), r"unet/config.json leads out of the model"),
    (change(INDEX, id2label={"x": "a"}), r"'id2label' must map numbers to names of classes"),
    (change(INDEX, id2label={"0": 5}), r"'id2label' must map numbers to names of classes"),
    (change(INDEX, prediction_type=5), r"'prediction_type' must be text, is 5"),
    (change(INDEX, _class_name="image_grid"), r"m is a image_grid; published are PixelDiffusionPipeline, Latent"),
    (change(INDEX, _class_name="os"), r"m is a os; published are"),
    (change(INDEX, _class_name="DiffusionPipeline"), r"m is a DiffusionPipeline; published are"),
    (change(INDEX, unet=...), r"m is a PixelDiffusionPipeline without a 'unet'"),
    (put(UNET, "{"), r"unet/config.json: not valid JSON"),
    (put(UNET, "[]"), r"unet/config.json: must map names to values"),
    (change(UNET, sample_size=...), r"unet/config.json: has no 'sample_size'"),
    (change(UNET, block_out_channels=[3]), r"--model: can't load .*"),
    (change(UNET, down_block_types=["NoSuchBlock"]), r"--model: can't load .*"),
    (
        both(change(INDEX, _class_name="PixelDiffusionPipeline"), put("scheduler/scheduler_config.json", "{")),
        r"scheduler_config.json: not valid JSON",
    ),
    (both(remove(INDEX), put("pytorch_lora_weights.safetensors", "x")), r"not whole safetensors"),
    (both(remove(INDEX), put("controlnet/config.json", "{}")), r"controlnet holds no weights"),
    (
        both(remove(INDEX), lambda folder: shutil.copytree(folder / "unet", folder / "controlnet")),
        r"m/controlnet holds a 'UNet2DModel', and no ControlNet",
    ),
    (both(remove(INDEX), link("pytorch_lora_weights.safetensors", "/etc/passwd")), r"leads out of the model"),
]


@pytest.mark.parametrize(("damage", "line"), [*MODELS, *FILES])
def test_folders(refuse: Refuse, sandbox: Path, damage: Damage, line: str) -> None:
    model = Path(shutil.copytree(sandbox / "good", sandbox / "m"))
    try:
        damage(model)
        refuse("publish.py --model m --hub_model_id a/b --output_dir out", f"^error: .*{line}")
    finally:
        shutil.rmtree(model)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--model nowhere --hub_model_id a/b", "nowhere holds no model_index.json"),
        ("--model secret.txt --hub_model_id a/b", "secret.txt holds no model_index.json"),
        ("--model '' --hub_model_id a/b", "--model: is empty"),
        ("--model good --hub_model_id 'a b'", "--hub_model_id: 'a b' is not a name that the Hub allows"),
        ("--model good --hub_model_id a/b/c", "--hub_model_id: 'a/b/c' is not a name"),
        (r"--model good --hub_model_id 'a/b\nerror: c'", "--hub_model_id: .* is not a name"),
        ("--model good --hub_model_id ../b", "--hub_model_id: .* is not a name"),
        ("--model good --hub_model_id a/b --license 'mit\nx: y'", "--license: .* is not a name"),
        ("--model good --hub_model_id a/b --dataset_name 'a b'", "--dataset_name: 'a b' is not a name"),
        ("--model good --hub_model_id a/b --variant int8", "--variant"),
        ("--model good --hub_model_id a/b --report nowhere", "--report nowhere holds no report.json"),
        ("--model good --hub_model_id a/b --report secret.txt", "--report secret.txt holds no report.json"),
        ("--model good --hub_model_id a/b --stock_pipeline", "--stock_pipeline: no pipeline of diffusers samples this"),
        ("--model good --hub_model_id a/b --output_dir secret.txt", "--output_dir secret.txt is a file; name a folder"),
        ("--model good --hub_model_id a/b --output_dir good", "--output_dir good is not empty; name another"),
        ("--model good --hub_model_id a/b --output_dir /dev/null", "--output_dir /dev/null is a file"),
        ("--model good --hub_model_id a/b --output_dir /dev/null/x", "Not a directory"),
        ("--model good --hub_model_id a/b --output_dir secret.txt/x", "Not a directory"),
        (f"--model good --hub_model_id a/b --output_dir {'x' * 300}", "File name too long; give a shorter name"),
        ("--model good --hub_model_id a/b --output_dir out --space", "--output_dir uploads nothing"),
    ],
)
def test_options(refuse: Refuse, flags: str, line: str) -> None:
    extra = "" if "--output_dir" in flags else " --output_dir out"
    refuse(f"publish.py {flags}{extra}", f"^error: .*{line}")


def test_a_token_is_refused_before_anything_is_read(refuse: Refuse, sandbox: Path) -> None:
    """Nobody listens where the Hub is to be; the folder that can't be published isn't looked at."""
    refuse("publish.py --model nowhere --hub_model_id a/b --hub_token hf_x", "^error: can't publish to a/b: .*reached")


def test_a_full_disk_leaves_nothing(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out/loss.png")

    monkeypatch.setattr("snowmelt.publishing.export.shutil.copyfile", full)
    refuse("publish.py --model good --hub_model_id a/b --output_dir out", "^error: out/loss.png: No space left on dev")


def test_what_is_intact_is_published(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the rows above would be refused for another reason than theirs."""
    from tests.hostile.conftest import outcome

    monkeypatch.chdir(sandbox)
    intact(sandbox / "good")
    assert outcome("publish.py --model good --hub_model_id a/b --output_dir deep/out")[0] == 0
    assert {"loss.png", "samples.png", "alignment.png", "report-sweep-eta.png"} <= {
        path.name for path in (sandbox / "deep/out").iterdir()
    }
    assert "secret" not in str([path.name for path in (sandbox / "deep/out").rglob("*")])
    shutil.rmtree(sandbox / "deep")

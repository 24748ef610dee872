"""evaluate.py on models and options that it must refuse, before it reads data and trains a classifier on them."""

import json
import shutil
from pathlib import Path

import pytest
from diffusers import DDPMScheduler, EDMEulerScheduler

from pipelines import ScoreSdePipeline
from snowmelt.evaluation import classifier
from tests.hostile.conftest import Refuse
from tests.hostile.models import (
    INDEX,
    MODELS,
    SCHEDULER,
    UNET,
    WEIGHTS,
    Damage,
    both,
    change,
    cut,
    intact,
    link,
    lose,
    put,
    remove,
)
from tests.pipelines.models import seal, tiny_pipeline, tiny_unet
from tests.pipelines.test_text2img import make as make_text2img

GUIDED = "--guidance_scale 2 --guidance_model"
STATE = "checkpoint-5/trainer_state.json"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sandbox")
    tiny_pipeline(num_class_embeds=4, id2label={0: "a", 1: "b", 2: "c"}).save_pretrained(root / "good")
    shutil.copytree(root / "good/unet", root / "good/checkpoint-5/unet")
    seal(root / "good/checkpoint-5")
    tiny_pipeline().save_pretrained(root / "plain")
    make_text2img(latent=False).save_pretrained(root / "text")
    ScoreSdePipeline(tiny_unet(), DDPMScheduler()).save_pretrained(root / "vp")
    tiny_pipeline(EDMEulerScheduler()).save_pretrained(root / "edm")
    tiny_pipeline(DDPMScheduler(prediction_type="v_prediction")).save_pretrained(root / "v")
    tiny_pipeline(DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(root / "cosine")
    tiny_pipeline(channels=3).save_pretrained(root / "rgb")
    put("secret.txt", "secret")(root)
    put("pytorch_lora_weights.safetensors", "x")(root / "lora")
    put("trainer_state.json", "{}")(root / "good/checkpoint-6")
    put("unet/trained.safetensors", "x")(root / "good/checkpoint-7")
    seal(root / "good/checkpoint-7")
    return root


@pytest.fixture(autouse=True)
def _nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, classifiers and samples come later than all that is refused here."""
    for place in ("study.load_images", "study.make_features", "study.draw"):
        monkeypatch.setattr(f"snowmelt.evaluation.{place}", None)
    monkeypatch.setattr(classifier, "STEPS", None)


LOADED: list[tuple[Damage, str]] = [
    (put(UNET, "{"), r"unet/config.json: not valid JSON"),
    (put(UNET, "[]"), r"unet/config.json: must map names to values"),
    (put(UNET, "[" * 100_000), r"unet/config.json: not valid JSON"),
    (put(UNET, b"\xff"), r"unet/config.json: is not text in UTF-8"),
    (put(UNET, "{}"), r"can't load m: "),
    (change(UNET, block_out_channels=[3]), r"can't load m: "),
    (change(UNET, block_out_channels="wide"), r"can't load m: "),
    (change(UNET, block_out_channels=[0, 0]), r"can't load m: "),
    (change(UNET, block_out_channels=[64, 128]), r"can't load m: "),
    (change(UNET, down_block_types=["NoSuchBlock2D", "DownBlock2D"]), r"can't load m: .*NoSuchBlock2D"),
    (change(UNET, norm_num_groups=7), r"can't load m: "),
    (change(UNET, norm_num_groups=0), r"can't load m: ZeroDivisionError"),
    (change(UNET, in_channels=-1), r"can't load m: "),
    (change(UNET, act_fn="none"), r"can't load m: "),
    (change(UNET, layers_per_block="x"), r"can't load m: "),
    (change(UNET, sample_size=None), r"doesn't say which size it was trained for; its sample_size is None"),
    (change(UNET, sample_size=[8, 16, 3]), r"its sample_size is .*8, 16, 3"),
    (change(UNET, sample_size=[8, 0]), r"its sample_size is .*8, 0"),
    (change(UNET, sample_size=0), r"its sample_size is 0"),
    (change(UNET, num_class_embeds=2), r"can't load m: "),
    (put(SCHEDULER, "{"), r"scheduler_config.json: not valid JSON"),
    (put(SCHEDULER, "5"), r"scheduler_config.json: must map names"),
    (remove(SCHEDULER), r"can't load m: "),
    (change(SCHEDULER, beta_schedule="steep"), r"can't load m: .*steep"),
    (change(SCHEDULER, num_train_timesteps=-1), r"can't load m: |num_inference_steps"),
    (change(SCHEDULER, num_train_timesteps="x"), r"can't load m: "),
    (change(SCHEDULER, num_train_timesteps=0), r"can't load m: |num_inference_steps: must be from 1 to 0"),
    (change(SCHEDULER, timestep_spacing="wide"), r"wide is not supported"),
    (change(SCHEDULER, clip_sample_range="x"), r"--model: it can't be sampled: TypeError"),
    (change(SCHEDULER, prediction_type="noise"), r"prediction_type|can't load"),
    (change(SCHEDULER, num_train_timesteps=1), r"num_inference_steps: must be from 1 to 1, got 2"),
    (change(INDEX, scheduler=["diffusers", "NoSuchScheduler"]), r"can't load m: "),
    (change(INDEX, unet=["diffusers", "AutoencoderKL"]), r"can't load m: |lacks"),
    (change(INDEX, unet=["transformers", "CLIPTextModel"]), r"can't load m: |lacks"),
    (change(INDEX, scheduler=...), r"can't load m: "),
    (change(INDEX, id2label={"x": "a"}), r"can't load m: .*id2label: must be a whole number"),
    (change(INDEX, id2label={"0": "a"}), r"can't load m: id2label: names 1 classes, and the network has 4 rows"),
    (change(INDEX, value_range=[1, 0]), r"can't load m: value_range: the lowest must be less"),
    (change(INDEX, value_range=["a", "b"]), r"'value_range' must be a class of diffusers"),
    (change(INDEX, prediction_type="noise"), r"can't load m: prediction_type: 'noise' is not one of"),
    (
        change(INDEX, _class_name="LDMPipeline", vae=["diffusers", "VQModel"]),
        r"m is a LDMPipeline of scheduler, unet, vae",
    ),
    (change(INDEX, _class_name="LatentDiffusionPipeline"), r"can't load m: "),
    (lose(WEIGHTS), r"m/unet: lacks 1 of its weights, such as "),
]


@pytest.mark.parametrize(("damage", "line"), [*MODELS, *LOADED])
def test_models(refuse: Refuse, sandbox: Path, damage: Damage, line: str) -> None:
    model = Path(shutil.copytree(sandbox / "good", sandbox / "m"))
    try:
        damage(model)
        refuse("evaluate.py --model m --dataset_name digits --num_inference_steps 2 --output out", f"^error: .*{line}")
    finally:
        shutil.rmtree(model)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (remove(STATE), "--checkpoint 5: m has 6, 7"),
        (put(STATE, "{"), "checkpoint-5 is damaged: trainer_state.json"),
        (put(STATE, "[]"), "checkpoint-5 is damaged: trainer_state.json"),
        (change(STATE, step=6), "checkpoint-5 is damaged: trainer_state.json"),
        (change(STATE, files={}), "checkpoint-5 is damaged: trainer_state.json"),
        (lose(f"checkpoint-5/{WEIGHTS}"), "is damaged: unet/diffusion_pytorch_model.safetensors"),
        (cut(f"checkpoint-5/{WEIGHTS}", 1000), "is damaged: unet/diffusion_pytorch_model.safetensors"),
        (remove(f"checkpoint-5/{UNET}"), "is damaged: unet/config.json is missing"),
        (remove("checkpoint-5/unet"), "checkpoint-5 holds no unet"),
        (
            both(remove(f"checkpoint-5/{WEIGHTS}"), link(f"checkpoint-5/{WEIGHTS}", "/dev/null")),
            "is damaged: unet/diff",
        ),
    ],
)
def test_checkpoints(refuse: Refuse, sandbox: Path, damage: Damage, line: str) -> None:
    model = Path(shutil.copytree(sandbox / "good", sandbox / "m"))
    try:
        damage(model)
        refuse("evaluate.py --model m --checkpoint 5 --dataset_name digits --output out", f"^error: .*{line}")
    finally:
        shutil.rmtree(model)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--model no/where/at/all", "it is no folder, and no name on the Hub"),
        ("--model /dev/null", "--model: can't load /dev/null: it is a file"),
        ("--model secret.txt", "--model: can't load secret.txt: it is a file"),
        ("--model ''", "--model: is empty"),
        (r"--model 'a\nerror: b'", "it is no folder, and no name on the Hub"),
        ("--model lora", "lora holds LoRA matrices, and no pipeline"),
        (
            "--model text --metrics bound --held_out_split a",
            "--metrics bound: is of models without a condition",
        ),
        ("--model good --metrics clip_score", "--metrics clip_score: is of images made from texts, and the model tak"),
        ("--model good --metrics fd,alignment", "--metrics alignment: is read off images of the embedded scenes"),
        ("--model good --caption_column text", "--caption_column: is for a model that makes images from texts"),
        ("--model good --checkpoint 9", "--checkpoint 9: good has 5, 6, 7"),
        ("--model good --checkpoint ../good", "--checkpoint ../good: good has"),
        ("--model good --checkpoint 6", "checkpoint-6 is damaged"),
        ("--model good --checkpoint 7", r"unet holds what was trained beside a frozen unet \(LoRA\)"),
        ("--model good --ema 0.1", "--ema: good has none of sigma_rel 0.100; it has none"),
        ("--model good --metrics fdd", "--metrics: 'fdd' is not one of fd,"),
        ("--model good --metrics ,", "--metrics: none given"),
        ("--model good --metrics is --features some/dino", "--metrics is: needs a classifier, which some/dino isn't"),
        ("--model good --metrics accuracy --features inception", "--metrics accuracy: needs --features classifier"),
        ("--model plain --metrics accuracy", "--metrics accuracy: the model has no classes"),
        ("--model good --metrics likelihood", "--metrics likelihood: .*--held_out_split"),
        ("--model good --num_images 1000000000", "--num_images: .* take .* GB of memory, and there are .* or fewer"),
        ("--model good --num_images 10000000 --metrics memorization --sweep eta=0", "--num_images: .* GB|.*"),
        ("--model good --num_images 1", "--num_images"),
        ("--model good --batch_size 0", "--batch_size"),
        ("--model good --num_inference_steps 0", "--num_inference_steps"),
        ("--model good --num_inference_steps 1001", "num_inference_steps: must be from 1 to 1000, got 1001"),
        ("--model good --guidance_scale nan", "--guidance_scale"),
        ("--model good --guidance_interval 3 1", "--guidance_interval"),
        ("--model plain --guidance_scale 2", "guidance_scale: must be 1, since this model was not trained"),
        ("--model good --eta 2", "--eta"),
        ("--model good --eta 0.5", "eta: DDPMScheduler takes none"),
        ("--model plain --guidance_model plain", "--guidance_scale: needed by --guidance_model"),
        (f"--model plain {GUIDED} no/where/at/all", "--guidance_model: can't load no/where/at/all"),
        (f"--model plain {GUIDED} text", "--guidance_model: is a TextToImagePipeline; take a model without"),
        (
            f"--model plain {GUIDED} vp",
            "--guidance_model: is trained for VariancePreservingSde.*, and --model discrete",
        ),
        (f"--model vp {GUIDED} plain", "--guidance_model: is trained for discrete, and --model VariancePreservingSde"),
        (f"--model plain {GUIDED} edm", "--guidance_model: is trained for edm, and --model discrete"),
        (f"--model plain {GUIDED} v", "--guidance_model: is one that predicts v_prediction, and --model epsilon"),
        (f"--model plain {GUIDED} cosine", "--guidance_model: was trained on other betas than --model"),
        (f"--model plain {GUIDED} good", "--guidance_model: is one of classes .*, and --model None"),
        (f"--model plain {GUIDED} rgb", "--guidance_model: has 3 input channels, and the model's own network 1"),
        ("--model good --guidance_scale 2 --guidance_checkpoint 9", "--guidance_checkpoint 9: good has 5, 6, 7"),
        ("--model good --guidance_scale 2 --guidance_ema 0.1", "--guidance_ema: good has none of sigma_rel 0.100"),
        ("--model good --s_churn 1", "s_churn: DDPMScheduler takes none; EDMEuler, EulerDiscrete and HeunDiscrete do"),
        ("--model good --s_churn -1", "--s_churn: must be at least 0"),
        ("--model good --s_noise 1.003", "--s_noise: is of the noise that --s_churn adds; give that too"),
        (
            "--model good --scheduler heun --s_churn 1 --s_tmin 2 --s_tmax 1",
            "s_tmin: must be at most s_tmax, got 2 and 1",
        ),
        ("--model vp --s_churn 1", "--s_churn: is for --scheduler euler and heun, and this model is a score-based SDE"),
        ("--model good --sweep s_churn=x", "--sweep s_churn: 'x' is not a number"),
        ("--model good --scheduler flow-euler", "--scheduler: 'flow-euler' doesn't fit this discrete model"),
        (
            "--model good --num_corrector_steps 1",
            "--num_corrector_steps: is for score-based SDEs",
        ),
        (
            "--model plain --predictor ancestral",
            "--predictor: is for .*; choose its --scheduler instead",
        ),
        ("--model vp --scheduler ddim", "--scheduler ddim: this model is a score-based SDE; choose its --predictor"),
        ("--model vp --eta 0.5", "--eta: is for --scheduler ddim, and this model is a score-based SDE"),
        ("--model vp --predictor euler", "argument --predictor: invalid choice: 'euler'"),
        ("--model vp --snr 0", "--snr: must be more than 0"),
        ("--model vp --predictor none", "num_corrector_steps: must be at least 1 with predictor='none'"),
        (
            "--model vp --sweep predictor=ancestral:2",
            "--sweep predictor: 'ancestral:2' is not NAME:CORRECTOR",
        ),
        ("--model vp --sweep tolerance=x", "--sweep tolerance: 'x' is not a number"),
        ("--model good --sweep steps=2", "--sweep steps=2: must be PARAMETER=VALUE"),
        ("--model good --sweep eta=x", "--sweep eta: 'x' is not a number"),
        ("--model good --sweep checkpoint=9", "--checkpoint 9: good has"),
        ("--model good --sweep sampler=ddim:0", "--num_inference_steps"),
        ("--model good --output secret.txt", "--output secret.txt: .*secret.txt is a file; name a folder"),
        ("--model good --output /dev/null", "--output /dev/null: /dev/null is a file"),
        ("--model good --output /dev/null/x", "is a file|Not a directory"),
        (f"--model good --output {'x' * 300}", "File name too long; give a shorter name"),
    ],
)
def test_options(refuse: Refuse, flags: str, line: str) -> None:
    extra = "" if "--output" in flags else " --output out"
    refuse(f"evaluate.py {flags}{extra} --dataset_name digits", f"^error: .*{line}")


def test_reports_are_written_whole(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at the second file leaves the first as it was."""
    from snowmelt.evaluation.report import Report

    intact(sandbox)
    dataset = {"name": "digits", "on_hub": True, "config": None, "split": "train", "num_images": 5}
    sampler = {"scheduler": "s", "num_inference_steps": 2, "nfe": 2, "guidance_scale": 1.0, "eta": 0.0, "seed": 0}
    report = Report("m", "0" * 64, None, dataset, 5, {"name": "f"}, sampler)
    folder = sandbox / "report"
    folder.mkdir()
    report.save(folder)
    before = (folder / "report.json").read_text()
    assert json.loads(before)["weights"] == "0" * 64

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    report.num_images = 6
    with pytest.raises(OSError, match="No space left"):
        report.save(folder)
    assert (folder / "report.json").read_text() == before

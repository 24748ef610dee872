"""evaluate.py on an untrained model of the digits, in this process where possible."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.state import PartialState
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from sklearn.datasets import load_digits

import evaluate
from pipelines import image_generators, make_scheduler
from snowmelt.data.sources import load_images
from snowmelt.errors import UserError
from snowmelt.evaluation import classifier, extras
from snowmelt.evaluation.metrics import FrechetDistance
from snowmelt.evaluation.options import METRICS, EvaluateConfig, settings_of
from snowmelt.evaluation.study import Study
from snowmelt.evaluation.table import COMPARISONS
from snowmelt.evaluation.variational_bound import variational_bound
from snowmelt.model_source import find_source
from snowmelt.options import DataOptions
from tests.evaluation.vision import save_vision_model
from tests.pipelines.models import seal, tiny_pipeline, tiny_unet

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def _quick() -> None:
    """Classifiers train for a second rather than a minute."""
    patch = pytest.MonkeyPatch()
    patch.setattr(classifier, "STEPS", 60)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: digits by class, 16 x 16, with two checkpoints that differ."""
    folder = tmp_path_factory.mktemp("models") / "run"
    ids = {i: str(i) for i in range(10)}
    tiny_pipeline(FlowMatchEulerDiscreteScheduler(), num_class_embeds=11, id2label=ids).save_pretrained(folder)
    for step, scale in ((20, 0.5), (100, 0.1)):
        unet = tiny_unet(1, 11)
        unet.conv_out.weight.data.mul_(scale)
        unet.save_pretrained(folder / f"checkpoint-{step}" / "unet_ema")
        seal(folder / f"checkpoint-{step}")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of 16 x 16 pixels in folders: train/5/..., 400 of them, and 100 in test."""
    folder = tmp_path_factory.mktemp("data")
    digits = load_digits()
    for i in range(500):
        place = folder / ("train" if i < 400 else "test") / str(digits.target[i])
        place.mkdir(parents=True, exist_ok=True)
        photo = PIL.Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8))
        photo.resize((16, 16), PIL.Image.Resampling.BICUBIC).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def words(model: Path, data: Path, cache_dir: Path) -> Callable[..., list[str]]:
    """The command line of an evaluation; options replace the usual ones, and those that are None are left out."""

    def words(output: Path, **options: object) -> list[str]:
        usual = {"model": model, "train_data_dir": data, "cache_dir": cache_dir, "held_out_split": "test"}
        usual |= {"num_images": 24, "num_inference_steps": 2, "batch_size": 10}
        found = []
        for name, value in (usual | options | {"output": output}).items():
            if value is not None:
                found += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return found

    return words


@pytest.fixture(scope="module")
def run(words: Callable[..., list[str]]) -> Callable[..., dict]:
    """Evaluate in this process, and read the report."""

    def run(output: Path, **options: object) -> dict:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["evaluate.py", *words(output, **options)])
            PartialState._reset_state()
            evaluate.main()
        return json.loads((output / "report.json").read_text())

    return run


def values(results: list[dict]) -> dict[str, float]:
    return {result["metric"]: result["value"] for result in results}


def test_report(
    run: Callable[..., dict], model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """All that a model card reads is there, and what people read says the same."""
    report = run(tmp_path, metrics=["fd,kid", "is", "prdc", "accuracy"])
    assert {
        "model",
        "weights",
        "checkpoint",
        "dataset",
        "num_images",
        "features",
        "sampler",
        "results",
        "baseline",
        "sweep",
        "warnings",
    } == set(report)
    assert report["model"] == str(model)
    assert report["dataset"] == {
        "name": str(data),
        "on_hub": False,
        "config": None,
        "split": "train",
        "num_images": 400,
    }
    assert (report["weights"], report["checkpoint"]) == (find_source(str(model)).digest(), None)
    assert report["num_images"] == 24
    assert set(report["features"]) == {"name", "accuracy"}
    assert report["sampler"] == {
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "num_inference_steps": 2,
        "nfe": 2,
        "guidance_scale": 1.0,
        "eta": 0.0,
        "seed": 0,
    }
    metrics = ["fd", "kid", "is", "precision", "recall", "density", "coverage", "accuracy"]
    assert [r["metric"] for r in report["results"]] == metrics
    assert [r["metric"] for r in report["baseline"]] == 2 * metrics
    assert all(set(r) == {"metric", "name", "value", "error", "lower_is_better"} for r in report["results"])
    assert [r["lower_is_better"] for r in report["results"]] == [True, True, *6 * [False]]
    assert report["results"][0]["name"] == f"Frechet distance ({report['features']['name']})"
    assert report["baseline"][0]["name"].endswith(", 24 images of train against its others")
    real, ours = values(report["baseline"][:8]), values(report["results"])
    assert ours["fd"] > 5 * real["fd"]  # noise isn't digits
    assert ours["recall"] < real["recall"]
    assert real["accuracy"] > 0.8 > ours["accuracy"]
    assert "24 images are few for 64 features" in report["warnings"][0]
    assert PIL.Image.open(tmp_path / "samples.png").size == (5 * 16 + 8, 5 * 16 + 8)
    text = (tmp_path / "report.md").read_text()
    assert text in capsys.readouterr().out
    for fact in (f"400 images of {data}, split train", "2 network evaluations", "seed 0", report["warnings"][0]):
        assert fact in text
    assert f"| Frechet distance | lower | {ours['fd']:.4g} | {real['fd']:.4g} |" in text


@pytest.mark.parametrize("by", ["checkpoint", "guidance_checkpoint"])
def test_samples_are_those_of_the_options(
    by: str, model: Path, words: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Image i from (seed, i), classes in turn, at 8 bits; distances of just those.

    Of the checkpoint, guided by its null class, or of the model, guided by the checkpoint.
    """
    from snowmelt.config import parse

    options = {"seed": 3, "guidance_scale": 2.0, by: "20", "scheduler": "flow-heun"}
    config = parse(EvaluateConfig, words(tmp_path, **options))
    PartialState._reset_state()
    study = Study(config, PartialState(cpu=True))
    report = study.run()
    pipeline = tiny_pipeline(FlowMatchEulerDiscreteScheduler(), num_class_embeds=11)
    pipeline.scheduler = make_scheduler("flow-heun", pipeline.scheduler)
    guide = None if by == "checkpoint" else copy.deepcopy(pipeline.unet)
    (guide or pipeline.unet).conv_out.weight.data.mul_(0.5)
    images = pipeline(
        24,
        guidance_model=guide,
        class_labels=[i % 10 for i in range(24)],
        guidance_scale=2.0,
        num_inference_steps=2,
        generator=image_generators(3, range(24)),
        output_type="pt",
    ).images
    features = study.extractor((images * 255).round() / 255)
    real = study.extractor(study.real.batch(np.arange(400)))
    assert report.results[0].value == pytest.approx(FrechetDistance(real)(features), rel=1e-3)
    assert report.sampler["nfe"] == 3  # Heun's second evaluation of the last step isn't taken
    if guide is not None:
        assert report.sampler["scheduler"] == "flow-heun, guided by its own checkpoint 20"
        return
    assert report.model == f"{model} (checkpoint-20)"
    assert (report.weights, report.checkpoint) == (find_source(str(model), checkpoint="20").digest(), "checkpoint-20")


def test_sweeps(run: Callable[..., dict], tmp_path: Path) -> None:
    """Each value's results are those that it has by itself, and each sweep is drawn."""
    sweeps = ["num_inference_steps=1,2", "sampler=flow-heun:2,flow-euler:3", "guidance_scale=2", "checkpoint=all"]
    report = run(tmp_path / "a", metrics=["fd"], sweep=sweeps)
    found = [(point["parameter"], point["value"], point["nfe"]) for point in report["sweep"]]
    assert found == [
        ("num_inference_steps", 1, 1),
        ("num_inference_steps", 2, 2),
        ("sampler", "flow-heun:2", 3),
        ("sampler", "flow-euler:3", 3),
        ("guidance_scale", 2, 2),
        ("checkpoint", 20, 2),
        ("checkpoint", 100, 2),
    ]
    names = {"samples.png", *(f"sweep-{w.partition('=')[0]}.png" for w in sweeps)}
    assert {p.name for p in (tmp_path / "a").glob("*.png")} == names
    swept = [point["results"] for point in report["sweep"]]
    assert swept[1] == report["results"]
    assert swept[2] == run(tmp_path / "b", metrics=["fd"], scheduler="flow-heun")["results"]
    assert swept[4] == run(tmp_path / "b", metrics=["fd"], guidance_scale=2)["results"]
    assert swept[6] == run(tmp_path / "b", metrics=["fd"], checkpoint="checkpoint-100")["results"]
    assert len({values(results)["fd"] for results in swept}) == 7
    assert all(point["seconds"] > 0 for point in report["sweep"])
    assert not list((tmp_path / "b").glob("sweep-*"))
    run(tmp_path / "a", metrics=["fd"])
    assert not list((tmp_path / "a").glob("sweep-*"))  # of the report that this one replaced


def test_memorization_and_likelihood(run: Callable[..., dict], tmp_path: Path) -> None:
    metrics = ["memorization", "likelihood"]
    report = run(tmp_path, metrics=metrics, likelihood_images=2, checkpoint=100)  # whose ODE is smooth
    names = [
        "memorization",
        "memorization_closer",
        "memorization_features",
        "memorization_features_closer",
        "likelihood",
    ]
    assert [r["metric"] for r in report["results"]] == names
    assert report["baseline"] == []
    assert values(report["results"])["likelihood"] > 0
    assert report["results"][-1]["error"] > 0
    assert (tmp_path / "closest.png").is_file()


def test_bound(run: Callable[..., dict], data: Path, cache_dir: Path, tmp_path: Path) -> None:
    """It is the mean of the held-out images' own, which the processes would share."""
    pipeline = tiny_pipeline(DDPMScheduler(num_train_timesteps=10))
    pipeline.save_pretrained(tmp_path / "model")
    options = {"metrics": ["bound"], "likelihood_images": 5, "batch_size": 2, "num_images": 2}
    result = run(tmp_path / "report", model=tmp_path / "model", **options)["results"][0]
    held_out = load_images(DataOptions(train_data_dir=str(data), split="test", resolution=16, cache_dir=str(cache_dir)))
    rows = np.sort(np.random.default_rng(0).permutation(100)[:5])
    images = torch.from_numpy(held_out.gather(rows, None))
    bits = variational_bound(pipeline, images, indices=rows.tolist())
    assert result["value"] == pytest.approx(bits.mean().item(), rel=1e-6)
    assert result["error"] == pytest.approx((bits.std() / 5**0.5).item(), rel=1e-6)


def test_folders_of_vision_models(run: Callable[..., dict], tmp_path: Path) -> None:
    report = run(tmp_path, features=save_vision_model("vit", tmp_path / "vit"), metrics=["fd", "prdc"])
    assert set(report["features"]) == {"name"}
    assert str(tmp_path) not in json.dumps(report["features"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["fd", "fdd"]}, "--metrics: 'fdd' is not one of fd, fd_inf, kid, is,"),
        ({"metrics": [","]}, "--metrics: none given"),
        (
            {"metrics": ["likelihood"], "held_out_split": None},
            "--metrics likelihood: .*name them with --held_out_split",
        ),
        ({"held_out_split": "tests"}, "--held_out_split tests: .* has t"),
        ({"num_images": 5, "metrics": ["prdc"]}, "--metrics prdc: needs 6 images or more; --num_images has 5"),
        ({"metrics": ["fd_inf"]}, "--metrics fd_inf: needs 320 images or more; --num_images has 24"),
        ({"features": "/no/thing"}, "--features /no/thing: transformers can't load such a model"),
        ({"features": "inception"}, "--features inception: No module named 'torch_fidelity'"),
        ({"scheduler": "ddim"}, "--scheduler: 'ddim' doesn't fit this flow model; these do: flow-euler"),
        ({"sweep": ["sampler=flow-euler:2,ddim:2"]}, "--scheduler: 'ddim' doesn't fit this flow model"),
        ({"sweep": ["steps=2"]}, "--sweep steps=2: must be PARAMETER=VALUE,VALUE with one of num_inference_steps, gui"),
        ({"sweep": ["num_inference_steps=2,x"]}, "--sweep num_inference_steps: 'x' is not a number"),
        ({"sweep": ["num_inference_steps=0"]}, "--num_inference_steps: .*1"),
        ({"sweep": ["sampler=ddim"]}, "--sweep sampler: 'ddim' is not NAME:STEPS"),
        ({"sweep": ["checkpoint=21"]}, "--checkpoint 21: .* has 20, 100"),
        ({"eta": 1}, "eta: FlowMatchEulerDiscreteScheduler takes none"),
        ({"channels": 3}, "--split train: images of 3 channels, but the model's have 1"),
        ({"metrics": ["bound"]}, "a flow model has no variational bound"),
    ],
)
def test_mistakes(
    run: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, message: str
) -> None:
    """All are refused before sampling starts, and nothing is written."""
    monkeypatch.setattr("snowmelt.evaluation.study.draw", None)
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path / "report", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()


def test_metrics_of_labels(run: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They want a data set with labels, a classifier of these and a model that was asked for one of them."""
    monkeypatch.setattr("snowmelt.evaluation.study.draw", None)
    photos = tmp_path / "pictures"
    photos.mkdir()
    for i in range(12):
        PIL.Image.fromarray(np.full((16, 16), i, np.uint8)).save(photos / f"{i}.png")
    unlabelled = {"train_data_dir": photos, "held_out_split": None, "metrics": ["accuracy"]}
    with pytest.raises(UserError, match="--metrics kid: needs 20 images or more; the reference has 12"):
        run(tmp_path / "a", **unlabelled | {"metrics": ["kid"]})
    with pytest.raises(UserError, match="the data set has no labels; name their column with --label_column"):
        run(tmp_path / "a", **unlabelled)
    with pytest.raises(UserError, match=r"--metrics accuracy: needs a classifier, which .*vit isn't"):
        run(tmp_path / "b", features=save_vision_model("vit", tmp_path / "vit"), metrics=["accuracy"])
    tiny_pipeline(DDPMScheduler()).save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="--metrics accuracy: the model has no classes; leave"):
        run(tmp_path / "c", model=tmp_path / "plain", metrics=["accuracy"])
    with pytest.raises(UserError, match="guidance_scale: must be 1, since this model was not trained with dropped"):
        run(tmp_path / "d", model=tmp_path / "plain", sweep=["guidance_scale=1,2"])


def test_processes_give_the_same_report(
    run: Callable[..., dict], words: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Launched as `accelerate launch` does it for GPUs; batches are the same, so all digits are."""
    options = {"metrics": ["fd", "prdc", "memorization"], "sweep": ["num_inference_steps=1"]}
    alone = run(tmp_path / "a", **options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "evaluate.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += words(tmp_path / "b", **options)
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.count("report in") == 1
    together = json.loads((tmp_path / "b" / "report.json").read_text())
    for report in (alone, together):
        assert report["sweep"][0].pop("seconds") > 0
    assert together == alone
    assert np.array_equal(*(np.asarray(PIL.Image.open(tmp_path / name / "samples.png")) for name in "ab"))


def test_processes_share_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of held-out images are the same from one process as from two, and each is measured once."""
    cache = SimpleNamespace(gather=lambda rows, _: rows, labels=None)
    held_out = MagicMock(cache=cache, split="test", __len__=lambda _: 50)
    found: list = []

    def coded(process: int, processes: int) -> list[tuple[int, list[int]]]:
        state = SimpleNamespace(process_index=process, num_processes=processes, is_main_process=process == 0)
        case = MagicMock(held_out=held_out, state=state, seed=0, batch_size=4, likelihood_images=11)
        monkeypatch.setattr(extras, "gather_object", lambda parts: found.append(parts) or parts)
        extras._coded(case, "likelihood", "", lambda **given: given["images"].double())
        return found.pop()

    alone, together = coded(0, 1), coded(0, 2) + coded(1, 2)
    assert sorted(len(bits) for _, bits in alone) == [3, 4, 4]
    assert sorted((first, bits.tolist()) for first, bits in together) == [(f, bits.tolist()) for f, bits in alone]


def test_values_of_a_sweep_are_numbers_where_they_can_be() -> None:
    config = EvaluateConfig(model="m", sweep=["guidance_scale=1,1.5", "scheduler=ddim"])
    assert [s.shown for s in settings_of(config)[1:]] == [1, 1.5, "ddim"]
    assert [s.config.guidance_scale for s in settings_of(config)] == [None, 1, 1.5, None]


def test_help_is_immediate_and_names_all_metrics() -> None:
    code = "import sys, evaluate; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert {*METRICS} == {*COMPARISONS, *extras.EXTRAS}


def test_uneven_classes_are_given(run: Callable[..., dict], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for i in range(40):
        place = folder / str(int(i < 10))
        place.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(place / f"{i}.png")
    tiny_pipeline(DDPMScheduler(), num_class_embeds=3, id2label={0: "0", 1: "1"}).save_pretrained(tmp_path / "model")
    options = {"model": tmp_path / "model", "train_data_dir": folder, "held_out_split": None, "metrics": ["fd"]}
    report = run(tmp_path / "report", **options)
    assert report["warnings"][1].startswith("The classes of split train are uneven (10 to 30 images)")
    assert torch.tensor(report["results"][0]["value"]).isfinite()

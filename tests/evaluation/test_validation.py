"""Evaluation during training: what it measures, that it disturbs nothing, and what it decides."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from pipelines import PixelDiffusionPipeline
from snowmelt.conditioning import LabelConditioning, NoConditioning
from snowmelt.data.captions import Captions
from snowmelt.data.held_out import load_splits
from snowmelt.errors import UserError
from snowmelt.evaluation import classifier, validation
from snowmelt.evaluation.generation import turns
from snowmelt.evaluation.table import Result
from snowmelt.evaluation.validation import Validation, ValidationLoss
from snowmelt.objectives import RECIPES
from snowmelt.options import UnconditionalConfig
from snowmelt.spaces import PixelSpace
from snowmelt.tasks.diffusion import DiffusionTask
from snowmelt.text.caption_conditioning import CaptionConditioning
from snowmelt.tracking import read_metrics
from tests.conftest import trained

WATCH = {
    "validation_share": 0.1,
    "eval_steps": 1,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "train_batch_size": 64,
}
FROZEN = WATCH | {"learning_rate": 0.0, "use_ema": False, "max_train_steps": 9}


@pytest.fixture
def config(cache_dir):
    """`config(**options)` of a run on the digits."""

    def config(**options: object) -> UnconditionalConfig:
        usual = {"dataset_name": "digits", "resolution": 8, "cache_dir": str(cache_dir), "eval_steps": 1}
        return UnconditionalConfig(**usual | options)

    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits in the folders of two splits."""
    root = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    for i in range(150):
        path = root / ("train" if i < 100 else "test") / str(digits.target[i])
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(path / f"{i:05d}.png")
    return root


@pytest.fixture(scope="module")
def quick_classifier():
    """Any features will do here."""
    with patch.object(classifier, "STEPS", 20):
        yield


@pytest.fixture
def short(monkeypatch):
    """Evaluations that take less time."""
    monkeypatch.setattr(validation, "LEAST", 128)


def evaluations(run: Path) -> list[dict]:
    """What metrics.jsonl tells of them."""
    lines = [{k: v for k, v in line.items() if k.startswith("eval_") or k == "step"} for line in read_metrics(run)]
    return [line for line in lines if len(line) > 1]


def note(run: Path) -> dict:
    return json.loads((run / "best" / "validation.json").read_text())


class Zero(torch.nn.Module):
    """Predicts nothing, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, x, timestep, **condition):
        self.seen.append((x, timestep, condition))
        return (torch.zeros_like(x),)


def test_share_is_held_out(config):
    train, held_out = load_splits(config(validation_share=0.1))
    assert (len(train), len(held_out)) == (1617, 180)
    assert sorted([*train.rows, *held_out.rows]) == list(range(1797))
    digits = load_digits()
    for cache in (train, held_out):
        assert (cache.labels == digits.target[cache.rows]).all()
        exact = digits.images[cache.rows] * 255 / 16
        assert np.abs(cache.gather(np.arange(len(cache)), None)[:, 0] - exact).max() < 1
    again = load_splits(config(validation_share=0.1))[1]
    other = load_splits(config(validation_share=0.1, seed=1))[1]
    assert (again.rows == held_out.rows).all()
    assert len({*other.rows, *held_out.rows}) > 300
    assert train.fingerprint != held_out.fingerprint


def test_split_is_held_out(config, folder):
    options = {"dataset_name": None, "train_data_dir": str(folder), "class_conditional": True}
    train, held_out = load_splits(config(**options, validation_split="test"))
    assert (len(train), len(held_out)) == (100, 50)
    assert load_splits(config(**options | {"eval_steps": None}))[1] is None


@pytest.mark.parametrize("name", ["flow", "epsilon", "edm"])
def test_loss_of_a_network_that_knows_nothing(name, config):
    """It is the mean square of the target, in all and by level."""
    objective = RECIPES[name]
    _, held_out = load_splits(config(validation_share=0.1))
    options = config(validation_share=0.1, train_batch_size=100)
    task = DiffusionTask(objective, PixelSpace(), NoConditioning(), held_out)
    loss = ValidationLoss(task, {"image": held_out}, options, Accelerator(cpu=True))
    net = Zero()
    values = loss({"unet": net}, 1)
    x0 = PixelSpace().from_cache(held_out.as_tensor()).square().mean().item()
    g = torch.Generator().manual_seed(0)
    t, u = objective.draw_times(200_000, g)
    level = objective.path.level(t)
    a, b = objective.coefficients(level)
    weighted = objective.weights(level) * (a**2 * x0 + b**2)
    assert values["eval_loss"] == pytest.approx(weighted.mean().item(), rel=0.02)
    for q in range(4):
        expected = weighted[(u * 4).long() == q].mean().item()
        assert values[f"eval_loss_q{q + 1}"] == pytest.approx(expected, rel=0.05)

    torch.rand(7)
    assert loss({"unet": Zero()}, 1) == values  # the same noise each time, whatever else was drawn
    times = torch.cat([t for _, t, _ in net.seen])
    assert len(times) == 1024
    first = net.seen[0][1]
    assert len(first.unique()) > 90  # of a batch, spread evenly


def test_loss_sees_labels(config):
    _, held_out = load_splits(config(validation_share=0.1))
    net = Zero()
    conditioning = LabelConditioning(10, 0.2)
    options = config(validation_share=0.1, train_batch_size=64)
    task = DiffusionTask(RECIPES["flow"], PixelSpace(), conditioning, held_out)
    ValidationLoss(task, {"image": held_out}, options, Accelerator(cpu=True))({"unet": net}, 1)
    labels = torch.cat([condition["class_labels"] for _, _, condition in net.seen])
    rows = np.linspace(0, 179, 1024).round().astype(int)
    kept = labels != 10
    assert 0.1 < (~kept).double().mean() < 0.3
    assert (labels[kept] == torch.from_numpy(held_out.labels[rows])[kept]).all()


def test_loss_sees_the_captions_of_its_images(config):
    _, held_out = load_splits(config(validation_share=0.1))
    captions = Captions([f"number {i}" for i in range(180)], np.arange(181))
    conditioning = CaptionConditioning(captions, 0.0).use_tables(row=np.arange(181))
    net, options = Zero(), config(validation_share=0.1, train_batch_size=64)
    task = DiffusionTask(RECIPES["flow"], PixelSpace(), conditioning, held_out)
    ValidationLoss(task, {"image": held_out}, options, Accelerator(cpu=True))({"unet": net}, 1)
    rows = torch.cat([condition["row"] for _, _, condition in net.seen])
    assert rows.tolist() == np.linspace(0, 179, 1024).round().astype(int).tolist()


class Given:
    """A validation whose values are given."""

    def __init__(self, name: str, lower_is_better: bool, values: list[float], patience: int | None) -> None:
        results = iter([[Result(name, name, value, None, lower_is_better)] for value in values])
        config = SimpleNamespace(output_dir="run", eval_steps=1, patience=patience)
        self.validation = Validation(config, None, lambda networks: next(results))
        self.best, self.stops = [], []
        for step in range(1, len(values) + 1):
            if self.validation.evaluate(None, step)[1]:
                self.best.append(step)
            self.stops.append(self.validation.stop)


def test_best_and_patience():
    nan = math.nan
    given = Given("fd", True, [3, 2, 2, nan, 1, 5, 4, 3], 3)
    assert given.best == [1, 2, 5]
    assert [stop is not None for stop in given.stops] == [False] * 7 + [True]
    assert given.stops[-1] == "eval_fd is no better than at step 5"
    assert Given("accuracy", False, [0.1, 0.5, 0.4, 0.6], None).best == [1, 2, 4]
    assert Given("fd", True, [nan, 7, math.inf], None).best == [2]


def test_due():
    validation = Validation(SimpleNamespace(output_dir="run", eval_steps=4, patience=None), None, None)
    assert [step for step in range(1, 11) if validation.due(step, 10)] == [4, 8, 10]


def test_training_is_not_disturbed(train, short, folder, tmp_path):
    """Held-out images of another split are watched, and the steps are those of a run that doesn't watch."""
    options = {"dataset_name": None, "train_data_dir": folder, "max_train_steps": 4, "checkpointing_steps": 2}
    options |= {"train_batch_size": 32}
    plain = trained(train(tmp_path / "plain", **options))
    run = train(tmp_path / "watched", **options, validation_split="test", eval_steps=2)
    watched = trained(run)
    same = plain.keys() - {"run.json"}
    assert {name: watched[name] for name in same} == {name: plain[name] for name in same}
    assert {Path(name).parts[0] for name in watched.keys() - plain.keys()} <= {
        "best",
        "checkpoint-2",
        "checkpoint-4",
        "evaluation.png",
    }
    assert [line["step"] for line in evaluations(run)] == [2, 4]
    assert all(math.isfinite(line["loss"]) for line in read_metrics(run))


def test_best_is_kept(train, short, quick_classifier, tmp_path):
    """The averaged weights of its step, as a pipeline that loads, whatever becomes of checkpoints."""
    options = WATCH | {"eval_metrics": ["fd", "accuracy"], "eval_num_images": 40, "learning_rate": 1e-2}
    run = train(tmp_path / "run", **options, max_train_steps=4, checkpointing_steps=1)
    lines = evaluations(run)
    assert lines[0].keys() == {
        "step",
        "eval_fd",
        "eval_accuracy",
        "eval_loss",
        *(f"eval_loss_q{q}" for q in range(1, 5)),
    }
    best = min(lines, key=lambda line: line["eval_fd"])
    assert note(run) == {"metric": "eval_fd", "value": best["eval_fd"], **best}
    weights = load_file(run / "best/unet/diffusion_pytorch_model.safetensors")
    expected = load_file(run / f"checkpoint-{best['step']}/unet_ema/diffusion_pytorch_model.safetensors")
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert PixelDiffusionPipeline.from_pretrained(run / "best").num_classes == 10
    with Image.open(run / "evaluation.png") as photo:
        assert photo.height > photo.width  # three panels

    limited = train(
        tmp_path / "limited", **options, max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=1
    )
    assert [path.name for path in limited.glob("checkpoint-*")] == ["checkpoint-4"]
    kept = {name: digest for name, digest in trained(run).items() if name.startswith("best")}
    assert {name: digest for name, digest in trained(limited).items() if name.startswith("best")} == kept


def test_patience_ends_training(train, short, tmp_path, capsys):
    """Of a network that doesn't change, the first evaluation stays the best."""
    run = train(tmp_path / "run", **FROZEN, patience=3, checkpointing_steps=100)
    assert [line["step"] for line in evaluations(run)] == [1, 2, 3, 4]
    assert len({line["eval_loss"] for line in evaluations(run)}) == 1
    assert (run / "checkpoint-4").is_dir()
    said = capsys.readouterr().out
    assert "stopped at step 4 (eval_loss is no better than at step 1)" in said
    assert f"best       {run / 'best'} (step 1: eval_loss" in said


def test_resume_is_exact(train, short, tmp_path):
    """Averages, best and patience included."""
    options = WATCH | {"checkpointing_steps": 1, "learning_rate": 0.1, "use_ema": False, "patience": 6}
    whole = train(tmp_path / "whole", **options, max_train_steps=7)
    parts = train(tmp_path / "parts", **options, max_train_steps=4)
    train(parts, **options, max_train_steps=7, resume_from_checkpoint="latest")
    (parts / "samples" / "step-000004.png").unlink()  # of its end
    assert trained(parts) == trained(whole)
    assert evaluations(parts) == evaluations(whole)


def test_patience_is_resumed(train, short, tmp_path):
    options = FROZEN | {"patience": 3, "checkpointing_steps": 1}
    whole = train(tmp_path / "whole", **options)
    for name, kept, last in (("with best", ("checkpoint-2", "best"), 4), ("alone", ("checkpoint-2",), 6)):
        resumed = tmp_path / name
        for part in kept:
            shutil.copytree(whole / part, resumed / part)
        train(resumed, **options, resume_from_checkpoint="latest")
        assert [line["step"] for line in evaluations(resumed)][-1] == last
        assert note(resumed)["step"] == (1 if last == 4 else 3)


def test_resume_with_and_without(train, short, tmp_path):
    """Evaluation may begin, and end, when a run goes on."""
    options = {"lr_scheduler": "constant", "lr_warmup_steps": 0, "checkpointing_steps": 1}
    train(tmp_path / "run", **options, max_train_steps=1)
    watch = {"eval_steps": 1, "eval_metrics": ["kid"], "eval_num_images": 20}
    with patch.object(classifier, "STEPS", 2):
        train(tmp_path / "run", **options, **watch, max_train_steps=2, resume_from_checkpoint="latest")
    assert note(tmp_path / "run")["step"] == 2
    train(tmp_path / "run", **options, max_train_steps=3, resume_from_checkpoint="latest")
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3]


def test_a_stop_before_the_first_evaluation(train, tmp_path, capsys):
    """It ends as any other: with a model, and a line that says that nothing was evaluated."""
    options = WATCH | {"eval_steps": 500, "max_train_steps": 1000, "max_train_minutes": 1e-6, "train_batch_size": 8}
    run = train(tmp_path / "run", **options)
    assert (run / "model_index.json").is_file()
    assert not (run / "evaluation.png").exists()
    assert "best       none: no evaluation was made; --eval_steps is 500" in capsys.readouterr().out


def test_best_of_a_later_step_is_not_taken_for_an_earlier_checkpoints(train, tmp_path, capsys):
    options = WATCH | {"max_train_steps": 4, "checkpointing_steps": 2, "learning_rate": 1e-3}
    run = train(tmp_path / "run", **options)
    note = run / "best/validation.json"
    kept = json.loads(note.read_text())
    note.write_text(json.dumps(kept | {"step": 4}))
    train(run, **options | {"max_train_steps": 3}, resume_from_checkpoint="checkpoint-2")
    assert (
        f"{run / 'best'} is of step 4, after checkpoint-2; the next evaluation replaces it" in capsys.readouterr().out
    )
    assert json.loads(note.read_text())["step"] == 3


@pytest.mark.slow
def test_two_processes(train, launch, quick_classifier, tmp_path):
    """They share the work, find what one process finds to the last digit, and stop together."""
    options = FROZEN | {"patience": 1, "eval_metrics": ["fd"], "eval_num_images": 50, "checkpointing_steps": 100}
    one = train(tmp_path / "one", **options)
    statuses, printed = launch(tmp_path / "two", 2, **options)
    assert statuses == [0, 0], printed
    assert evaluations(tmp_path / "two") == evaluations(one)
    assert [line["step"] for line in evaluations(one)] == [1, 2]
    assert note(tmp_path / "two") == note(one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_steps": 2}, "--eval_steps: needs --validation_share"),
        ({"validation_share": 0.1}, "--validation_share: needs --eval_steps"),
        ({"patience": 3}, "--patience: needs --eval_steps"),
        ({"eval_metrics": ["fd"]}, "--eval_metrics: needs --eval_steps"),
        ({"eval_steps": 2, "validation_share": 0.1, "validation_split": "test"}, "give one of the two"),
        ({"eval_steps": 2, "validation_share": 0.0001}, "of 1797 images that is 0"),
        ({"eval_steps": 2, "validation_split": "train"}, "--validation_split train: is trained on"),
        ({"eval_steps": 2, "validation_split": "test"}, "digits has train"),
        ({"eval_steps": 2, "eval_metrics": ["fid"]}, "--eval_metrics: invalid choice: 'fid'"),
        ({"eval_steps": 2, "eval_metrics": ["kid"], "eval_num_images": 5}, "--eval_metrics kid: needs 20 images"),
        ({"eval_steps": 2, "eval_metrics": ["fd"], "eval_features": "/nowhere"}, "--eval_features /nowhere"),
    ],
)
def test_refusals(options, message, train, tmp_path):
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", **options)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_refusal_of_other_classes(train, tmp_path):
    parts = {
        name: datasets.Dataset.from_dict({"image": [Image.new("L", (8, 8), n) for n in range(4)], "label": labels})
        for name, labels in {"train": [*"abca"], "test": [*"aabb"]}.items()
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="its class_names are"):
        train(tmp_path / "run", dataset_name=tmp_path / "saved", validation_split="test", eval_steps=1)


@pytest.mark.parametrize(("count", "processes"), [(5, 2), (4, 2), (1, 3), (7, 3)])
def test_every_process_computes_as_many_batches(count: int, processes: int) -> None:
    """Else a network that is spread over them would wait for ever."""
    ranks = [SimpleNamespace(process_index=rank, num_processes=processes) for rank in range(processes)]
    taken = [turns(count, rank) for rank in ranks]
    assert len({len(numbers) for numbers in taken}) == 1
    assert {number for numbers in taken for number in numbers} == set(range(count))

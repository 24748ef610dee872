"""The learning rate is a function of optimizer steps, however many passes and processes make one."""

import math

import pytest

from snowmelt.tracking import read_metrics

PEAK, WARMUP, STEPS = 2e-3, 3, 8
OPTIONS = {"learning_rate": PEAK, "lr_warmup_steps": WARMUP, "lr_scheduler": "cosine", "train_batch_size": 8}


def cosine(step: int) -> float:
    """Rate of the optimizer step that follows `step` others."""
    if step < WARMUP:
        return PEAK * step / WARMUP
    return PEAK * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def rates(folder) -> list[float]:
    return [line["lr"] for line in read_metrics(folder)]


@pytest.mark.parametrize(("accumulation", "processes"), [(1, 1), (4, 1), (2, 2)])
def test_cosine_ends_at_zero(accumulation, processes, train, launch, tmp_path):
    run, options = tmp_path / "run", OPTIONS | {"gradient_accumulation_steps": accumulation, "max_train_steps": STEPS}
    if processes == 1:
        train(run, **options)
    else:
        assert launch(run, processes, **options)[0] == [0] * processes
    assert rates(run) == pytest.approx([cosine(step) for step in range(STEPS)])


@pytest.mark.parametrize("accumulation", [1, 4])
def test_epochs_count_images(accumulation, train, tmp_path):
    """Two epochs of 1,797 images are 3,594 images, whatever a step holds, rounded up to whole steps."""
    batch = 512 // accumulation
    options = OPTIONS | {"train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    run = train(tmp_path / "run", **options, max_train_steps=None, num_epochs=2)
    assert math.ceil(2 * 1797 / 512) == STEPS
    assert rates(run) == pytest.approx([cosine(step) for step in range(STEPS)])


def test_warmup_then_constant(train, tmp_path):
    options = OPTIONS | {"lr_scheduler": "constant_with_warmup", "gradient_accumulation_steps": 2}
    run = train(tmp_path / "run", **options, max_train_steps=5)
    assert rates(run) == pytest.approx([0, PEAK / 3, PEAK * 2 / 3, PEAK, PEAK])


def test_the_optimizer_uses_it(train, tmp_path):
    """A step at rate 0, the first of the warm-up, changes no weight; Adam's second moves by its rate at most."""
    from safetensors.torch import load_file

    options = OPTIONS | {"max_train_steps": 2, "checkpointing_steps": 1, "use_ema": False, "adam_weight_decay": 0}
    still = train(tmp_path / "still", **options | {"learning_rate": 0})
    run = train(tmp_path / "run", **options)
    initial, first, second = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (still, run / "checkpoint-1", run / "checkpoint-2")
    )
    assert all((first[name] == initial[name]).all() for name in initial)
    change = max((second[name] - first[name]).abs().max().item() for name in initial)
    assert PEAK / WARMUP * 0.5 < change < PEAK / WARMUP * 1.5

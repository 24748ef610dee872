"""The folder of a run: never another's, laid out as diffusers' script lays it out."""

import json

import pytest
from diffusers import DDPMPipeline, UNet2DModel

from snowmelt.errors import UserError
from snowmelt.run_files import locked
from tests.conftest import trained


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def foreign(tmp_path):
    """A folder with files of the user's."""
    folder = tmp_path / "run"
    for name in (
        *("notes.txt", "pictures/a.png", "checkpoints/best", "united/x"),
        *("unet_notes.txt", "alignment_notes.md", "checkpoint-manual-backup/unet/config.json", "samples/photo.png"),
        *("checkpoint-7/unet/diffusion_pytorch_model.safetensors", "unet/notes.txt", "logs/mine.txt", "skipped.text"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return folder


def test_layout(train, tmp_path):
    """What diffusers' script leaves, loadable by diffusers alone, and what ours adds."""
    run = train(tmp_path / "run", class_conditional=False, objective="epsilon", checkpointing_steps=1)
    assert {p.name for p in run.iterdir()} == {
        *("model_index.json", "unet", "scheduler", "checkpoint-1", "checkpoint-2"),
        *("config.yaml", "run.json", "metrics.jsonl", "heartbeat.json", "samples", "loss.png", ".lock"),
    }
    for folder in (run / "unet", run / "checkpoint-1" / "unet", run / "checkpoint-2" / "unet"):
        assert UNet2DModel.from_pretrained(folder).config.sample_size == 8
    assert DDPMPipeline.from_pretrained(run)(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
    assert json.loads((run / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"


def test_foreign_folder_is_refused(foreign, train):
    before = contents(foreign)
    with pytest.raises(UserError, match="is not empty; add --overwrite_output_dir, or --resume_from_checkpoint latest"):
        train(foreign)
    assert contents(foreign) == before


def test_overwriting_spares_what_is_not_ours(foreign, train, tmp_path):
    before = contents(foreign)
    train(foreign, overwrite_output_dir=True, max_train_steps=4, checkpointing_steps=1, ema_widths=[0.1, 0.2])
    train(foreign, overwrite_output_dir=True, max_train_steps=3)
    after = contents(foreign)
    assert {k: after.pop(k) for k in before} == before
    for name in before:
        (foreign / name).unlink()
    fresh = train(tmp_path / "fresh", max_train_steps=3)
    assert after.keys() == contents(fresh).keys()
    assert trained(foreign) == trained(fresh)


def test_refusals_leave_the_folder(train, tmp_path):
    run = train(tmp_path / "run")
    before = contents(run)
    for options, message in (
        ({"resume_from_checkpoint": "checkpoint-9"}, "checkpoint-9: no complete .*; there are: checkpoint-2"),
        ({"resume_from_checkpoint": "latest", "overwrite_output_dir": True}, "would delete what"),
        ({"resume_from_checkpoint": "latest", "learning_rate": 1.0}, "--learning_rate 0.0001"),
        ({"overwrite_output_dir": True, "label_column": "labels"}, "label"),
        ({"overwrite_output_dir": True, "resolution": 9}, "--resolution 9: this network divides it by 2"),
        ({"overwrite_output_dir": True, "ema_widths": [0.5]}, "--ema_widths: must be more than 0 and at most 0.288"),
        ({"overwrite_output_dir": True, "objective": "flaw"}, "--objective flaw: unknown; known: "),
        ({"overwrite_output_dir": True, "push_to_hub": True, "hub_model_id": "a//b"}, "can't publish to a//b: "),
    ):
        with pytest.raises(UserError, match=message) as caught:
            train(run, **options)
        assert "\n" not in str(caught.value)
        assert contents(run) == before, options


def test_a_file_is_no_folder(train, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="--output_dir .* is a file; name a folder"):
        train(tmp_path / "run")


def test_latest_of_nothing_is_a_new_run(train, tmp_path):
    """So that a job that restarts itself can always say it."""
    fresh = train(tmp_path / "fresh", resume_from_checkpoint="latest")
    assert trained(fresh) == trained(train(tmp_path / "plain"))


def test_nothing_left_to_do(train, tmp_path):
    """Resuming a run that has ended changes nothing."""
    run = train(tmp_path / "run")
    before = {**trained(run), "metrics": (run / "metrics.jsonl").read_text()}
    train(run, resume_from_checkpoint="latest")
    assert {**trained(run), "metrics": (run / "metrics.jsonl").read_text()} == before


def test_images_left_out_are_listed(train, tmp_path):
    from PIL import Image

    photos = tmp_path / "pictures"
    photos.mkdir()
    Image.new("L", (8, 8), 9).save(photos / "good.png")
    (photos / "bad.png").write_bytes(b"no picture")
    options = {"dataset_name": None, "train_data_dir": photos, "class_conditional": False}
    for folder in ("first", "second"):  # the second finds the images decoded
        run = train(tmp_path / folder, **options, skip_bad_images=True)
        assert (run / "skipped.txt").read_text().splitlines() == [str(photos / "bad.png")]


@pytest.mark.parametrize(
    "inside", ["train_data_dir", "dataset_name", "config", "cache_dir", "model_config_name_or_path"]
)
def test_overwriting_refuses_a_folder_that_holds_what_the_run_reads(train, tmp_path, inside):
    from PIL import Image

    run = tmp_path / "run"
    photos = run / "samples" if inside in ("train_data_dir", "dataset_name") else tmp_path / "pictures"
    photos.mkdir(parents=True)
    Image.new("L", (8, 8), 9).save(photos / "step-000001.png")
    (run / "it.yaml").parent.mkdir(exist_ok=True)
    (run / "it.yaml").write_text("seed: 3\n")
    given = {"config": run / "it.yaml", "cache_dir": run, "model_config_name_or_path": run / "it.yaml"}
    options = {"train_data_dir": photos, "dataset_name": None} if inside != "dataset_name" else {inside: photos}
    options |= {inside: given[inside]} if inside in given else {}
    before = contents(run)
    with pytest.raises(UserError, match=f"--overwrite_output_dir: --{inside} .* is inside --output_dir"):
        train(run, class_conditional=False, overwrite_output_dir=True, **options)
    assert contents(run) == before


def test_latest_refuses_what_another_program_left(train, tmp_path):
    """diffusers' script leaves checkpoints of these names, which hold other things."""
    run = tmp_path / "run"
    for name in ("checkpoint-4/unet/config.json", "unet/config.json"):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_text("{}")
    before = contents(run)
    with pytest.raises(UserError, match="--resume_from_checkpoint latest: .* holds checkpoint-4, but no checkpoint of"):
        train(run, resume_from_checkpoint="latest")
    assert contents(run) == before


def test_latest_starts_anew_where_a_run_was_stopped_before_its_first_checkpoint(train, tmp_path):
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    assert (train(run, resume_from_checkpoint="latest") / "checkpoint-2").is_dir()


def test_a_folder_takes_one_run_at_a_time(fork, tmp_path):
    run = tmp_path / "run"
    first = fork(run, max_train_steps=100000, logging_steps=1)[0]
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text()):
        first.join(0.1)
        assert first.is_alive()
    before = metrics.read_text()
    said = "--output_dir .*: another run is writing there; wait, or name another"
    with pytest.raises(UserError, match=said), locked(run):
        pass
    assert metrics.read_text().startswith(before)
    first.kill()
    first.join()
    with locked(run):  # released by death
        pass


def test_nothing_left_to_train_is_said(train, tmp_path, capsys):
    run = train(tmp_path / "run")
    train(run, resume_from_checkpoint="latest")
    more = "give a larger --max_train_steps, --num_epochs or --max_train_minutes"
    assert f"nothing left to train: checkpoint-2 is at step 2; {more}" in capsys.readouterr().out

"""A published folder loads where neither `pipelines` nor `snowmelt` can be imported, and stays what it is."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from pipelines import PixelDiffusionPipeline
from pipelines.bundle import TEXTS
from pipelines.sde import SubVpSde
from snowmelt.loading import load_pipeline
from snowmelt.publishing.export import export

STRANGER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pipelines", "snowmelt"):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Refuse())
import numpy as np, torch
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
def load(folder, **options):
    return DiffusionPipeline.from_pretrained(folder, **options)
def sample(pipeline, eta=0.5):
    output = pipeline(class_labels=1, num_inference_steps=2, eta=eta, guidance_scale=2, output_type="np",
                      generator=torch.Generator().manual_seed(3), return_trajectory=True)
    assert len(output.trajectory.timesteps) == 2
    return output.images
"""


def stranger(code: str, *folders: Path) -> subprocess.CompletedProcess:
    """Run code in a process that has diffusers alone, with a fresh cache of modules; `folders` are its arguments."""
    environment = os.environ | {"HF_HOME": str(folders[0].parent / "stranger"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", STRANGER + code, *map(str, folders)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, cwd=folders[0].parent)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=3,
    )
    pipeline = PixelDiffusionPipeline(unet, DDIMScheduler(), id2label={0: "cat", 1: "dog"})
    pipeline.save_pretrained(tmp_path / "published")
    pipeline.complete(tmp_path / "published")
    return tmp_path / "published"


def ours(folder: Path, eta: float = 0.5, kind: type = PixelDiffusionPipeline) -> np.ndarray:
    import torch

    pipeline = kind.from_pretrained(folder)
    return pipeline(
        class_labels=1,
        num_inference_steps=2,
        eta=eta,
        guidance_scale=2,
        output_type="np",
        generator=torch.Generator().manual_seed(3),
    ).images


def test_same_images_without_our_package(published):
    code = """
pipeline = load(sys.argv[1], trust_remote_code=True)
np.save(sys.argv[2], sample(pipeline))
pipeline.save_pretrained(sys.argv[3])
"""
    done = stranger(code, published, published.parent / "images.npy", published.parent / "again")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(published.parent / "images.npy"), ours(published))
    again = published.parent / "again"
    for name in ("pipeline.py", "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        assert (again / name).read_text() == (published / name).read_text(), name
        assert str(published.parent) not in (again / name).read_text()
    assert np.array_equal(ours(again), ours(published))


@pytest.mark.slow
def test_a_trained_score_based_model(train, tmp_path):
    """A run by the sub-VP SDE, exported, and sampled where neither package can be imported."""
    run = train(tmp_path / "run", objective="subvp")
    (tmp_path / "published").mkdir()
    export(run, tmp_path / "published", "ada/digits", strip=False)
    code = """
pipeline = load(sys.argv[1], trust_remote_code=True)
def draw(**options):
    return pipeline(class_labels=1, output_type="np", generator=torch.Generator().manual_seed(3), **options).images
images = [draw(num_inference_steps=3, num_corrector_steps=1), draw(predictor="probability_flow", tolerance=0.1)]
np.save(sys.argv[2], np.concatenate(images))
"""
    done = stranger(code, tmp_path / "published", tmp_path / "images.npy")
    assert done.returncode == 0, done.stderr
    pipeline = load_pipeline(str(run))
    assert type(pipeline.sde) is SubVpSde
    options = {"class_labels": 1, "num_inference_steps": 3, "num_corrector_steps": 1, "output_type": "np"}
    images = pipeline(generator=torch.Generator().manual_seed(3), **options).images
    theirs = np.load(tmp_path / "images.npy")
    assert np.array_equal(theirs[:1], images)
    assert theirs[1].std() > 0


def test_refused_without_trust(published):
    done = stranger("load(sys.argv[1])", published)
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr


@pytest.mark.slow
def test_two_with_different_code_do_not_disturb_each_other(published):
    other = published.parent / "other"
    subprocess.run(["cp", "-r", published, other], check=True)
    source = (other / "pipeline.py").read_text()
    # Another version of what the module defines beside the pipeline, under the same names and others.
    changed = source.replace("SamplingOutput", "Result").replace("def conditioned(", "def conditioned(extra, ")
    changed = changed.replace("conditioned(predict, conditions)", "conditioned(0, predict, conditions)")
    changed = changed.replace("x0 / 2 + 0.5", "x0 * 0 + 0.25")
    assert changed != source
    (other / "pipeline.py").write_text(changed)
    code = """
first = load(sys.argv[1], trust_remote_code=True)
alone = sample(first)
second = load(sys.argv[2], trust_remote_code=True)
assert (sample(second) == 0.25).all()
assert (sample(first) == alone).all()
first.save_pretrained(sys.argv[3])
second.save_pretrained(sys.argv[4])
"""
    folders = [published.parent / name for name in ("first", "second")]
    done = stranger(code, published, other, *folders)
    assert done.returncode == 0, done.stderr
    assert (folders[0] / "pipeline.py").read_text() == source
    assert (folders[1] / "pipeline.py").read_text() == changed


def test_source_has_no_imports_of_siblings():
    source = PixelDiffusionPipeline.source()
    assert "from pipelines" not in source
    assert "import snowmelt" not in source
    compile(source, "pipeline.py", "exec")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import pipelines.seeding\n", "'import pipelines.seeding' can't be bundled; write 'from pipelines.module"),
        ("from pipelines import image_generators\n", "'from pipelines import image_generators' can't be bundled"),
        ("from pipelines.seeding import image_generators as it\n", "can't be bundled"),
        ("def late():\n    from pipelines.seeding import image_generators\n", "can't be bundled"),
        ("def sample():\n    pass\n", "sample is defined in pipelines.sampling too"),
    ],
)
def test_what_cannot_be_one_file_is_refused(text, message, monkeypatch):
    monkeypatch.setitem(TEXTS, "pipelines.pixel", TEXTS["pipelines.pixel"] + text)
    with pytest.raises(ValueError, match=message):
        PixelDiffusionPipeline.source()


def test_imports_are_followed():
    """A module comes once, after all that it needs; what isn't needed doesn't come."""
    source = PixelDiffusionPipeline.source()
    order = [source.index(f"\n{line}") for line in ("class NoiseLevel", "def conditioned", "def sample(", "class UNet")]
    assert order == sorted(order)
    assert source.count("class NoiseLevel") == 1
    assert "class TextToImagePipeline" not in source

"""The page's API, called as `gradio_client` and as hostile clients call it."""

import time
import zipfile
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from snowmelt.app.model import Model, Settings

FEW = {"num_images": 2, "num_inference_steps": 3}
pytestmark = pytest.mark.xdist_group("browser")  # the page is served once


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gradio_client import Client

    downloads = str(tmp_path_factory.mktemp("downloads"))
    return Client(url, verbose=False, download_files=downloads, httpx_kwargs={"timeout": 120})


def expected(model: Model, **settings: Any) -> list[np.ndarray]:
    settings = {"height": 16, "width": 16} | FEW | settings
    with model.lock:
        return [np.asarray(i) for i in model.sample(Settings(**settings), lambda _: None).images]


def opened(gallery: list[dict[str, Any]]) -> list[np.ndarray]:
    return [np.asarray(PIL.Image.open(one["image"])) for one in gallery]


def painted(folder: Path, image: np.ndarray, box: tuple[int, int, int, int]) -> dict[str, Any]:
    """What an editor sends: an image, and a layer that is painted in a box."""
    from gradio_client import handle_file

    PIL.Image.fromarray(image).save(folder / "image.png")
    layer = PIL.Image.new("RGBA", (image.shape[1], image.shape[0]))
    PIL.ImageDraw.Draw(layer).rectangle(box, fill="#ff2d78")
    layer.save(folder / "layer.png")
    return {
        "background": handle_file(folder / "image.png"),
        "layers": [handle_file(folder / "layer.png")],
        "composite": None,
    }


def test_sample(client: Any, model: Model) -> None:
    """Images are the pipeline's own; previews come before them; the zip holds the same, as PNG."""
    job = client.submit(**FEW, class_label="bee", seed=3, guidance_scale=2, api_name="/sample")
    gallery, line, path = job.result()
    images = expected(model, class_label="bee", seed=3, guidance_scale=2)
    assert np.array_equal(opened(gallery), images)
    assert "2 images in" in line
    assert "step 1 of 3" in job.outputs()[0][1]
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["000000.png", "000001.png", "settings.txt"]
        assert np.array_equal(np.asarray(PIL.Image.open(archive.open("000001.png"))), images[1])
        assert b"class_label: bee\n" in archive.read("settings.txt")


def test_edit_keeps_what_is_not_painted(client: Any, model: Model, tmp_path: Path) -> None:
    (image,) = expected(model, num_images=1)
    editor = painted(tmp_path, image, (4, 4, 7, 7))
    for made in opened(client.predict(**FEW, image=editor, strength=1, api_name="/edit")[0]):
        changed = (made != image).any(-1)
        assert changed[4:8, 4:8].mean() > 0.5  # of these noisy images some pixels are black before and after
        changed[4:8, 4:8] = False
        assert not changed.any()
    nothing = painted(tmp_path, image, (20, 20, 21, 21))  # beside the image
    varied = opened(client.predict(**FEW, image=nothing, strength=0.7, api_name="/edit")[0])
    assert (varied[0] != image).mean() > 0.3
    assert np.array_equal(opened(client.predict(**FEW, image=nothing, strength=0, api_name="/edit")[0])[0], image)


def test_interpolation_ends_at_the_seeds(client: Any, model: Model) -> None:
    gallery = client.predict(
        num_images=3, num_inference_steps=3, class_label="cat", seed=5, other_seed=6, api_name="/interpolate"
    )[0]
    images = opened(gallery)
    assert [one["caption"] for one in gallery] == ["0%", "50%", "100%"]
    for image, seed in ((images[0], 5), (images[2], 6)):
        (end,) = expected(model, num_images=1, class_label="cat", seed=seed)
        assert abs(image.astype(int) - end).max() <= 1
    assert (images[1] != images[0]).mean() > 0.5


def test_strip_and_comparison(client: Any, model: Model) -> None:
    """A strip ends in the image; of a comparison each is what its sampler makes by itself."""
    strip = opened(client.predict(**FEW, api_name="/strip")[0])[0]
    assert strip.shape == (4 * 16, 3 * 16, 3)
    last = expected(model)[0]
    assert abs(strip[16:32, -16:].astype(int) - last).max() <= 1  # x0 of the last step is where Euler goes
    gallery = client.predict(schedulers=["own", "unipc"], step_counts="1 2", api_name="/compare")[0]
    assert [one["caption"] for one in gallery] == ["own, 1 step", "own, 2 steps", "unipc, 1 step", "unipc, 2 steps"]
    (image,) = expected(model, num_images=1, num_inference_steps=2, scheduler="unipc")
    assert np.array_equal(opened(gallery)[3], image)


@pytest.mark.parametrize(
    ("api_name", "arguments", "said"),
    [
        ("sample", {"num_images": 9}, "num_images: must be a whole number from 1 to 8, is 9"),
        ("sample", {"num_images": 1.5}, "num_images: must be a whole number from 1 to 8, is 1.5"),
        ("sample", {"num_images": "abc"}, "num_images: must be a whole number from 1 to 8, is abc"),
        ("sample", {"num_inference_steps": 201}, "num_inference_steps: must be a whole number from 1 to 200"),
        ("sample", {"width": 65}, "width: must be a whole number from 1 to 64"),
        ("sample", {"height": 17}, "height: 17 is not a multiple of 2"),
        ("sample", {"seed": -1}, "seed: must be a whole number from 0"),
        ("sample", {"eta": 1}, "eta: FlowMatchEulerDiscreteScheduler takes none"),
        ("sample", {"class_label": "dog"}, "dog is not in the list of choices"),
        ("sample", {"scheduler": "ddim"}, "ddim is not in the list of choices"),
        ("edit", {"image": None}, "image: needed; give one"),
        ("interpolate", {}, "class_label: choose a class"),
        ("interpolate", {"class_label": "ant", "num_images": 1}, "take 2 or more"),
        ("interpolate", {"class_label": "ant", "other_seed": -1}, "seed: must be a whole number from 0"),
        ("compare", {"step_counts": "1, x"}, "step_counts: must be numbers apart by commas"),
        ("compare", {"step_counts": "1,2,3,4"}, "take 1 to 6"),
        ("compare", {"schedulers": []}, "take 1 to 6"),
    ],
)
def test_refused(client: Any, api_name: str, arguments: dict[str, Any], said: str) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as error:
        client.predict(**FEW | arguments, api_name=f"/{api_name}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_path_of_a_user_is_opened(client: Any, url: str, tmp_path: Path, folder: Path) -> None:
    """Neither as an image nor as a file to fetch; what is no image is refused in a line."""
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    secret = tmp_path / "secret.png"
    PIL.Image.new("RGB", (16, 16)).save(secret)
    editor = {"background": {"path": str(secret), "meta": {"_type": "gradio.FileData"}}, "layers": []}
    settings = ["", "", "", 1, 0, 1, "own", 0, 1, 16, 16]
    call = httpx2.post(f"{url}gradio_api/call/edit", json={"data": [*settings, editor, 0.5]}, timeout=120)
    answer = httpx2.get(f"{url}gradio_api/call/edit/{call.json()['event_id']}", timeout=120)
    assert "event: error" in answer.text
    for path in (secret, folder / "model_index.json"):
        assert httpx2.get(f"{url}gradio_api/file={path}", timeout=120).status_code in (403, 404)
    (tmp_path / "text.png").write_text("no image")
    editor = {"background": handle_file(tmp_path / "text.png"), "layers": [], "composite": None}
    with pytest.raises(AppError, match="image: can't be read; give a PNG or JPEG file"):
        client.predict(**FEW, image=editor, api_name="/edit")
    large = httpx2.post(f"{url}gradio_api/upload", files={"files": ("a.png", b"0" * 9_000_000)}, timeout=120)
    assert large.status_code == 413


def test_a_client_that_leaves_holds_up_nobody(client: Any, model: Model) -> None:
    """A job that is cancelled ends at its next step."""
    job = client.submit(num_images=8, num_inference_steps=200, api_name="/sample")
    deadline = time.monotonic() + 120
    while not job.outputs() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.cancel()
    client.predict(num_images=1, num_inference_steps=1, api_name="/sample")
    assert len(job.outputs()) < 100

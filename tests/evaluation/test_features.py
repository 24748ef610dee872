"""Extractors: what they see is resized as clean-fid does it, and what they say is the model's own answer."""

import sys
import types
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, ViTForImageClassification

from snowmelt.errors import UserError
from snowmelt.evaluation import classifier
from snowmelt.evaluation.classifier import ClassifierFeatures
from snowmelt.evaluation.features import HubFeatures, as_rgb, make_features, resized

CPU = torch.device("cpu")


def photos(count: int, channels: int = 3, side: int = 32) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("side", "target"), [(64, 24), (16, 37), (300, 299), (31, 31)])
def test_resized_as_clean_fid(side: int, target: int) -> None:
    """Pillow's bicubic filter on channels of floats, clipped (Parmar et al. 2022)."""
    images = photos(2, 3, side)
    for ours, image in zip(resized(images, target), images, strict=True):
        for channel, plane in zip(ours, image.numpy(), strict=True):
            pillow = PIL.Image.fromarray(255 * plane).resize((target, target), PIL.Image.Resampling.BICUBIC)
            np.testing.assert_allclose(255 * channel.numpy(), np.asarray(pillow).clip(0, 255), atol=0.02)


def test_images_as_rgb() -> None:
    gray = photos(2, 1)
    assert torch.equal(as_rgb(gray), torch.cat([gray] * 3, 1))
    assert torch.equal(as_rgb(photos(2)), photos(2))
    transparent = photos(2, 4)
    transparent[0, 3], transparent[1, 3] = 0, 1
    assert torch.equal(as_rgb(transparent)[0], torch.ones(3, 32, 32))
    torch.testing.assert_close(as_rgb(transparent)[1], transparent[1, :3])


def answer(folder: Path, pixels: Tensor) -> Tensor:
    """What the model itself says of normalized pixels."""
    net = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if folder.name == "clip":
            return net.visual_projection(net.vision_model(pixel_values=pixels).pooler_output)
        if folder.name == "vit-without-pooler":
            net = ViTForImageClassification.from_pretrained(folder).eval()
            return net.vit(pixel_values=pixels).last_hidden_state[:, 0]
        return net(pixel_values=pixels).pooler_output.flatten(1)


@pytest.mark.parametrize("name", ["vit", "vit-without-pooler", "resnet", "clip"])
def test_models_of_transformers(vision_models: Path, name: str) -> None:
    extractor = HubFeatures(str(vision_models / name), 1, CPU)
    images = photos(3, 1, side=20)
    pixels = (resized(as_rgb(images), 32) - 0.5) / 0.25
    found = extractor(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, answer(vision_models / name, pixels))
    assert extractor.name.startswith(f"{name} (")  # without the path, which reports publish
    assert extractor.head is None
    assert extractor.fingerprint == HubFeatures(str(vision_models / name), 1, CPU).fingerprint


def test_fingerprints_tell_models_apart(vision_models: Path) -> None:
    names = ("vit", "resnet", "clip")
    assert len({HubFeatures(str(vision_models / name), 3, CPU).fingerprint for name in names}) == 3


def test_models_that_cannot_be_had(vision_models: Path, tmp_path: Path, digits, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for a while
    with pytest.raises(
        UserError, match=r"--features nobody/nothing: .*; without a network there are --features cla"
    ) as e:
        make_features("nobody/nothing", digits(), None, CPU)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="takes gray, RGB and RGBA; these images have 5 channels"):
        HubFeatures(str(vision_models / "vit"), 5, CPU)
    AutoModel.from_pretrained(vision_models / "vit").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="preprocessor_config.json"):
        HubFeatures(str(tmp_path), 3, CPU)


def test_weights_that_are_missing(vision_models: Path, tmp_path: Path) -> None:
    net = AutoModel.from_pretrained(vision_models / "vit")
    state = {k: v for k, v in net.state_dict().items() if "layernorm" not in k}
    net.save_pretrained(tmp_path, state_dict=state)
    (tmp_path / "preprocessor_config.json").write_text((vision_models / "vit" / "preprocessor_config.json").read_text())
    with pytest.raises(UserError, match="weights are missing from it, such as "):
        HubFeatures(str(tmp_path), 3, CPU)


class FakeInception(nn.Module):
    """torch-fidelity's network, but for what is inside."""

    INPUT_IMAGE_SIZE = 299

    def __init__(self, name: str, features: list[str]) -> None:
        super().__init__()
        assert features == ["2048"]
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 299, 299)
        return (x.float().mean((1, 2, 3))[:, None].expand(-1, 2048),)


def fake_inception(monkeypatch: pytest.MonkeyPatch, network: object) -> None:
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = network
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


def test_inception(monkeypatch: pytest.MonkeyPatch, digits) -> None:
    """It is shown 8 bits of 299 x 299 RGB; its logits are those without a bias."""
    fake_inception(monkeypatch, FakeInception)
    torch.manual_seed(0)
    extractor = make_features("inception", digits(), None, CPU)
    features = extractor(torch.full((2, 1, 8, 8), 0.2))
    assert torch.equal(features, torch.full((2, 2048), 51.0))
    torch.manual_seed(0)
    torch.testing.assert_close(extractor.head(features), features @ nn.Linear(2048, 1008).weight.T)
    assert extractor.accuracy is None


def test_inception_out_of_reach(monkeypatch: pytest.MonkeyPatch, digits) -> None:
    with pytest.raises(
        UserError, match=r"No module named 'torch_fidelity'.*snowmelt\[inception\].*--features classifier"
    ):
        make_features("inception", digits(), None, CPU)

    def unreachable(*_: object) -> None:
        raise OSError("<urlopen error no network>")

    fake_inception(monkeypatch, unreachable)
    with pytest.raises(UserError, match=r"can't fetch its weights \(.*no network.*\); without a network there are"):
        make_features("inception", digits(), None, CPU)


@pytest.mark.usefixtures("quick_classifier")
def test_classifier(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """It recognises what it was not trained on, states how much of it, and is trained once."""
    train = digits()
    extractor = ClassifierFeatures(train, None, CPU)
    rows = np.random.default_rng(0).permutation(len(train))[: len(train) // 10]  # those kept back
    logits = extractor.head(extractor(train.batch(rows)))
    assert extractor.accuracy == (logits.argmax(1) == train.labels[rows]).double().mean().item()
    assert extractor.accuracy > 0.9
    features = extractor(train.batch(np.arange(len(train))))
    assert features.square().mean().item() == pytest.approx(1, abs=0.1)
    monkeypatch.setattr(classifier, "_fit", None)  # not again
    again = ClassifierFeatures(train, train, CPU)
    assert again.fingerprint == extractor.fingerprint
    assert torch.equal(again(train.batch(rows)), extractor(train.batch(rows)))
    assert again.accuracy != extractor.accuracy  # now that of the split it was given


@pytest.mark.parametrize(("images", "steps"), [(20, 3), (200, 10), (10_000, 40)])
def test_a_classifier_of_few_images_takes_few_steps(images: int, steps: int, digits, monkeypatch) -> None:
    """As many passes over them, within bounds."""
    for name, value in {"STEPS": 40, "FEWEST_STEPS": 3, "EPOCHS": 7, "BATCH": 128}.items():
        monkeypatch.setattr(classifier, name, value)
    bars = []
    monkeypatch.setattr(classifier, "tqdm", lambda steps, *_, **__: bars.append(len(steps)) or steps)
    train = digits()
    net = classifier.ConvNet(train.cache.channels, train.cache.size, 10)
    rng = np.random.default_rng(0)
    classifier._fit(net, train, rng.choice(len(train), images), rng, CPU)
    assert bars == [steps]


@pytest.mark.usefixtures("quick_classifier")
def test_a_damaged_classifier_is_trained_anew(digits, capsys: pytest.CaptureFixture) -> None:
    train = digits()
    extractor = ClassifierFeatures(train, None, CPU)
    path = train.cache.path.parent / f"classifier-{extractor.fingerprint}.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    again = ClassifierFeatures(train, None, CPU)
    assert "is damaged: the classifier is trained anew" in capsys.readouterr().out
    assert torch.equal(again(train.batch(np.arange(9))), extractor(train.batch(np.arange(9))))


@pytest.mark.usefixtures("quick_classifier")
def test_classifier_of_any_size(digits) -> None:
    """From 8 pixels to more than it looks at, with several channels."""
    for channels, size in ((5, (9, 9)), (3, (200, 200)), (3, (16, 24)), (1, (200, 8))):
        net = classifier.ConvNet(channels, size, 10).eval()
        images = photos(2, channels, max(size))[..., : size[0], : size[1]]
        assert net.features(images).shape == (2, 64)
        assert max(net.reduced(images).shape[2:]) == min(64, max(size))


def test_classifier_needs_labels(digits) -> None:
    data = digits()
    vars(data.cache)["labels"] = None
    with pytest.raises(UserError, match="split train has no labels; name their column with --label_column, or take"):
        make_features("classifier", data, None, CPU)

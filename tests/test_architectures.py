"""Networks by name and by configuration."""

import json

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention

from snowmelt.architectures import ARCHITECTURES, SIZES, make_network
from snowmelt.errors import UserError
from tests.conftest import TINY_UNET

BROKEN = json.dumps(TINY_UNET | {"norm_num_groups": 3})


def make(size="tiny", path=None, resolution=32, channels=3, num_class_embeds=None, seed=0, **options) -> UNet2DModel:
    shape = {"resolution": resolution, "channels": channels}
    given = path and str(path)
    return make_network("UNet2DModel", size, given, **shape, num_class_embeds=num_class_embeds, seed=seed, **options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resolution", [16, 28, 32, 48, 64, 96, 128, 256])
def test_named_sizes(size, resolution):
    with torch.device("meta"):
        net = make(size, resolution=resolution, channels=2, num_class_embeds=11)
        output = net(torch.empty(1, 2, resolution, resolution), torch.empty(1), class_labels=torch.zeros(1).long())
    assert output.sample.shape == (1, 2, resolution, resolution)
    heads = [m for m in net.modules() if isinstance(m, Attention)]
    assert heads
    assert all(m.inner_dim // m.heads == min(64, m.inner_dim) for m in heads)
    assert net.config.sample_size == resolution


def test_conditions_have_input_channels_of_their_own():
    with torch.device("meta"):
        net = make(channels=3, condition_channels=4)
        assert net(torch.empty(1, 7, 32, 32), torch.empty(1)).sample.shape == (1, 3, 32, 32)


def test_pipelines_know_every_architecture():
    """And that they divide sides as their configurations say."""
    expected = {
        "UNet2DModel": ("unet", 8),
        "UNet2DConditionModel": ("unet", 8),
        "DiTTransformer2DModel": ("transformer", 4),
        "PixArtTransformer2DModel": ("transformer", 4),
    }
    for name, architecture in ARCHITECTURES.items():
        assert architecture.network.__name__ == name
        multiple = architecture.backbone.size_multiple(architecture.named_config("tiny", 64))
        assert (architecture.backbone.component, multiple) == expected[name]


def test_projections_of_text_begin_at_unit_scale():
    shape = {"resolution": 16, "channels": 3, "text_channels": 64}
    projection = make_network("UNet2DConditionModel", "tiny", None, seed=0, **shape).class_embedding
    for layer in (projection.linear_1, projection.linear_2):
        assert layer.weight.std().item() * layer.in_features**0.5 == pytest.approx(1, abs=0.05)


def test_sizes_grow():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in make(size).parameters()) for size in SIZES]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize(
    ("resolution", "allowed"), [(50, "this network divides it by 8; take 48 or 56"), (1, "by 2; take 2")]
)
def test_resolution_that_cannot_be_halved(resolution, allowed):
    with pytest.raises(UserError, match=f"--resolution {resolution}: .*{allowed}$"):
        make(resolution=resolution)


def test_resolution_says_what_works():
    with torch.device("meta"):
        for resolution in (48, 56):
            net = make(resolution=resolution)
            assert net(torch.empty(1, 3, resolution, resolution), torch.empty(1)).sample.shape[-1] == resolution


def test_configuration_from_a_file_and_a_folder(tiny_unet, tmp_path):
    net = make(path=tiny_unet, resolution=8, channels=1, num_class_embeds=3)
    config = net.config
    assert config.block_out_channels == TINY_UNET["block_out_channels"]
    assert (config.sample_size, config.in_channels, config.out_channels, config.num_class_embeds) == (8, 1, 1, 3)
    net.save_pretrained(tmp_path)
    assert make(path=tmp_path, resolution=16).config.block_out_channels == config.block_out_channels


@pytest.mark.parametrize("content", [None, "{", json.dumps({"_class_name": "VQModel"}), "[]", BROKEN])
def test_bad_configuration(content, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="--model_config_name_or_path") as caught:
        make(path=path)
    assert "\n" not in str(caught.value)


def test_initial_weights_follow_from_the_seed(tiny_unet):
    torch.rand(3)
    first, again, other = (make(path=tiny_unet, resolution=8, seed=seed).conv_in.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_unet):
    gradients = []
    for checkpointing in (False, True):
        net = make(path=tiny_unet, resolution=8).train()
        if checkpointing:
            net.enable_gradient_checkpointing()
        torch.manual_seed(0)
        net(torch.randn(2, 3, 8, 8), torch.tensor([1, 2])).sample.square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)

"""The loss of an autoencoder: its terms in closed form, its gradients against two plain backward passes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch.testing import assert_close

from snowmelt.autoencoder.discriminator import PatchDiscriminator
from snowmelt.autoencoder.losses import AutoencoderLoss, AutoencoderModule, adaptive_weight
from tests.autoencoder.conftest import make_kl, make_vq

BATCH = 6


@pytest.fixture
def images():
    return torch.rand(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def discriminator() -> PatchDiscriminator:
    torch.manual_seed(2)
    net = PatchDiscriminator(1, width=4, layers=1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(5)  # so that the hinge has both its sides
    return net


def perceptual(a, b):
    return (a.pow(3) - b.pow(3)).square().flatten(1).mean(1)


def make(config, vae, net=None, **options):
    module = AutoencoderModule(vae, "kl" if isinstance(vae, AutoencoderKL) else "vq", net)
    given = config(regularization=module.regularization, **options)
    return AutoencoderLoss(module, given, perceptual if "perceptual_weight" in options else None)


def losses(criterion, images, step=0, seed=3):
    return criterion(criterion.module, images, step, torch.Generator().manual_seed(seed))


def reference(criterion, images):
    """What `losses` should be, (B,), without the adversarial terms, and the reconstructions."""
    vae, options = criterion.module.vae, criterion.options
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(BATCH, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    made = vae.decode(posterior.mean + posterior.std * noise).sample
    mean, var = posterior.mean, posterior.var
    kl = (mean**2 + var - 1 - var.log()).sum((1, 2, 3)) / 2
    likelihood = (made - images).abs().mean((1, 2, 3)) + options.perceptual_weight * perceptual(made, images)
    return likelihood, likelihood + options.kl_weight * kl / 64, made


@pytest.mark.parametrize("weight", [0.0, 1e-6, 3.0])
def test_reconstruction_perceptual_and_kl(weight, config, images):
    criterion = make(config, make_kl(), kl_weight=weight, perceptual_weight=0.7)
    found = losses(criterion, images)
    likelihood, expected, made = reference(criterion, images)
    assert_close(found.loss, expected)
    assert found.quantile is None
    assert_close(found.values["reconstruction"] + 0.7 * found.values["perceptual"], likelihood.detach())
    assert_close(found.values["kl"].mean() * 32 * weight / 64, (expected - likelihood).mean().detach())
    assert_close(found.values["psnr"], -10 * (((made - images) / 2) ** 2).mean((1, 2, 3)).log10().detach())
    assert not any(value.requires_grad for value in found.values.values())


def test_squared_error(config, images):
    criterion = make(config, make_kl(), reconstruction="l2", kl_weight=0.0)
    made = reference(make(config, criterion.module.vae, perceptual_weight=0.0), images)[2]
    assert_close(losses(criterion, images).loss, (made - images).square().mean((1, 2, 3)))


def test_posterior_is_sampled(config, images):
    """Each pass draws anew, from the generator that it is given."""
    criterion = make(config, make_kl())
    once, again = losses(criterion, images).loss, losses(criterion, images).loss
    other = losses(criterion, images, seed=4).loss
    assert torch.equal(once, again)
    assert not torch.isclose(once, other).any()


def test_commitment(config, images):
    vae = make_vq()
    found = losses(make(config, vae, commitment_weight=0.3), images)
    z = vae.encode(images).latents.permute(0, 2, 3, 1)
    codes = vae.quantize.embedding.weight
    nearest = codes[(z[..., None, :] - codes).square().sum(-1).argmin(-1)]
    made = vae.decode(nearest.permute(0, 3, 1, 2), force_not_quantize=True).sample
    commitment = (z - nearest).square().mean() * 1.25  # VQModel's weights of the two directions
    assert_close(found.loss, (made - images).abs().mean((1, 2, 3)) + 0.3 * commitment)
    assert_close(found.values["commitment"], commitment.detach())
    found.loss.mean().backward()
    assert vae.encoder.conv_in.weight.grad.abs().sum() > 0  # straight through the codes
    assert vae.quantize.embedding.weight.grad.abs().sum() > 0


def test_adversarial_gradients(config, images):
    """One backward pass gives what two give: of the autoencoder's loss, then of the discriminator's."""
    criterion = make(config, make_kl(), discriminator(), perceptual_weight=0.5, disc_weight=0.4, disc_start=0)
    plain = copy.deepcopy(criterion)
    found = losses(criterion, images)
    found.loss.mean().backward()

    vae, judge = plain.module.vae, plain.module.discriminator
    likelihood, rest, made = reference(plain, images)
    generator = -judge(made).mean((1, 2, 3))
    last = vae.decoder.conv_out.weight
    sizes = [torch.autograd.grad(x.mean(), last, retain_graph=True)[0].norm() for x in (likelihood, generator)]
    weight = 0.4 * (sizes[0] / (sizes[1] + 1e-4)).item()
    (rest + weight * generator).mean().backward()
    judge.zero_grad()
    hinge = F.relu(1 - judge(images)).mean((1, 2, 3)) / 2 + F.relu(1 + judge(made.detach())).mean((1, 2, 3)) / 2
    hinge.mean().backward()

    assert_close(found.loss, (rest + weight * generator + hinge).detach(), rtol=1e-4, atol=1e-6)
    assert {name: found.values[name].mean().item() for name in ("generator", "discriminator", "disc_weight")} == {
        "generator": pytest.approx(generator.mean().item(), rel=1e-4),
        "discriminator": pytest.approx(hinge.mean().item(), rel=1e-4),
        "disc_weight": pytest.approx(weight, rel=1e-3),
    }
    for ours, theirs in zip(criterion.module.parameters(), plain.module.parameters(), strict=True):
        assert theirs.grad.abs().sum() > 0
        assert_close(ours.grad, theirs.grad, rtol=2e-3, atol=1e-6)


def test_reduced_precision_keeps_the_two_apart(config, images):
    """Autocast remembers weights that it has cast: those of the one judgement must not serve the other."""
    gradients = []
    for weight in (0.5, 1e-9):  # of the decoder's force, which the discriminator must not feel
        criterion = make(config, make_kl(), discriminator(), disc_weight=weight, disc_start=0)

        def net(*arguments, module=criterion.module):
            with torch.autocast("cpu", torch.bfloat16):
                return {name: value.float() for name, value in module(*arguments).items()}

        criterion(net, images, 0, torch.Generator().manual_seed(3)).loss.mean().backward()
        gradients.append([p.grad for p in criterion.module.discriminator.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(a.abs().sum() > 0 for a in gradients[0])


def test_discriminator_starts(config, images):
    """Before its step it costs nothing, and gives gradients that are 0 rather than none, which processes share."""
    vae = make_kl()
    before = losses(make(config, vae, discriminator(), disc_start=5), images, step=4)
    without = losses(make(config, vae, None), images)
    after = losses(make(config, vae, discriminator(), disc_start=5), images, step=5)
    assert torch.equal(before.loss, without.loss)
    assert before.values.keys() == after.values.keys() == {*without.values, "generator", "discriminator", "disc_weight"}
    assert not torch.isclose(after.loss, without.loss).any()
    criterion = make(config, vae, discriminator(), disc_start=5)
    losses(criterion, images, step=4).loss.mean().backward()
    assert all((p.grad == 0).all() for p in criterion.module.discriminator.parameters())


@pytest.mark.parametrize(("slope", "expected"), [(0.5, 3 * 6 / (0.5 * 6 + 1e-4)), (0.0, 1e4)])
def test_adaptive_weight(slope, expected):
    layer = torch.ones(36, requires_grad=True)
    assert_close(adaptive_weight((3 * layer).sum(), (slope * layer).sum(), layer), torch.tensor(expected))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "loss: l1 of pixels + 1e-06 x KL; none perceptual nor adversarial, before --disc_start 50000"),
        (
            {"disc_weight": 0.0, "perceptual_weight": 2.0},
            "loss: l1 of pixels + 2 x perceptual (none) + 1e-06 x KL; none adv",
        ),
        ({"disc_start": 7}, "1e-06 x KL + 0.5 x adversarial, with the adaptive weight, from step 7; none perceptual"),
    ],
)
def test_what_is_left_out_is_said(options, text, config):
    net = None if options.get("disc_weight") == 0 else discriminator()
    assert text in make(config, make_kl(), net, **options).describe(100)

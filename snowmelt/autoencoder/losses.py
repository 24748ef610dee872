"""The loss of an autoencoder: reconstruction, KL or commitment, perceptual, adversarial (Rombach et al. 2022, app. G).

loss = |x - x'| + w_p P(x, x') + R + lambda w_d G(x') + D(x, x')

P is a perceptual distance, R the KL divergence of the posterior from the unit normal or the commitment to a codebook.
G = -d(x') goes through a discriminator d that is held fixed, and D, its hinge loss, through d alone, so that one
backward pass gives the gradients of both. lambda makes the two forces on the decoder's last layer equally strong.
With `equivariance_prob`, x is tau(x) in some batches, and x' is what the latents become after tau: see equivariance.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from pipelines.vae import vae_scale_factor
from snowmelt.autoencoder.discriminator import PatchDiscriminator
from snowmelt.autoencoder.equivariance import IDENTITY, Transformation, draw_transformation
from snowmelt.autoencoder.options import AutoencoderOptions
from snowmelt.objectives import Losses

Passed = dict[str, Tensor]
Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images (B, C, H, W) in [-1, 1] to their distances (B,)."""

ADVERSARIAL = ("generator", "discriminator", "disc_weight")
"""Values to log: G, D and lambda w_d."""

DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {"l1": Tensor.abs, "l2": Tensor.square}


def _pass_kl(vae: Any, images: Tensor, noise: Tensor, tau: Transformation) -> Passed:
    moments = vae.encode(images).latent_dist.parameters.float()
    posterior = DiagonalGaussianDistribution(moments)
    latents = posterior.mean + posterior.std * noise
    return {"reconstruction": vae.decode(tau(latents)).sample, "moments": moments}


def _pass_vq(vae: Any, images: Tensor, noise: Tensor, tau: Transformation) -> Passed:
    latents = vae.encode(images).latents.float()  # distances to the codebook are taken in float32
    decoded = vae.decode(tau(latents))  # tau before it quantizes, so that the decoder is given codes
    return {"reconstruction": decoded.sample, "commitment": decoded.commit_loss}


def _divergence(passed: Passed, images: Tensor, options: AutoencoderOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """KL(q(z|x) || N(0, 1)) over the values of an image, whose errors are averaged too; logged by value of z."""
    nats = DiagonalGaussianDistribution(passed["moments"]).kl()  # (B,)
    pixels, latents = images[0].numel(), passed["moments"][0].numel() / 2
    return options.kl_weight * nats / pixels, {"kl": nats / latents}


def _commitment(passed: Passed, images: Tensor, options: AutoencoderOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """Of latents to their codes and of codes to latents, as `VQModel` weighs them (van den Oord et al. 2017, eq. 3)."""
    return options.commitment_weight * passed["commitment"], {"commitment": passed["commitment"]}


class Regularization(NamedTuple):
    """What keeps latents in bounds."""

    reconstruct: Callable[[Any, Tensor, Tensor, Transformation], Passed]
    """(vae, images, unit noise of the latents' shape, tau) -> `reconstruction`, and what `loss` needs."""
    loss: Callable[[Passed, Tensor, AutoencoderOptions], tuple[Tensor, dict[str, Tensor]]]
    """(what `reconstruct` gave, images, options) -> the term of the loss, () or (B,), and values to log."""


REGULARIZATIONS = {"kl": Regularization(_pass_kl, _divergence), "vq": Regularization(_pass_vq, _commitment)}


class AutoencoderModule(nn.Module):
    """All that runs forward in a training step: what processes share, and what reduced precision is for.

    Args:
        vae: an `AutoencoderKL` or `VQModel`.
        regularization: a key of `REGULARIZATIONS`, which fits its class.
        discriminator: if there is one.
    """

    def __init__(self, vae: Any, regularization: str, discriminator: PatchDiscriminator | None) -> None:
        super().__init__()
        self.vae = vae
        self.regularization = regularization
        self.discriminator = discriminator

    def forward(self, images: Tensor, noise: Tensor, adversarial: bool, tau: Transformation = IDENTITY) -> Passed:
        """The reconstruction and what else the loss is made of.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: unit normal, of the latents' shape (B, c, h, w), for the draw from the posterior; unused by "vq".
            adversarial: whether the discriminator judges.
            tau: what is done to the latents that are decoded, and to the images that they are compared with.

        Returns:
            `target`, the transformed images, `reconstruction`, of their shape, and `moments` or `commitment`. With
            `adversarial`, also the logits of three judgements: `judged`, of the reconstructions, for the decoder alone;
            `fake` and `real`, for the discriminator alone. With a discriminator that doesn't judge, `nothing`, a 0 that
            depends on its parameters.
        """
        passed = REGULARIZATIONS[self.regularization].reconstruct(self.vae, images, noise, tau)
        passed["target"] = tau(images)
        if self.discriminator is None:
            return passed
        if not adversarial:  # parameters without a gradient would leave other processes waiting for it
            return passed | {"nothing": 0 * torch.stack([p.sum() for p in self.discriminator.parameters()]).sum()}
        with _frozen(self.discriminator):
            passed["judged"] = self.discriminator(passed["reconstruction"])
        passed["fake"] = self.discriminator(passed["reconstruction"].detach())
        passed["real"] = self.discriminator(passed["target"])
        return passed


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    net.requires_grad_(False)
    try:
        yield
    finally:
        net.requires_grad_(True)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """lambda = |d reconstruction / d L| / (|d adversarial / d L| + 1e-4), at most 10^4 (Esser et al. 2021, eq. 7).

    The summand and the limit are those of their code.

    Args:
        reconstruction: the first loss, ().
        adversarial: the second, ().
        last_layer: L, the weight of the decoder's last layer.
    """
    losses = (reconstruction, adversarial)
    norms = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in losses]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)


@dataclass(frozen=True)
class AutoencoderLoss:
    """The sum above.

    Args:
        module: the bare module.
        options: weights and kinds of the terms.
        perceptual: P, if there is one.
    """

    module: AutoencoderModule
    options: AutoencoderOptions
    perceptual: Perceptual | None

    def __call__(self, forward: Callable[..., Passed], x0: Tensor, step: int, generator: torch.Generator) -> Losses:
        """Losses of images x0 (B, C, H, W) in [-1, 1], one posterior sample each.

        Args:
            forward: calls the module.
            x0: the images.
            step: optimizer steps taken, which decide whether the discriminator has started.
            generator: of the posterior samples; the transformation follows from its seed.
        """
        options, vae = self.options, self.module.vae
        side = [s // vae_scale_factor(vae) for s in x0.shape[2:]]
        noise = torch.randn(len(x0), vae.config.latent_channels, *side, generator=generator, device=x0.device)
        adversarial = self.module.discriminator is not None and step >= options.disc_start
        tau = draw_transformation(side[0], options.equivariance_prob, generator.initial_seed())
        passed = forward(x0, noise, adversarial, tau)

        target = passed["target"]
        error = passed["reconstruction"] - target
        likelihood = DISTANCES[options.reconstruction](error).flatten(1).mean(1)
        mse = error.detach().square().flatten(1).mean(1)
        values = {"reconstruction": likelihood, "psnr": 10 * torch.log10(4 / mse.clamp(min=1e-10))}
        if self.perceptual is not None:
            values["perceptual"] = self.perceptual(passed["reconstruction"], target)
            likelihood = likelihood + options.perceptual_weight * values["perceptual"]
        terms = [REGULARIZATIONS[options.regularization].loss(passed, x0, options)]
        if adversarial:
            terms.append(self._adversarial(passed, likelihood))
        elif self.module.discriminator is not None:
            terms.append((passed["nothing"], dict.fromkeys(ADVERSARIAL, passed["nothing"])))
        total = likelihood + sum(term for term, _ in terms)
        values |= {name: value for _, logged in terms for name, value in logged.items()}
        return Losses(total, values={name: value.detach() for name, value in values.items()})

    def describe(self, total_steps: int) -> str:
        """A line on the terms of the loss in a training of so many steps."""
        o = self.options
        terms = [f"{o.reconstruction} of pixels"]
        terms += [f"{o.perceptual_weight:g} x perceptual ({o.perceptual})"] if self.perceptual else []
        terms += [f"{o.kl_weight:g} x KL" if o.regularization == "kl" else f"{o.commitment_weight:g} x commitment"]
        left_out = [] if self.perceptual else ["perceptual"]
        if self.module.discriminator is not None and o.disc_start < total_steps:
            terms.append(f"{o.disc_weight:g} x adversarial, with the adaptive weight, from step {o.disc_start}")
        else:
            left_out.append("adversarial" if not o.disc_weight else f"adversarial, before --disc_start {o.disc_start}")
        line = f"loss: {' + '.join(terms)}" + (f"; none {' nor '.join(left_out)}" if left_out else "")
        transformed = f"; {o.equivariance_prob:.0%} of batches with transformed latents and images (EQ-VAE)"
        return line + (transformed if o.equivariance_prob else "")

    def _adversarial(self, passed: Passed, likelihood: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """lambda w_d G + D, (B,), with the hinge loss of Lim & Ye 2017, eq. 8 to 10."""
        generator = -passed["judged"].flatten(1).mean(1)
        last_layer = self.module.vae.decoder.conv_out.weight
        weight = self.options.disc_weight * adaptive_weight(likelihood.mean(), generator.mean(), last_layer)
        discriminator = (F.relu(1 - passed["real"]) + F.relu(1 + passed["fake"])).flatten(1).mean(1) / 2
        values = (generator, discriminator, weight)
        return weight * generator + discriminator, dict(zip(ADVERSARIAL, values, strict=True))

"""What `train_autoencoder.py` takes. Nothing here imports torch, so that `--help` is immediate."""

from dataclasses import dataclass

from snowmelt.config import Config, option
from snowmelt.errors import UserError
from snowmelt.options import HeldOutOptions, TrainingConfig


@dataclass(kw_only=True)
class NetworkOptions(Config):
    """Autoencoder."""

    regularization: str = option(
        "kl", "kl for an AutoencoderKL, vq for a VQModel, whose latents are codes of a codebook", choices=("kl", "vq")
    )
    model_size: str | None = option(None, "named size (small)", choices=("tiny", "small", "base", "large"))
    downsample_factor: int | None = option(
        None, "side of an image over that of its latents: 2, 4, 8 or 16 (4)", minimum=2, maximum=16
    )
    latent_channels: int | None = option(
        None, "channels of the latents; 2, 3, 4 or 16 by default, as the factor", minimum=1
    )
    num_vq_embeddings: int = option(1024, "codes in the codebook", minimum=2)
    pretrained_model_name_or_path: str | None = option(
        None, "an autoencoder to fine-tune, or a folder that has one as vae, instead of a named size", path=True
    )


@dataclass(kw_only=True)
class LossOptions(Config):
    """Loss."""

    reconstruction: str = option("l1", "error of pixels", choices=("l1", "l2"))
    kl_weight: float = option(
        1e-6, "weight of the KL divergence, summed over latents as the error over pixels", minimum=0
    )
    commitment_weight: float = option(1.0, "weight of the distances between latents and codes", minimum=0)
    equivariance_prob: float = option(
        0.0,
        "probability that a batch's latents and images are turned and made smaller (EQ-VAE, which has 0.5)",
        minimum=0,
        maximum=1,
    )
    perceptual: str = option(
        "none",
        "perceptual loss: lpips, which needs torchvision and its weights; classifier, trained on the labels first",
        choices=("none", "lpips", "classifier"),
    )
    perceptual_weight: float = option(1.0, "weight of the perceptual loss", minimum=0)
    disc_weight: float = option(0.5, "weight of the adversarial loss, times the adaptive one; 0 for none", minimum=0)
    disc_start: int = option(50_000, "optimizer step at which the discriminator starts", minimum=0)
    disc_width: int = option(64, "channels of the discriminator's first layer", minimum=1)


@dataclass(kw_only=True)
class AutoencoderOptions(LossOptions, NetworkOptions):
    """All that concerns the autoencoder alone."""


@dataclass(kw_only=True)
class ReportOptions(HeldOutOptions):
    """Report on reconstructions."""

    eval_features: str | None = option(
        None,
        "features of rFD: inception, a model of transformers, none, or classifier, the default for data with labels",
        resumable=True,
        path=True,
    )


@dataclass(kw_only=True)
class AutoencoderConfig(AutoencoderOptions, ReportOptions, TrainingConfig):
    """Train an autoencoder, the first stage of latent diffusion."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aspect_ratio_buckets:
            raise UserError("--aspect_ratio_buckets: isn't for autoencoders; take --resolution, and any shape later")
        if self.streaming:
            raise UserError(
                "--streaming: isn't for autoencoders, whose latents are measured on all images; leave it out"
            )
        if len(self.ema_widths) > 1:
            raise UserError("--ema_widths: takes one width here, since the latents are measured of one autoencoder")

"""Options of text-to-image training."""

from dataclasses import dataclass

from snowmelt.condition_options import ConditionOptions
from snowmelt.config import Config, option
from snowmelt.errors import UserError
from snowmelt.objective_options import ObjectiveOptions
from snowmelt.options import METRICS, DiffusionConfig, LatentOptions, ValidationOptions
from snowmelt.text.subject_options import SubjectOptions

TEXT_METRICS = ("clip_score", "alignment")
"""Metrics of images that were made from texts."""
CLIP = "openai/clip-vit-base-patch32"
CLIP_HELP = "CLIP model of transformers that clip_score is by"

OF_SCRATCH = (
    "backbone",
    "model_size",
    "model_config_name_or_path",
    "text_encoder",
    "text_hidden_size",
    "text_layers",
    "vocab_size",
    "autoencoder",
    "objective",
    "ddpm_num_steps",
    "ddpm_beta_schedule",
    "ddpm_beta_start",
    "ddpm_beta_end",
    "variance_type",
)
"""Options of a model that is made here."""
OF_PRETRAINED = (
    *("revision", "non_ema_revision", "variant", "rank", "train_text_encoder"),
    *("controlnet", "controlnet_model_name_or_path", "with_prior_preservation", "placeholder_token"),
)
"""Options that need a pretrained model."""
UNFIT_FOR_CONTROLNET = (
    *("rank", "train_text_encoder", "conditioning_dropout_prob", "max_noise_level"),
    *("with_prior_preservation", "placeholder_token"),
)


@dataclass(kw_only=True)
class CaptionColumnOptions(Config):
    """Captions: where they are."""

    caption_column: str | None = option(
        None, "column of the captions, strings or lists of strings; found by name or type when not given"
    )
    skip_empty_captions: bool = option(False, "leave out images without a caption instead of stopping")


@dataclass(kw_only=True)
class CaptionOptions(CaptionColumnOptions):
    """Captions in training."""

    max_train_samples: int | None = option(None, "train on the first so many images only", minimum=1)
    caption_dropout: float = option(
        0.1,
        "fraction of captions replaced by the empty one, for classifier-free guidance",
        minimum=0,
        below=1,
        aliases=("proportion_empty_prompts",),
    )


@dataclass(kw_only=True)
class TextModelOptions(Config):
    """Model."""

    backbone: str = option(
        "unet",
        "kind of network: a UNet2DConditionModel or a PixArtTransformer2DModel (Chen et al. 2024)",
        choices=("unet", "pixart"),
    )
    model_size: str = option("small", "named size of the network", choices=("tiny", "small", "base", "large"))
    model_config_name_or_path: str | None = option(
        None, "a configuration of its class to use instead of a named size", path=True
    )
    text_encoder: str | None = option(
        None,
        "pretrained text encoder to use as it is, CLIP or T5: its folder, that of a pipeline, or a Hub name; by "
        "default a small CLIPTextModel and its tokenizer are trained with the network",
        path=True,
    )
    text_hidden_size: int = option(128, "width of the text encoder that is trained, a multiple of 64", minimum=64)
    text_layers: int = option(2, "its transformer blocks", minimum=1)
    vocab_size: int = option(4096, "tokens of its tokenizer, at most", minimum=514)
    text_encoder_lr: float | None = option(
        None,
        "learning rate of a text encoder that is trained; a tenth of learning_rate by default, or all of it for a "
        "pretrained one",
        minimum=0,
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")


@dataclass(kw_only=True)
class PipelineOptions(Config):
    """Pretrained pipeline."""

    pretrained_model_name_or_path: str | None = option(
        None,
        "pipeline to fine-tune, StableDiffusionPipeline or TextToImagePipeline, instead of training from scratch; its "
        "presence changes defaults to those of recipes/finetune.yaml",
        path=True,
    )
    revision: str | None = option(None, "branch, tag or commit of its repository")
    variant: str | None = option(None, "variant of its weight files, such as fp16")


@dataclass(kw_only=True)
class PretrainedOptions(PipelineOptions):
    """Fine-tuning."""

    non_ema_revision: str | None = option(None, "revision to take the weights of its unet from, where it keeps two")
    rank: int | None = option(None, "train LoRA matrices of this rank instead of the network (4 is common)", minimum=1)
    train_text_encoder: bool = option(False, "train its text encoder too")
    controlnet: bool = option(
        False, "train a ControlNet beside it, which is shown what --condition says, and nothing else"
    )
    controlnet_model_name_or_path: str | None = option(
        None, "ControlNet to go on from, instead of one that is made of its unet: a folder, or a Hub name", path=True
    )


@dataclass(kw_only=True)
class PromptOptions(Config):
    """Validation prompts."""

    validation_prompts: list[str] = option(
        [],
        "prompts of the sample grids; the first captions by default",
        resumable=True,
        aliases=("validation_prompt",),
    )
    num_validation_images: int = option(1, "images of each of these prompts", minimum=1, resumable=True)


@dataclass(kw_only=True)
class TextValidationOptions(ValidationOptions):
    """Evaluation of images made from captions."""

    eval_metrics: list[str] = option(
        [],
        "metrics of samples, as evaluate.py has them; the first decides which step is best",
        choices=(*METRICS, *TEXT_METRICS),
        resumable=True,
    )
    eval_clip_model_name_or_path: str = option(CLIP, CLIP_HELP, resumable=True, path=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alignment(self.eval_metrics, self.dataset_name, "--eval_metrics")


@dataclass(kw_only=True)
class TextToImageConfig(
    SubjectOptions,
    PretrainedOptions,
    ObjectiveOptions,
    LatentOptions,
    ConditionOptions,
    TextModelOptions,
    PromptOptions,
    CaptionOptions,
    TextValidationOptions,
    DiffusionConfig,
):
    """Train a text-to-image diffusion model, of pixels or latents, from scratch or from a pretrained one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming:
            raise UserError(
                "--streaming: isn't for captions, which are read before training; run encode.py --streaming once, with "
                "--text_encoder, and train on its folder"
            )
        if self.num_validation_images > 1 and not self.validation_prompts:
            raise UserError(
                "--num_validation_images: needs --validation_prompts, of which it draws so many images each"
            )
        if self.contrastive_weight and self.train_batch_size == 1:
            raise UserError("--contrastive_weight: needs a --train_batch_size of 2 or more, another image in the batch")
        source = self.pretrained_model_name_or_path
        for name in OF_SCRATCH if source else OF_PRETRAINED:
            if getattr(self, name) != self.fields()[name].default:
                why = f"that of --pretrained_model_name_or_path {source} is taken; leave it out"
                raise UserError(f"--{name}: {why if source else 'needs --pretrained_model_name_or_path'}")
        self._check_controlnet()

    def _check_controlnet(self) -> None:
        """Refuse options that are a ControlNet's without one, or another training's with one."""
        if not self.controlnet and self.controlnet_model_name_or_path:
            raise UserError("--controlnet_model_name_or_path: is of a --controlnet; give that too")
        if not self.controlnet and self.condition and self.pretrained_model_name_or_path:
            raise UserError("--condition: a pretrained model takes one by a ControlNet; add --controlnet")
        if self.controlnet and not self.condition:
            raise UserError("--controlnet: needs a --condition that it is shown, such as edges")
        for name in UNFIT_FOR_CONTROLNET if self.controlnet else ():
            if getattr(self, name):
                raise UserError(f"--{name}: isn't for --controlnet; drop one of the two")


def check_alignment(metrics: list[str], dataset_name: str | None, flag: str) -> None:
    """Refuse `alignment` where it can't be read off the images.

    Args:
        metrics: that are asked for.
        dataset_name: of the data.
        flag: that they were given by.

    Raises:
        UserError: for other data than the scenes.
    """
    if "alignment" in metrics and dataset_name != "scenes":
        raise UserError(
            f"{flag} alignment: is read off images of the embedded scenes; give --dataset_name scenes, or leave it out"
        )

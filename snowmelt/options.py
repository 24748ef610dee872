"""Every option of the training scripts, by topic. Names are those of diffusers' example scripts where it has one."""

from dataclasses import dataclass

from snowmelt.condition_options import ConditionOptions
from snowmelt.config import Config, option
from snowmelt.errors import UserError
from snowmelt.few_step_options import FewStepOptions
from snowmelt.objective_options import ObjectiveOptions
from snowmelt.optimization_options import OptimizationOptions
from snowmelt.reflow_options import ReflowOptions
from snowmelt.run_options import HistoricalOptions, HubOptions, RunOptions
from snowmelt.values import Resolution, to_buckets, to_size

METRICS = ("fd", "fd_inf", "kid", "is", "prdc", "accuracy")
"""That compare images with others, of those that evaluate.py has."""


@dataclass(kw_only=True)
class ImageOptions(Config):
    """Data: where images are, and how they are read."""

    dataset_name: str | None = option(
        None, "data set on the Hub, a local copy of one, or 'digits' (embedded)", path=True
    )
    dataset_config_name: str | None = option(None, "configuration of the data set, where it has several")
    train_data_dir: str | None = option(
        None, "folder of images (sub-folders are classes), .npy or parquet", path=True, aliases=("instance_data_dir",)
    )
    image_column: str | None = option(None, "column of the images; found by type when not given")
    label_column: str | None = option(
        None, "column of the labels (ClassLabel, integers or strings); the only ClassLabel, or the one called label"
    )
    cache_dir: str | None = option(None, "where downloads and decoded images are kept", resumable=True, published=False)
    interpolation: str = option(
        "bilinear",
        "filter of the resize, antialiased",
        choices=("nearest", "bilinear", "bicubic", "lanczos"),
        aliases=("image_interpolation_mode",),
    )
    channels: int | None = option(
        None, "1 gray, 3 RGB, 4 RGBA, N for arrays; that of the images when not given", minimum=1
    )
    background: str = option("white", "colour that transparent pixels are laid on when channels is 1 or 3")
    preserve_input_precision: bool = option(True, "keep 16-bit images at full precision, as float ones always are")
    skip_bad_images: bool = option(False, "leave out and list files that can't be decoded instead of stopping")


@dataclass(kw_only=True)
class DataOptions(ImageOptions):
    """Training data."""

    split: str = option("train", "split to train on")
    resolution: Resolution = option(
        64, "side in pixels, or HEIGHTxWIDTH, that images are resized to cover and cropped to", minimum=1
    )
    aspect_ratio_buckets: str | None = option(
        None,
        "shapes to train on, as 64,96;96,64;80,80 (HEIGHT,WIDTH): images are cropped to the nearest one, and a batch "
        "is of one; resolution, that of samples, is among them",
    )
    center_crop: bool = option(False, "crop the centre; without it a random crop is drawn at each use")
    random_flip: bool = option(False, "mirror half of the images, at random, at each use")
    dataloader_num_workers: int = option(
        0,
        "worker processes that read batches when the data set doesn't fit on the device",
        minimum=0,
        resumable=True,
    )
    streaming: bool = option(
        False, "read images from their shards while training, instead of decoding all of them first and keeping them"
    )
    shuffle_buffer_size: int = option(
        4096, "rows that are shuffled among each other, and so held in memory, with streaming", minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        buckets = self.aspect_ratio_buckets
        if buckets is not None and self.size not in to_buckets(buckets):
            raise UserError(f"--resolution {self.resolution}: is that of samples; take one of the sizes {buckets}")
        self.refuse_streaming("aspect_ratio_buckets")

    def refuse_streaming(self, *names: str) -> None:
        """Refuse options that need all images decoded, where they are streamed.

        Raises:
            UserError: naming the first that is given.
        """
        given = next((name for name in names if self.streaming and getattr(self, name)), None)
        if given:
            raise UserError(
                f"--streaming: isn't for --{given}, which needs all images decoded first; drop one of the two"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of `resolution`."""
        return to_size(self.resolution)


@dataclass(kw_only=True)
class ModelOptions(Config):
    """Model."""

    backbone: str = option(
        "unet",
        "kind of network: a UNet2DModel or a DiTTransformer2DModel (Peebles & Xie 2023)",
        choices=("unet", "dit"),
    )
    model_size: str = option("small", "named size of the network", choices=("tiny", "small", "base", "large"))
    model_config_name_or_path: str | None = option(
        None, "a configuration of its class to use instead of a named size", path=True
    )
    class_conditional: bool = option(False, "condition on the label column")
    label_dropout: float = option(0.1, "fraction of labels dropped, for classifier-free guidance", minimum=0, below=1)
    dropout: float | None = option(
        None, "probability of dropout in the network's blocks; that of its configuration by default", minimum=0, below=1
    )
    self_condition: bool = option(
        False, "give the network its own last estimate of the image: one more forward pass a step (Chen et al. 2023)"
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")


@dataclass(kw_only=True)
class AugmentationOptions(Config):
    """Augmentation."""

    augment_p: float = option(
        0.0,
        "probability of each geometric augmentation, a condition of the network (Karras et al. 2022, appendix F.2)",
        minimum=0,
        maximum=1,
    )


@dataclass(kw_only=True)
class LatentOptions(Config):
    """Latent space."""

    autoencoder: str | None = option(
        None,
        "train in the latent space of this autoencoder: its folder, that of a pipeline or run, or a Hub name",
        path=True,
    )


@dataclass(kw_only=True)
class EmaOptions(Config):
    """Exponential moving average of the weights."""

    use_ema: bool = option(True, "keep one, sample from it and save it as the model")
    ema_inv_gamma: float = option(1.0, "warm-up form: decay = 1 - (1 + step / inv_gamma) ** -power", above=0)
    ema_power: float = option(0.75, "warm-up form: power", above=0)
    ema_max_decay: float = option(0.9999, "warm-up form: the largest decay", minimum=0, below=1)
    ema_widths: list[float] = option(
        [],
        "relative widths (0.05 0.1, say) of power-function averages (Karras et al. 2024) to keep instead",
        above=0,
        maximum=0.288,
    )


@dataclass(kw_only=True)
class SampleOptions(Config):
    """Samples."""

    ddpm_num_inference_steps: int | None = option(
        None,
        "denoising steps of the sample grids; 50 by default, 4 of flow maps, 2 of consistency models",
        minimum=1,
        resumable=True,
    )


@dataclass(kw_only=True)
class HeldOutOptions(OptimizationOptions, DataOptions):
    """Held-out images."""

    validation_split: str | None = option(None, "split that the model is judged by", resumable=True)
    validation_share: float | None = option(
        None, "fraction of the training images to keep from training for that instead", minimum=0, below=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_split and self.validation_share:
            raise UserError("--validation_split and --validation_share: give one of the two")


@dataclass(kw_only=True)
class ValidationOptions(HeldOutOptions):
    """Evaluation during training."""

    eval_steps: int | None = option(
        None, "optimizer steps between evaluations of the averaged weights; none by default", minimum=1, resumable=True
    )
    eval_metrics: list[str] = option(
        [],
        "metrics of samples, as evaluate.py has them; the first decides which step is best",
        choices=METRICS,
        resumable=True,
    )
    eval_features: str = option(
        "classifier",
        "features they compare: classifier, trained on the labels first, inception, or a model of transformers",
        resumable=True,
        path=True,
    )
    eval_num_images: int = option(1000, "samples for them", minimum=2, resumable=True)
    patience: int | None = option(
        None, "evaluations without a better one after which training ends", minimum=1, resumable=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_streaming("eval_metrics")
        if self.aspect_ratio_buckets and self.eval_metrics:
            raise UserError("--aspect_ratio_buckets: isn't for --eval_metrics, of images of one size; evaluate.py is")
        judged = self.validation_split or self.validation_share or self.eval_metrics
        if self.eval_steps and not judged:
            raise UserError(
                "--eval_steps: needs --validation_share 0.05, --validation_split or --eval_metrics to judge by"
            )
        if (judged or self.patience) and not self.eval_steps:
            named = ("validation_split", "validation_share", "eval_metrics", "patience")
            raise UserError(
                f"--{next(n for n in named if getattr(self, n))}: needs --eval_steps, how often to evaluate"
            )


@dataclass(kw_only=True)
class TrainingConfig(HistoricalOptions, RunOptions, EmaOptions, OptimizationOptions, DataOptions):
    """What every training script takes."""


@dataclass(kw_only=True)
class DiffusionConfig(HubOptions, SampleOptions, TrainingConfig):
    """What scripts that train diffusion models take besides."""


@dataclass(kw_only=True)
class UnconditionalConfig(
    ReflowOptions,
    FewStepOptions,
    ObjectiveOptions,
    LatentOptions,
    ConditionOptions,
    AugmentationOptions,
    ModelOptions,
    ValidationOptions,
    DiffusionConfig,
):
    """Train an unconditional or class-conditional diffusion model, of pixels or latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and self.autoencoder:
            raise UserError(
                "--streaming: isn't for --autoencoder, which would encode each image again and again; run encode.py "
                "--streaming once, and train on its folder"
            )
        self.refuse_streaming("reflow_from")
        if self.streaming and (self.condition or "").startswith("column:"):
            raise UserError(f"--streaming: isn't for --condition {self.condition}, a second image; drop one of the two")
        if self.aspect_ratio_buckets and self.reflow_from:
            raise UserError("--aspect_ratio_buckets: isn't for --reflow_from, whose pairs are of one size; drop one")
        if self.contrastive_weight and not self.class_conditional:
            raise UserError("--contrastive_weight: tells conditions apart; add --class_conditional, or leave it out")
        if self.contrastive_weight and self.train_batch_size == 1:
            raise UserError("--contrastive_weight: needs a --train_batch_size of 2 or more, another image in the batch")

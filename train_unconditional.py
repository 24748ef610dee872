"""Train a diffusion model on images: unconditional, or on class labels with --class_conditional.

Without a data set or a configuration it trains recipes/digits.yaml, on data that comes with scikit-learn.
"""

import functools
from typing import TYPE_CHECKING

from snowmelt.config import parse
from snowmelt.errors import run
from snowmelt.options import UnconditionalConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import UNet2DModel

    from pipelines.unet import UNetPipeline
    from snowmelt.codec import LatentCodec, PixelCodec
    from snowmelt.data.cache import ImageCache
    from snowmelt.publishing.during import HubPush
    from snowmelt.trainer import Trainer

# torch and diffusers are imported inside the functions, so that --help doesn't wait for them.


def main() -> None:
    config = parse(UnconditionalConfig, default_recipe="digits", needs=("dataset_name", "train_data_dir"))

    from snowmelt import run_folder
    from snowmelt.environment import make_accelerator
    from snowmelt.publishing.during import HubPush

    accelerator = make_accelerator(config)
    checkpoint = run_folder.check(config)
    push = HubPush(config, accelerator)
    trainer, images = assemble(config, accelerator, push)
    push.open()
    if checkpoint:
        trainer.resume(checkpoint)
    with run_folder.opened(config, images, accelerator, fresh=checkpoint is None):
        trainer.fit()
        push.finish()
    accelerator.print(run_folder.summary(config, images, "class_labels=0, " if config.class_conditional else ""))
    if trainer.validation:
        accelerator.print(trainer.validation.summary())


def assemble(
    config: UnconditionalConfig, accelerator: "Accelerator", push: "HubPush"
) -> tuple["Trainer", "ImageCache"]:
    """The trainer with all its parts, and the images that it trains on."""
    from pipelines import LatentDiffusionPipeline, PixelDiffusionPipeline
    from snowmelt.codec import LatentCodec, PixelCodec, load_autoencoder
    from snowmelt.conditioning import make_conditioning
    from snowmelt.data.held_out import load_splits
    from snowmelt.objectives import describe, make_objective
    from snowmelt.samples import check_steps, sample_grid
    from snowmelt.trainer import Trainer

    objective = make_objective(config, latent=config.autoencoder is not None)
    check_steps(objective.scheduler(), config)
    accelerator.print(describe(config, objective))
    vae = load_autoencoder(config.autoencoder).to(accelerator.device) if config.autoencoder else None
    images, held_out = load_splits(config, labels=config.class_conditional)
    conditioning = make_conditioning(config, images)
    pixels = PixelCodec(images.value_range)
    codec = LatentCodec(vae, pixels) if vae else pixels
    net = make_network(config, codec, images, conditioning.num_class_embeds)
    pipeline = functools.partial(
        functools.partial(LatentDiffusionPipeline, vae) if vae else PixelDiffusionPipeline,
        net,
        prediction_type=objective.pipeline_prediction_type,
        id2label=dict(enumerate(images.class_names or [])) if config.class_conditional else None,
        value_range=images.value_range if images.dtype.kind == "f" else None,  # that of integers is their type's
    )
    encode = functools.partial(codec.encode, random_flip=config.random_flip, mixed_precision=config.mixed_precision)
    data = encode(images)
    accelerator.print(codec.describe(data))

    def make_pipeline() -> "UNetPipeline":
        return pipeline(scheduler=objective.scheduler())

    validation = None
    if config.eval_steps:
        from snowmelt.evaluation.validation import make_validation  # brings the libraries of metrics

        watched = held_out and encode(held_out)
        splits = (images, held_out)
        validation = make_validation(
            config, objective, codec, conditioning, make_pipeline, accelerator, splits=splits, watched=watched
        )
    trainer = Trainer(
        net,
        {"unet": net},
        objective,
        codec,
        conditioning,
        data,
        config,
        accelerator,
        save=lambda folder: make_pipeline().save_pretrained(folder),
        on_saved=push.during,
        validation=validation,
        draw=lambda path: sample_grid(make_pipeline(), path, config),
    )
    return trainer, images


def make_network(
    config: UnconditionalConfig, codec: "PixelCodec | LatentCodec", images: "ImageCache", num_class_embeds: int | None
) -> "UNet2DModel":
    """The network, for what the codec makes of the images."""
    from snowmelt.models import make_unet

    net = make_unet(
        config.model_size,
        config.model_config_name_or_path,
        resolution=config.resolution // codec.downsampling,
        cell=codec.downsampling,
        channels=codec.channels(images),
        num_class_embeds=num_class_embeds,
        seed=config.seed,
    )
    if config.gradient_checkpointing:
        net.enable_gradient_checkpointing()
    return net


if __name__ == "__main__":
    run(main)

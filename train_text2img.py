"""Train a text-to-image model from scratch, on images with captions.

Without a data set or a configuration it trains recipes/scenes.yaml, on a captioned set that it makes itself.
"""

from typing import TYPE_CHECKING

from snowmelt.config import parse
from snowmelt.errors import run
from snowmelt.text.options import TextToImageConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipelines import TextToImagePipeline
    from snowmelt.data.cache import ImageCache
    from snowmelt.publishing.during import HubPush
    from snowmelt.trainer import Trainer

# torch and diffusers are imported inside the functions, so that --help doesn't wait for them.


def main() -> None:
    config = parse(TextToImageConfig, default_recipe="scenes", needs=("dataset_name", "train_data_dir"))

    from snowmelt import run_folder
    from snowmelt.environment import make_accelerator
    from snowmelt.publishing.during import HubPush

    accelerator = make_accelerator(config)
    checkpoint = run_folder.check(config, needed=config.autoencoder)
    push = HubPush(config, accelerator)
    trainer, images, prompt = assemble(config, accelerator, push)
    push.open()
    if checkpoint:
        trainer.resume(checkpoint)
    run_folder.prepare(config, images, accelerator, fresh=checkpoint is None)
    trainer.fit()
    push.finish()
    accelerator.print(run_folder.summary(config, images, f"{prompt!r}, "))


def assemble(
    config: TextToImageConfig, accelerator: "Accelerator", push: "HubPush"
) -> tuple["Trainer", "ImageCache", str]:
    """The trainer with all its parts, the images that it trains on, and a prompt."""
    from pipelines import TextToImagePipeline
    from snowmelt.codec import LatentCodec, PixelCodec, load_autoencoder
    from snowmelt.data.captions import load_captioned
    from snowmelt.models import make_conditional_unet
    from snowmelt.objectives import make_objective
    from snowmelt.text.assembly import make_text
    from snowmelt.text.samples import grid_prompts, prompt_grid
    from snowmelt.trainer import Trainer

    objective = make_objective(config, latent=config.autoencoder is not None)
    vae = load_autoencoder(config.autoencoder).to(accelerator.device) if config.autoencoder else None
    images, captions = load_captioned(
        config, config.caption_column, skip_empty=config.skip_empty_captions, most=config.max_train_samples
    )
    pixels = PixelCodec(images.value_range)
    codec = LatentCodec(vae, pixels) if vae else pixels
    text = make_text(config, captions, accelerator.device)
    unet = make_conditional_unet(
        config.model_size,
        config.model_config_name_or_path,
        resolution=config.resolution // codec.downsampling,
        cell=codec.downsampling,
        channels=codec.channels(images),
        cross_attention_dim=text.encoder.config.hidden_size,
        seed=config.seed,
    )
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    data = codec.encode(images, random_flip=config.random_flip, mixed_precision=config.mixed_precision)
    accelerator.print(codec.describe(data))

    def make_pipeline() -> "TextToImagePipeline":
        return TextToImagePipeline(
            unet, objective.scheduler(), text.encoder, text.tokenizer, vae, objective.prediction_type
        )

    prompts = grid_prompts(config, captions)
    net, parts = text.joined(unet)
    trainer = Trainer(
        net,
        parts,
        objective,
        codec,
        text.conditioning,
        data,
        config,
        accelerator,
        save=lambda folder: make_pipeline().save_pretrained(folder),
        on_saved=push.during,
        draw=lambda path: prompt_grid(make_pipeline(), path, config, prompts),
    )
    return trainer, images, prompts[0]


if __name__ == "__main__":
    run(main)

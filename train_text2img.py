"""Train a text-to-image model on images with captions: from scratch, or from a pretrained one, whole or by LoRA.

Without a data set or a configuration it trains recipes/scenes.yaml, on a captioned set that it makes itself.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from snowmelt.config import parse
from snowmelt.errors import run
from snowmelt.text.options import TextToImageConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from snowmelt.data.cache import ImageCache
    from snowmelt.publishing.during import HubPush
    from snowmelt.trainer import Trainer

# torch and diffusers are imported inside the functions, so that --help doesn't wait for them.


def main() -> None:
    config = parse(
        TextToImageConfig,
        default_recipe="scenes",
        needs=("dataset_name", "train_data_dir"),
        defaults_with=("pretrained_model_name_or_path", "finetune"),
    )

    from snowmelt import run_folder
    from snowmelt.environment import make_accelerator
    from snowmelt.publishing.during import HubPush

    accelerator = make_accelerator(config)
    checkpoint = run_folder.check(config)
    push = HubPush(config, accelerator)
    trainer, images, prompt = assemble(config, accelerator, push)
    push.open()
    if checkpoint:
        trainer.resume(checkpoint)
    with run_folder.opened(config, images, accelerator, fresh=checkpoint is None):
        trainer.fit()
        push.finish()
    base = config.pretrained_model_name_or_path if config.rank else None
    accelerator.print(run_folder.summary(config, images, f"{prompt!r}, ", base))


def assemble(
    config: TextToImageConfig, accelerator: "Accelerator", push: "HubPush"
) -> tuple["Trainer", "ImageCache", str]:
    """The trainer with all its parts, the images that it trains on, and a prompt."""
    from snowmelt.codec import LatentCodec, PixelCodec, load_autoencoder
    from snowmelt.data.captions import load_captioned
    from snowmelt.objectives import describe
    from snowmelt.samples import check_steps
    from snowmelt.text.assembly import from_scratch
    from snowmelt.text.finetuning import channels, finetuned, load_source
    from snowmelt.text.samples import grid_prompts, prompt_grid
    from snowmelt.trainer import Trainer

    source = load_source(config) if config.pretrained_model_name_or_path else None
    own = load_autoencoder(config.autoencoder) if config.autoencoder else None
    vae = source.vae if source else own
    images, captions = load_captioned(
        replace(config, channels=channels(source)) if source else config,
        config.caption_column,
        skip_empty=config.skip_empty_captions,
        most=config.max_train_samples,
    )
    pixels = PixelCodec(images.value_range)
    flag = "--pretrained_model_name_or_path" if source else "--autoencoder"
    codec = LatentCodec(vae.to(accelerator.device), pixels, flag) if vae else pixels
    codec.channels(images)  # or they don't fit, which is known before anything is made
    if source:
        model = finetuned(config, source, captions, accelerator.device)
    else:
        model = from_scratch(config, images, captions, codec, accelerator.device)
    check_steps(model.pipeline().scheduler, config)
    accelerator.print(describe(config, model.objective))
    data = codec.encode(images, random_flip=config.random_flip, mixed_precision=config.mixed_precision)
    accelerator.print(codec.describe(data))

    prompts = grid_prompts(config, captions)
    net, parts = model.joined()
    trainer = Trainer(
        net,
        parts,
        model.objective,
        codec,
        model.conditioning,
        data,
        config,
        accelerator,
        save=model.save,
        on_saved=push.during,
        draw=lambda path: prompt_grid(model.pipeline(), path, config, prompts),
        groups=model.groups(config),
    )
    return trainer, images, prompts[0]


if __name__ == "__main__":
    run(main)

"""Train a diffusion model on images: unconditional, or on class labels with --class_conditional.

Without a data set or a configuration it trains recipes/digits.yaml, on data that comes with scikit-learn.
"""

from snowmelt.config import parse
from snowmelt.errors import run
from snowmelt.options import UnconditionalConfig


def main() -> None:
    config = parse(UnconditionalConfig, default_recipe="digits", needs=("dataset_name", "train_data_dir"))

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    from pipelines import PixelDiffusionPipeline
    from snowmelt import run_folder
    from snowmelt.codec import PixelCodec
    from snowmelt.conditioning import make_conditioning
    from snowmelt.data.sources import load_images
    from snowmelt.environment import make_accelerator
    from snowmelt.models import make_unet
    from snowmelt.objectives import make_objective
    from snowmelt.publishing.during import HubPush
    from snowmelt.samples import sample_grid
    from snowmelt.trainer import Trainer

    objective = make_objective(config)
    accelerator = make_accelerator(config)
    checkpoint = run_folder.check(config)
    data = load_images(config)
    conditioning = make_conditioning(config, data)
    net = make_unet(
        config.model_size,
        config.model_config_name_or_path,
        resolution=config.resolution,
        channels=data.channels,
        num_class_embeds=conditioning.num_class_embeds,
        seed=config.seed,
    )
    if config.gradient_checkpointing:
        net.enable_gradient_checkpointing()

    def make_pipeline() -> PixelDiffusionPipeline:
        return PixelDiffusionPipeline(
            net,
            objective.scheduler(),
            prediction_type=objective.prediction_type,
            id2label=dict(enumerate(data.class_names or [])) if config.class_conditional else None,
            value_range=data.value_range if data.dtype.kind == "f" else None,  # that of integers is their type's
        )

    push = HubPush(config, accelerator)
    trainer = Trainer(
        net,
        {"unet": net},
        objective,
        PixelCodec(data.value_range),
        conditioning,
        data,
        config,
        accelerator,
        save=lambda folder: make_pipeline().save_pretrained(folder),
        on_saved=push.during,
        draw=lambda path: sample_grid(make_pipeline(), path, config),
    )
    push.open()
    if checkpoint:
        trainer.resume(checkpoint)
    run_folder.prepare(config, data, accelerator, fresh=checkpoint is None)
    trainer.fit()
    push.finish()
    accelerator.print(run_folder.summary(config, data))


if __name__ == "__main__":
    run(main)

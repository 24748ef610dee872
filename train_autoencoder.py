"""Train an autoencoder on images, the first stage of latent diffusion: AutoencoderKL, or VQModel with a codebook.

Without a data set or a configuration it trains recipes/digits-autoencoder.yaml, on data that comes with scikit-learn.
"""

from snowmelt.autoencoder.options import AutoencoderConfig
from snowmelt.config import parse
from snowmelt.errors import run


def main() -> None:
    config = parse(AutoencoderConfig, default_recipe="digits-autoencoder", needs=("dataset_name", "train_data_dir"))

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    from snowmelt import run_folder
    from snowmelt.autoencoder.discriminator import make_discriminator
    from snowmelt.autoencoder.losses import AutoencoderLoss, Passes
    from snowmelt.autoencoder.models import make_autoencoder
    from snowmelt.autoencoder.perceptual import make_perceptual
    from snowmelt.autoencoder.stage import Stage, make_extractor
    from snowmelt.codec import PixelCodec
    from snowmelt.conditioning import NoConditioning
    from snowmelt.data.held_out import load_splits
    from snowmelt.environment import make_accelerator
    from snowmelt.evaluation.real import RealImages
    from snowmelt.trainer import Trainer

    accelerator = make_accelerator(config)
    checkpoint = run_folder.check(config)
    data, held_out = load_splits(config)
    vae = make_autoencoder(config, data)
    discriminator = make_discriminator(config, data)
    images = RealImages(data, config.split, data.value_range)
    judged = RealImages(held_out, "held out", data.value_range) if held_out else images
    passes = Passes(vae, config.regularization, discriminator)
    criterion = AutoencoderLoss(
        passes, config, make_perceptual(config.perceptual, images, accelerator.device), step=lambda: trainer.step
    )
    extractor = make_extractor(config, images, accelerator.device)
    stage = Stage(vae, data, judged, extractor, config, accelerator, step=lambda: trainer.step)
    trainer = Trainer(
        passes,
        passes.parts,
        criterion,
        PixelCodec(data.value_range),
        NoConditioning(),
        data,
        config,
        accelerator,
        save=stage.save,
        draw=stage.draw,
        averaged=("vae",),
        groups=passes.groups,
    )
    if checkpoint:
        trainer.resume(checkpoint)
    with run_folder.opened(config, data, accelerator, fresh=checkpoint is None):
        accelerator.print(criterion.describe(trainer.total_steps))
        trainer.fit()
    accelerator.print(stage.summary())


if __name__ == "__main__":
    run(main)

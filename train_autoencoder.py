"""Train an autoencoder on images, the first stage of latent diffusion: AutoencoderKL, or VQModel with a codebook.

Without a data set or a configuration it trains recipes/digits-autoencoder.yaml, on data that comes with scikit-learn.
"""

from snowmelt.autoencoder.options import AutoencoderConfig
from snowmelt.config import parse
from snowmelt.errors import run


def main() -> int:
    config = parse(AutoencoderConfig, default_recipe="digits-autoencoder", needs=("dataset_name", "train_data_dir"))

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    from snowmelt import run_folder
    from snowmelt.environment import make_accelerator
    from snowmelt.tasks.autoencoder import AutoencoderTask
    from snowmelt.trainer import Trainer

    accelerator = make_accelerator(config)
    checkpoint = run_folder.check(config)
    task = AutoencoderTask.make(config, accelerator)
    trainer = Trainer(task, config, accelerator)
    if checkpoint:
        trainer.resume(checkpoint)
    with run_folder.opened(config, task.images, accelerator, fresh=checkpoint is None):
        accelerator.print(task.criterion.describe(trainer.total_steps))
        status = trainer.fit()
    accelerator.print(task.summary())
    return status


if __name__ == "__main__":
    run(main)

"""Train a diffusion model on images: unconditional, or on class labels with --class_conditional.

Without a data set or a configuration it trains recipes/digits.yaml, on data that comes with scikit-learn.
"""

from snowmelt.config import parse
from snowmelt.errors import run
from snowmelt.options import UnconditionalConfig


def main() -> int:
    config = parse(UnconditionalConfig, default_recipe="digits", needs=("dataset_name", "train_data_dir"))

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    from snowmelt import run_folder
    from snowmelt.environment import make_accelerator
    from snowmelt.image_conditions import example_arguments
    from snowmelt.publishing.during import HubPush
    from snowmelt.tasks.unconditional import UnconditionalTask
    from snowmelt.trainer import Trainer

    accelerator = make_accelerator(config)
    checkpoint = run_folder.check(config)
    push = HubPush(config, accelerator)
    task = UnconditionalTask.make(config, accelerator)
    validation = None
    if config.eval_steps:
        from snowmelt.evaluation.validation import make_validation  # brings the libraries of metrics

        validation = make_validation(config, task, accelerator)
    trainer = Trainer(task, config, accelerator, validation=validation, on_saved=push.during)
    push.open()
    if checkpoint:
        trainer.resume(checkpoint)
    with run_folder.opened(config, task.images, accelerator, fresh=checkpoint is None):
        status = trainer.fit()
        push.finish()
    arguments = example_arguments(config.condition) + ("class_labels=0, " if config.class_conditional else "")
    accelerator.print(run_folder.summary(config, task.images, arguments))
    if validation:
        accelerator.print(validation.summary())
    return status


if __name__ == "__main__":
    run(main)

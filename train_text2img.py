"""Train a text-to-image model on images with captions: from scratch, or from a pretrained one, whole, by LoRA or a
ControlNet.

Without a data set or a configuration it trains recipes/scenes.yaml, on a captioned set that it makes itself.
"""

from snowmelt.config import parse
from snowmelt.errors import run
from snowmelt.text.options import TextToImageConfig


def main() -> int:
    config = parse(
        TextToImageConfig,
        default_recipe="scenes",
        needs=("dataset_name", "train_data_dir"),
        defaults_with=("pretrained_model_name_or_path", "finetune"),
    )

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    from snowmelt import run_folder
    from snowmelt.environment import make_accelerator
    from snowmelt.image_conditions import example_arguments
    from snowmelt.publishing.during import HubPush
    from snowmelt.tasks.controlnet import ControlNetTask
    from snowmelt.tasks.finetuning import FinetuningTask
    from snowmelt.tasks.text_to_image import CaptionTask, TextToImageTask
    from snowmelt.tasks.textual_inversion import TextualInversionTask
    from snowmelt.trainer import Trainer

    accelerator = make_accelerator(config)
    checkpoint = run_folder.check(config)
    push = HubPush(config, accelerator)
    tuned = ControlNetTask if config.controlnet else FinetuningTask
    kind: type[CaptionTask] = tuned if config.pretrained_model_name_or_path else TextToImageTask
    kind = TextualInversionTask if config.placeholder_token is not None else kind
    task = kind.make(config, accelerator)
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
    arguments = f"{task.prompts[0]!r}, {example_arguments(config.condition)}"
    accelerator.print(run_folder.summary(config, task.images, arguments, config.pretrained_model_name_or_path))
    if validation:
        accelerator.print(validation.summary())
    return status


if __name__ == "__main__":
    run(main)

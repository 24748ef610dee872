"""`--push_to_hub`: a published folder, made from the run's, in one commit."""

import shutil
import tempfile
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import HfApi

from pipelines import PixelDiffusionPipeline
from snowmelt.errors import UserError
from snowmelt.options import UnconditionalConfig


def check(config: UnconditionalConfig, accelerator: Accelerator) -> None:
    """Create the repository, before training starts, so that a bad token or name is known by then.

    Raises:
        UserError: if it can't be created or written to.
    """
    if not (config.push_to_hub and accelerator.is_main_process):
        return
    name = config.hub_model_id or Path(config.output_dir).resolve().name
    try:
        api = HfApi(token=config.hub_token)
        config.hub_model_id = api.create_repo(name, private=config.hub_private_repo or None, exist_ok=True).repo_id
    except Exception as error:  # a bad name, token or network, the last as whatever HTTP library is underneath says it
        raise UserError(f"--push_to_hub to {name}: {' '.join(str(error).split())}") from error


def export(run: Path, folder: Path) -> None:
    """Make of a run's folder one that holds only what is published.

    That is the pipeline with its own code, the last sample grid and the loss plot: no checkpoints, no logs, and
    no configuration, which names local paths.
    """
    pipeline = PixelDiffusionPipeline.from_pretrained(run)
    pipeline.save_pretrained(folder)
    pipeline.complete(folder)
    grid = max((run / "samples").glob("step-*"))
    shutil.copy(grid, folder / f"samples{grid.suffix}")
    shutil.copy(run / "loss.png", folder)


def push(config: UnconditionalConfig, accelerator: Accelerator) -> None:
    """Upload what the run made.

    Raises:
        UserError: if the upload fails; the local folder is complete, and how to repeat it is said.
    """
    if not (config.push_to_hub and accelerator.is_main_process):
        return
    with tempfile.TemporaryDirectory() as folder:
        export(Path(config.output_dir), Path(folder))
        try:
            info = HfApi(token=config.hub_token).upload_folder(
                repo_id=str(config.hub_model_id), folder_path=folder, commit_message="Trained model"
            )
        except Exception as error:
            raise UserError(
                f"the model is complete in {config.output_dir}, but its upload to {config.hub_model_id} failed "
                f"({' '.join(str(error).split())}); the same command with --resume_from_checkpoint latest repeats it"
            ) from error
    accelerator.print(f"uploaded to {info.commit_url}")

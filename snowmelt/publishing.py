"""`--push_to_hub`: the pipeline folder on the Hub."""

from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import HfApi

from snowmelt.errors import UserError
from snowmelt.options import UnconditionalConfig

PUBLISHED = [
    "model_index.json",
    "config.yaml",
    "loss.png",
    "unet/*",
    "unet_ema*/*",
    "scheduler/*",
    "samples/*.png",
]


def _repository(config: UnconditionalConfig) -> str:
    return config.hub_model_id or Path(config.output_dir).resolve().name


def check(config: UnconditionalConfig, accelerator: Accelerator) -> None:
    """Create the repository, before training starts, so that a bad token or name is known by then.

    Raises:
        UserError: if it can't be created or written to.
    """
    if not (config.push_to_hub and accelerator.is_main_process):
        return
    try:
        api = HfApi(token=config.hub_token)
        config.hub_model_id = api.create_repo(
            _repository(config), private=config.hub_private_repo or None, exist_ok=True
        ).repo_id
    except Exception as error:  # a bad name, token or network, the last as whatever HTTP library is underneath says it
        reason = " ".join(str(error).split())
        raise UserError(f"--push_to_hub to {_repository(config)}: {reason}") from error


def push(config: UnconditionalConfig, accelerator: Accelerator) -> None:
    """Upload what the run made, in one commit: never checkpoints, logs or the token.

    Raises:
        UserError: if the upload fails; the local folder is complete and the command to repeat is named.
    """
    if not (config.push_to_hub and accelerator.is_main_process):
        return
    repository = _repository(config)
    try:
        info = HfApi(token=config.hub_token).upload_folder(
            repo_id=repository,
            folder_path=config.output_dir,
            allow_patterns=PUBLISHED,
            commit_message="Trained model",
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the model is complete in {config.output_dir}, but its upload failed ({reason}); "
            f"repeat it with: hf upload {repository} {config.output_dir} --exclude 'checkpoint-*/*'"
        ) from error
    accelerator.print(f"uploaded to {info.commit_url}")

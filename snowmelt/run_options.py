"""Options of a run: its folder, its trackers, the Hub, and flags that are taken for the sake of old command lines."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from snowmelt.config import Config, option
from snowmelt.errors import UserError


@dataclass(kw_only=True)
class RunOptions(Config):
    """Run."""

    output_dir: str = option(
        "ddpm-model-64", "folder of the pipeline, checkpoints, samples and logs", resumable=True, published=False
    )
    overwrite_output_dir: bool = option(False, "replace what an earlier run left there", resumable=True, saved=False)
    checkpointing_steps: int = option(500, "optimizer steps between checkpoints", minimum=1, resumable=True)
    checkpoints_total_limit: int | None = option(
        None, "how many of the newest checkpoints to keep", minimum=1, resumable=True
    )
    resume_from_checkpoint: str | None = option(None, "'latest', checkpoint-N or a path", resumable=True, saved=False)
    save_images_epochs: int = option(
        10,
        "epochs between sample grids; 0 for the last only",
        minimum=0,
        resumable=True,
        aliases=("validation_epochs",),
    )
    save_model_epochs: int = option(
        10, "epochs between saved pipelines; 0 for the last only", minimum=0, resumable=True
    )
    eval_batch_size: int = option(16, "images in a sample grid", minimum=1, resumable=True)
    logger: str | None = option(
        None,
        "tracker beside metrics.jsonl",
        choices=("tensorboard", "wandb", "comet_ml", "trackio", "all"),
        resumable=True,
        aliases=("report_to",),
    )
    logging_dir: str = option("logs", "the tracker's folder, inside output_dir", resumable=True, published=False)
    tracker_project_name: str = option("snowmelt", "the tracker's project", resumable=True, published=False)
    logging_steps: int = option(10, "optimizer steps between log lines", minimum=1, resumable=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = Path(self.logging_dir).parts
        if Path(self.logging_dir).is_absolute() or ".." in parts:
            raise UserError(
                f"--logging_dir {self.logging_dir}: must be a folder inside --output_dir; give its name alone"
            )


@dataclass(kw_only=True)
class HistoricalOptions(Config):
    """Flags of diffusers' scripts that have no effect here."""

    local_rank: int = option(-1, "ignored: the launcher says it in LOCAL_RANK", minimum=-1, resumable=True, saved=False)
    enable_xformers_memory_efficient_attention: bool = option(
        False, "ignored: PyTorch's own attention is as sparing", resumable=True, saved=False
    )
    foreach_ema: bool = option(False, "ignored: it is always so", resumable=True, saved=False)
    offload_ema: bool = option(False, "ignored: the EMA stays on the device", resumable=True, saved=False)

    def ignored(self) -> list[str]:
        """A line for each of these flags that was given."""
        fields = {f.name: f for f in dataclasses.fields(HistoricalOptions)}
        given = [f for f in fields.values() if getattr(self, f.name) != f.default]
        return [f"--{f.name} is {f.metadata['help']}" for f in given]


@dataclass(kw_only=True)
class HubOptions(Config):
    """Hub."""

    push_to_hub: bool = option(False, "upload the pipeline when training ends", resumable=True, published=False)
    hub_model_id: str | None = option(
        None, "repository, as user/name; the output folder's name by default", resumable=True, published=False
    )
    hub_private_repo: bool = option(False, "make the repository private", resumable=True, published=False)
    hub_token: str | None = option(None, "write token; that of `hf auth login` by default", resumable=True, saved=False)
    license: str = option(
        "unknown",
        "license of the published model, as the Hub abbreviates it",
        resumable=True,
        published=False,
    )

"""Options of models that others teach. Nothing here imports torch, so that `--help` is immediate."""

from dataclasses import dataclass

from snowmelt.config import Config, option
from snowmelt.errors import UserError


@dataclass(kw_only=True)
class FewStepOptions(Config):
    """Pretrained models."""

    pretrained_model_name_or_path: str | None = option(
        None, "model to begin with the weights of: its folder, or a Hub name", path=True
    )
    teacher: str | None = option(
        None, "of flow maps: a model whose velocity they follow, in place of the images'", path=True
    )
    teacher_guidance_scale: float = option(
        1.0, "guidance of the teacher, which the model then has by itself; 1 for none", minimum=0, maximum=1000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is None and self.teacher_guidance_scale != 1:
            raise UserError("--teacher_guidance_scale: needs --teacher")

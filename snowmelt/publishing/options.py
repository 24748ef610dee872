"""What `publish.py` takes. Nothing here imports torch, so that `--help` is immediate."""

import re
from dataclasses import dataclass

from snowmelt.config import Config, option
from snowmelt.errors import UserError


@dataclass(kw_only=True)
class PublishConfig(Config):
    """What is published, and where."""

    model: str | None = option(None, "folder of the run or the pipeline; required")
    hub_model_id: str | None = option(None, "repository, as user/name; required")
    hub_token: str | None = option(None, "write token; that of `hf auth login` by default")
    private: bool = option(False, "make the repository private, where it is created")
    create_pr: bool = option(False, "open a pull request in place of committing")
    revision: str | None = option(None, "branch to commit to, which is made if there is none; main by default")
    variant: str | None = option(None, "add the weights in half precision", choices=("fp16", "bf16"))
    stock_pipeline: bool | None = option(
        None, "publish as diffusers' own pipeline, which loads without code of ours; done where nothing is lost by it"
    )
    license: str = option("unknown", "its name on the Hub: apache-2.0, cc-by-4.0, ...")
    dataset_name: str | None = option(None, "the data set's name on the Hub, where the run read a copy of it")
    report: str | None = option(None, "folder that evaluate.py wrote; MODEL/report by default")
    space: bool = option(False, "also make a Space of that name, a page that samples the model")
    static_space: str | None = option(
        None,
        "also make a Space, user/name, that samples the model in the visitor's browser, without a server",
    )
    output_dir: str | None = option(None, "write the published folder here, an empty one, and upload nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("model", "hub_model_id"):
            if getattr(self, name) is None:
                raise UserError(f"--{name}: needed; {self.fields()[name].metadata['help']}")
        if self.output_dir and (self.create_pr or self.space or self.static_space or self.revision):
            others = "--create_pr, --revision, --space and --static_space"
            raise UserError(f"--output_dir uploads nothing: drop it, or {others}")
        if self.space and self.static_space == self.hub_model_id:
            raise UserError(f"--static_space: --space makes a Space of the name {self.static_space}; give another name")
        name_on_hub = r"\w[\w.-]*(/\w[\w.-]*)?"
        names = dict.fromkeys(("hub_model_id", "static_space", "dataset_name"), name_on_hub)
        names["license"] = r"[\w.+-]+"
        for name, allowed in names.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(allowed, value, re.ASCII):
                raise UserError(f"--{name}: {value!r} is not a name that the Hub allows")

"""Downloads that are checked: a byte that changed on its way is an error, not a model that is a little wrong."""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name


class VerifiedDownloadMixin:
    """Base of pipelines whose files, when they have just been downloaded, are compared with the Hub's checksums.

    The Hub's client compares lengths. The checksums of a revision are one request more, and a look at each file, paid
    when something new came.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As diffusers does it.

        Raises:
            TypeError: for what is neither a folder nor a name.
            ValueError: for an empty name, or settings that the pipeline refuses.
            OSError: if there is no such pipeline, or a part of it can't be read.
        """
        source = pretrained_model_name_or_path
        if not isinstance(source, str | os.PathLike):
            raise TypeError(
                f"pretrained_model_name_or_path: must be a folder or a name on the Hub, got {type(source).__name__}"
            )
        if not str(source):
            raise ValueError("pretrained_model_name_or_path: is empty; give a folder or a name on the Hub")
        return super().from_pretrained(source, **kwargs)  # type: ignore[misc]

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """As diffusers does it, and verified.

        Raises:
            OSError: if a file isn't what the Hub holds. It is removed, so that the next call fetches it again.
        """
        cache = Path(kwargs.get("cache_dir") or constants.HF_HUB_CACHE)
        snapshots = cache / repo_folder_name(repo_id=pretrained_model_name, repo_type="model") / "snapshots"
        before = set(snapshots.glob("*/**/*"))
        folder = Path(super().download(pretrained_model_name, **kwargs))  # type: ignore[misc]
        if not set(folder.glob("**/*")) - before:
            return str(folder)
        try:
            mismatches = (
                HfApi()
                .verify_repo_checksums(
                    pretrained_model_name, revision=folder.name, cache_dir=cache, token=kwargs.get("token")
                )
                .mismatches
            )
        except BaseException:
            shutil.rmtree(folder)  # links to the files, which stay: the next call verifies them
            raise
        for mismatch in mismatches:
            path = folder / mismatch["path"]
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        if mismatches:
            names = ", ".join(mismatch["path"] for mismatch in mismatches)
            raise OSError(f"{pretrained_model_name}: {names} arrived damaged and was removed; load it again")
        return str(folder)

"""Downloads that are checked: a byte that changed on its way is an error, not a model that is a little wrong."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name


def cached_files(repo_id: str, cache_dir: str | None) -> set[Path]:
    """Files of a repository's revisions in the cache."""
    folder = _cache(cache_dir) / repo_folder_name(repo_id=repo_id, repo_type="model") / "snapshots"
    return set(folder.glob("*/**/*"))


def verify_snapshot(repo_id: str, snapshot: Path, *, cache_dir: str | None, token: Any) -> None:
    """Compare a downloaded revision with the Hub's checksums; the Hub's client compares lengths.

    That is one request more, and a look at each file. Where the request fails, the revision's folder is removed, so
    that the next call verifies it.

    Args:
        repo_id: of the repository, as "owner/name".
        snapshot: the revision's folder in the cache, named by its commit.
        cache_dir: the cache; None for that of the Hub's client.
        token: for the Hub, as its client takes it.

    Raises:
        OSError: if a file isn't what the Hub holds. It is removed, so that the next call fetches it again.
    """
    try:
        checked = HfApi().verify_repo_checksums(
            repo_id, revision=snapshot.name, cache_dir=_cache(cache_dir), token=token
        )
    except BaseException:
        shutil.rmtree(snapshot)  # links to the files, which stay: the next call verifies them
        raise
    for mismatch in checked.mismatches:
        path = snapshot / mismatch["path"]
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    if checked.mismatches:
        names = ", ".join(mismatch["path"] for mismatch in checked.mismatches)
        raise OSError(f"{repo_id}: {names} arrived damaged and was removed; load it again")


def _cache(cache_dir: str | None) -> Path:
    return Path(cache_dir or constants.HF_HUB_CACHE)

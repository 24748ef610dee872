"""The folder of generated images, which may hold those of another run."""

import re
from pathlib import Path
from typing import Any

from snowmelt.errors import UserError
from snowmelt.files import read_mapping

SETTINGS_FILE = "settings.json"
OWN_FILES = re.compile(r"\d{6,}\.(png|npy)|(grid|strip|before-after)\.png|trajectory\.gif")


def check_folder(folder: Path, wanted: dict[str, Any], expected: set[str], overwrite: bool) -> list[Path]:
    """Images in the folder that are of another model or other settings, and are to be removed.

    Args:
        folder: where images are to be written, which may not exist.
        wanted: the settings, which an earlier run left in SETTINGS_FILE.
        expected: names of the files of this run, which will be replaced.
        overwrite: whether images of another run may be replaced and removed.

    Raises:
        UserError: if there are any, unless `overwrite`.
    """
    own = sorted(path for path in folder.glob("*") if OWN_FILES.fullmatch(path.name))
    if not own:
        return []
    there = folder / SETTINGS_FILE
    if not overwrite:
        what = f"--output_dir: {folder} holds {len(own)} images ({own[0].name}, ...)"
        advice = "give another folder, or --overwrite_output_dir to replace them"
        if not there.is_file():
            raise UserError(f"{what}, and no {SETTINGS_FILE} that says what made them; {advice}")
        saved = read_mapping(there)
        differing = [name for name in {**wanted, **saved} if saved.get(name) != wanted.get(name)]
        if differing:
            name = differing[0]
            was = f"--{name} {saved.get(name)!r} (now {wanted.get(name)!r})"
            was = f"other {name.replace('_', ' ')}" if name.endswith(("weights", "images")) else was
            raise UserError(f"{what} made with {was}; {advice}")
        return []
    return [path for path in own if path.name not in expected]

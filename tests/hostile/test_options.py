"""Values that options refuse, before anything is read."""

import pytest

from tests.hostile.conftest import Refuse

CASES = [
    ("train_unconditional.py --seed -1", r"^error: --?seed: -1 is less than 0"),
]


@pytest.mark.parametrize(("command", "line"), CASES)
def test_refused(refuse: Refuse, command: str, line: str) -> None:
    refuse(command, line)

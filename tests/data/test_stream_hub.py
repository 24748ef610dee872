"""Streaming from the Hub, which stumbles meanwhile: no row is lost or seen twice, or one line says why it ended.

In another process, since `datasets` takes the Hub's address when it is imported.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.data.shards import png, write_images, write_parquet, write_tars
from tests.hub_server.examples import contents

pytest_plugins = ["tests.hub"]

CHILD = """
import http.client, itertools, json, os, sys, time
from types import SimpleNamespace
from urllib.parse import urlsplit

import torch
from huggingface_hub.utils import _http

slept = []
_http.time = SimpleNamespace(sleep=slept.append, time=time.time, monotonic=time.monotonic)  # between attempts

from snowmelt.data import storage
from snowmelt.data.held_out import load_splits
from snowmelt.data.loader import batches
from snowmelt.errors import UserError
from snowmelt.options import HeldOutOptions
from tests.data.shards import rows_of

storage.DELAYS = (0.01,) * 6
PLAIN = {"seed": 0, "start_step": 0, "rank": 0, "world_size": 1, "accumulation": 1, "num_workers": 2}


def faults(method, *orders):
    for order in orders or [{}]:
        connection = http.client.HTTPConnection(urlsplit(os.environ["HF_ENDPOINT"]).netloc, timeout=10)
        connection.request(method, "/faults", json.dumps(order))
        assert connection.getresponse().status == 200


def outcome(orders, **words):
    options = HeldOutOptions(resolution=4, streaming=True, shuffle_buffer_size=16, cache_dir=sys.argv[2], **words)
    seen, wrong = [], 0
    try:
        images, _ = load_splits(options, labels=True)
        faults("POST", *orders) if orders else None
        how = PLAIN | {"batch_size": 10, "device": torch.device("cpu"), "random_flip": False, "labels": True}
        stream = batches({"image": images}, **how)
        for batch in itertools.islice(stream, len(images) // 10):
            seen += batch["indices"].tolist()
            rows = torch.from_numpy(rows_of(batch["image"].numpy()))
            wrong += int((rows % 3 != batch["label"]).sum())
        stream.close()
        return {"rows": sorted(seen) == list(range(len(images))), "wrong": wrong, "classes": images.class_names}
    except UserError as error:
        return {"line": str(error), "twice": len(seen) - len(set(seen))}
    finally:
        faults("DELETE")


print(json.dumps([outcome(**words) for words in json.loads(sys.argv[1])]))
"""


def fault(kind: str, times: int | None, pattern: str = "train-00001.*parquet") -> dict:
    """An order, of requests for a shard."""
    return {"method": "GET", "pattern": pattern, "kind": kind, "seconds": 1} | ({"times": times} if times else {})


def write_table(folder: Path) -> Path:
    """Images of which a wrong bit is most of all in the pixels."""
    return write_parquet(folder, encode=lambda row: png(row, side=12))


SETS = {"alice/table": write_table, "alice/tars": write_tars, "alice/pictures": write_images}
GOOD = {"rows": True, "wrong": 0, "classes": ["a", "b", "c"]}
CASES: list[tuple[dict, dict | str]] = [
    ({"orders": [], "dataset_name": "alice/table"}, GOOD),
    ({"orders": [], "dataset_name": "alice/tars", "label_column": "cls"}, GOOD | {"classes": ["0", "1", "2"]}),
    ({"orders": [], "dataset_name": "alice/pictures"}, GOOD),
    ({"orders": [], "train_data_dir": "hf://datasets/alice/table"}, GOOD),
    *(({"orders": [fault(*order)], "dataset_name": "alice/table"}, GOOD) for order in [
        ("rate limit", 3), ("error", 12), ("unavailable", 12), ("drop", 12), ("lose", 3), ("truncate", 2),
        ("corrupt", 2),
    ]),
    ({"orders": [fault("error", 8, "pictures.*png")], "dataset_name": "alice/pictures"}, GOOD),
    ({"orders": [fault("corrupt", 4, "pictures.*png")], "dataset_name": "alice/pictures"}, GOOD),
    ({"orders": [fault("gone", None)], "dataset_name": "alice/table"}, "can't be read: there is no such data set or "),
    ({"orders": [fault("error", None)], "dataset_name": "alice/table"}, "can't be read: the Hub answered 500; try "),
    ({"orders": [fault("truncate", None)], "dataset_name": "alice/table"}, "can't be read: "),
    ({"orders": [fault("corrupt", None)], "dataset_name": "alice/table"}, "can't be read: "),
    ({"orders": [], "dataset_name": "alice/never"}, "alice/never: can't be opened: there is no such data set"),
    ({"orders": [], "dataset_name": "alice/table", "split": "dev"}, "--split dev: alice/table has train"),
]  # fmt: skip


@pytest.fixture(scope="module")
def found(running, tmp_path_factory) -> list[dict]:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import close_session

    folder: Path = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        close_session()
        api = HfApi(running.endpoint, running.token("alice"))
        for name, write in SETS.items():
            api.create_repo(name, repo_type="dataset")
            api.upload_folder(repo_id=name, folder_path=write(folder / name), repo_type="dataset")
            assert contents(folder / name)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([words for words, _ in CASES]), str(folder / "cache")],
        env=running.environment(running.token("alice", "read"), folder / "home")
        | {"OMP_NUM_THREADS": "1", "HTTP_PROXY": "", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_streamed_from_the_hub(found, number):
    outcome, (words, expected) = found[number], CASES[number]
    if isinstance(expected, dict):
        assert outcome == expected, words
        return
    assert expected in outcome["line"]
    assert outcome["line"].isprintable()
    assert outcome["twice"] == 0
    if words["orders"]:
        assert "train-00001-of-00003.parquet: " in outcome["line"]

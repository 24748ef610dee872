"""Data sets of the Hub: what can be read, and what is said of the rest. In other processes, since `datasets` takes the
Hub's address when it is imported."""

import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.conftest import ROOT
from tests.hub_server.examples import upload

pytest_plugins = ["tests.hub"]

CHILD = """
import json, sys, time
from types import SimpleNamespace
from huggingface_hub.utils import _http
_http.time = SimpleNamespace(sleep=lambda _: None, time=time.time, monotonic=time.monotonic)  # between attempts

from snowmelt.data.captions import load_captioned
from snowmelt.data.sources import load_images
from snowmelt.errors import UserError
from snowmelt.options import DataOptions

def outcome(captions=False, **words):
    options = DataOptions(resolution=4, cache_dir=sys.argv[2], **words)
    try:
        if captions:
            return load_captioned(options, None, skip_empty=False)[1].texts
        cache = load_images(options)
        return [cache.as_tensor()[:, 0, 0, 0].tolist(), cache.class_names]
    except UserError as error:
        return str(error)

print(json.dumps([outcome(**words) for words in json.loads(sys.argv[1])]))
"""


def outcomes(cases: list[dict], environment: dict[str, str], tmp_path) -> list:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(cases), str(tmp_path / "cache")],
        env=environment | {"OMP_NUM_THREADS": "1", "HTTP_PROXY": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), shade).save(file, "png")
    return file.getvalue()


def table(*rows: dict) -> bytes:
    schema = datasets.Features({"image": datasets.Image()}).arrow_schema
    file = io.BytesIO()
    parquet.write_table(pa.table({"image": pa.array(list(rows), schema.field("image").type)}, schema=schema), file)
    return file.getvalue()


def zipped(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/") + ".png", content)
    return file.getvalue()


GOOD = table({"bytes": png(7), "path": "a.png"})
CARD = b"---\nconfigs:\n- config_name: a\n  data_files: %s\n---\n"
SETS = {
    "alice/table": {"data/train.parquet": GOOD},
    "alice/images": {"train/cats/a.png": png(1), "train/dogs/b.png": png(2), "test/dogs/c.png": png(3)},
    "alice/captioned": {"a.png": png(1), "b.png": png(2), "metadata.csv": b"file_name,text\na.png,NA\nb.png,null\n"},
    "alice/zip": {"data.zip": zipped(cats__a=png(1), dogs__b=png(2))},
    "alice/climbs": {"a.png": png(1), "metadata.csv": b"file_name,text\n/etc/passwd,one\n"},
    "alice/rows": {"train.parquet": table({"bytes": None, "path": "/etc/passwd"})},
    "alice/card": {"README.md": CARD % b"/etc/*.conf", "a.parquet": GOOD},
    "alice/others": {"README.md": CARD % b"hf://datasets/alice/table/data/train.parquet", "a.parquet": GOOD},
    "alice/two": {"README.md": CARD % b"a.parquet\n- config_name: b\n  data_files: a.parquet", "a.parquet": GOOD},
    "alice/corrupt": {"train.parquet": b"PAR1" + bytes(50) + b"PAR1"},
    **{f"alice/{name}": {"data/train.parquet": GOOD} for name in ("down", "dropped", "busy")},
    "alice/nothing": {"README.md": b"hello"},
}
FAULTS = {"down": "unavailable", "dropped": "drop", "busy": "rate limit"}
CASES: list[tuple[dict, object]] = [
    ({"dataset_name": "alice/table"}, [[7], None]),
    ({"dataset_name": "alice/images"}, [[1, 2], ["cats", "dogs"]]),
    ({"dataset_name": "alice/images", "split": "test"}, [[3], ["cats", "dogs"]]),
    ({"dataset_name": "alice/images", "split": "train[1:]+test"}, [[2, 3], ["cats", "dogs"]]),
    ({"dataset_name": "alice/captioned", "captions": True}, ["NA", "null"]),
    ({"dataset_name": "alice/zip"}, [[1, 2], ["cats", "dogs"]]),
    ({"dataset_name": "alice/two", "dataset_config_name": "b"}, [[7], None]),
    ({"dataset_name": "alice/climbs"}, "row 1: file_name names /etc/passwd, outside of the folder"),
    ({"dataset_name": "alice/rows"}, "alice/rows: row 0 names the file /etc/passwd, outside "),
    ({"dataset_name": "alice/card"}, "alice/card: can't be opened: "),
    ({"dataset_name": "alice/others"}, "alice/others: can't be opened: "),
    ({"dataset_name": "alice/two"}, "--dataset_config_name None: Config name is missing"),
    ({"dataset_name": "alice/two", "dataset_config_name": "c"}, "--dataset_config_name c: BuilderConfig 'c' not found"),
    ({"dataset_name": "alice/corrupt"}, "alice/corrupt: can't be read: "),
    ({"dataset_name": "alice/nothing"}, "alice/nothing: can't be opened: "),
    ({"dataset_name": "alice/never"}, "alice/never: can't be opened: there is no such data set or revision on the Hub"),
    ({"dataset_name": "alice/down"}, "alice/down: can't be opened: the Hub answered 503; try again later"),
    ({"dataset_name": "alice/dropped"}, "can't be reached, or is no Hub; check the network"),
    ({"dataset_name": "alice/busy"}, "the Hub has had too many requests; wait some minutes"),
    ({"dataset_name": "alice/table", "split": "dev"}, "--split dev: alice/table has train"),
    ({"dataset_name": "alice/table", "split": "train[1:]"}, "--split train[1:]: no rows in it; train has 1"),
]


def check(outcome: object, expected: object) -> None:
    if isinstance(expected, str):
        assert isinstance(outcome, str)
        assert expected in outcome
        assert outcome.isprintable()
    else:
        assert outcome == expected


def test_data_sets(hub, api, tmp_path):
    for name, files in SETS.items():
        api.create_repo(name, repo_type="dataset")
        for path, content in files.items():
            upload(api, name, content, path, repo_type="dataset")
    for name, fault in FAULTS.items():
        hub.fault("GET", f"/api/datasets/alice/{name}", fault, times=None)
    environment = hub.environment(hub.token("alice", "read"), tmp_path / "home")
    found = outcomes([words for words, _ in CASES], environment, tmp_path)
    for outcome, (_, expected) in zip(found, CASES, strict=True):
        check(outcome, expected)


class Odd(BaseHTTPRequestHandler):
    """A server that isn't a Hub, or one in trouble: which, is the user's name in the address."""

    def respond(self) -> None:
        status, headers, body = 200, {}, b"<!doctype html><title>Log in</title>"
        if "/loop/" in self.path:
            status, headers = 302, {"Location": self.path}
        elif "/list/" in self.path:
            body = b"[1, 2]"
        for code in (401, 403, 404, 429, 500):
            if f"/s{code}/" in self.path:
                status = code
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = respond  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


LINES = {
    "html": "can't be reached, or is no Hub; check the network, the proxy and HF_ENDPOINT",
    "list": "can't be reached, or is no Hub",
    "loop": "answers with redirects in a circle; check HF_ENDPOINT and the proxy",
    "s401": "the Hub wants a token that may read it; run `hf auth login`, or set HF_TOKEN",
    "s403": "the Hub lets this token not read it; ask for access",
    "s404": "there is no such data set or revision on the Hub, or this token may not see it",
    "s429": "the Hub has had too many requests; wait some minutes",
    "s500": "the Hub answered 500; try again later",
}


def test_hubs_in_trouble(hub, odd, tmp_path):
    environment: Callable = hub.environment
    given = environment("hf_token", tmp_path / "home") | {"HF_ENDPOINT": odd}
    for outcome, (name, line) in zip(
        outcomes([{"dataset_name": f"{name}/data"} for name in LINES], given, tmp_path), LINES.items(), strict=True
    ):
        check(outcome, f"{name}/data: can't be opened: ")
        check(outcome, line)

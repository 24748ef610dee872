"""Data sets that anybody may have made, and what is asked of them."""

import json
import os
import pickle
import socket
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from huggingface_hub.utils import _http
from PIL import Image
from pyarrow import parquet

from tests.hostile.conftest import Refuse
from tests.pipelines.models import tiny_pipeline

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def save(path: Path, shade: int = 1, mode: str = "L", size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade).save(path)
    return path


def table(path: Path, rows: list, **columns: list) -> None:
    """A parquet file with a column of images as they are stored: bytes, and a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"image": datasets.Image()})
    made = pa.table({"image": pa.array(rows, IMAGE)}, schema=features.arrow_schema)
    for name, values in columns.items():
        made = made.append_column(name, pa.array(values))
    parquet.write_table(made, path)


def encoded(shade: int = 1) -> dict:
    made = datasets.Image().encode_example(Image.new("L", (4, 4), shade))
    return {"bytes": made["bytes"], "path": None}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sandbox")
    save(root / "secret.png")
    paths(root)
    described(root)
    files(root)
    saved(root)
    columns(root)
    ids = {i: str(i) for i in range(10)}
    tiny_pipeline(FlowMatchEulerDiscreteScheduler(), num_class_embeds=11, id2label=ids).save_pretrained(root / "model")
    return root


def paths(root: Path) -> None:
    """Rows that name files elsewhere."""
    for name, path in {
        "absolute": "/etc/passwd",
        "own-absolute": str(root / "secret.png"),
        "climbs": "../secret.png",
        "deep": "x/../../secret.png",
        "relative": "secret.png",
        "url": "file:///etc/passwd",
        "http": "http://127.0.0.1:9/a.png",
        "hub": "hf://datasets/user/name/a.png",
        "zip": f"zip://a.png::{root}/outer.zip",
        "zip-url": "zip://a.png::http://127.0.0.1:9/a.zip",
        "null": "a\0b.png",
        "link": "out.dat",
        "fifo": "pipe.dat",
        "folder": "sub",
        "npy": "/etc/x.npy",
        "home": "~/a.png",
        "lines": "/etc/\nerror: forged",
    }.items():
        table(root / f"rows-{name}" / "train.parquet", [encoded(), {"bytes": None, "path": path}], text=["a", "b"])
    (root / "rows-link" / "out.dat").symlink_to(root / "secret.png")
    os.mkfifo(root / "rows-fifo" / "pipe.dat")
    (root / "rows-folder" / "sub").mkdir()
    with zipfile.ZipFile(root / "outer.zip", "w") as archive:
        archive.write(root / "secret.png", "a.png")
    table(root / "empty-rows" / "train.parquet", [encoded(), None])
    # A card that names files of others.
    for name, file in {"card-absolute": root / "rows-null" / "train.parquet", "card-climbs": "../rows-null/*"}.items():
        (root / name).mkdir()
        (root / name / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {file}\n---\n"
        )
        table(root / name / "a.parquet", [encoded()])
    (root / "card-broken").mkdir()
    (root / "card-broken" / "README.md").write_text("---\nconfigs: {[\n---\n")
    table(root / "card-broken" / "a.parquet", [encoded()])


def described(root: Path) -> None:
    """metadata.csv and its kin."""
    for name, content in {
        "csv-absolute": "file_name,text\n/etc/passwd,a\n",
        "csv-own-absolute": f"file_name,text\n{root}/csv-own-absolute/a.png,a\n",
        "csv-climbs": "file_name,text\na.png,a\n../secret.png,a\n",
        "csv-url": "file_name,text\nfile:///etc/passwd,a\n",
        "csv-zip": f"file_name,text\nzip://a.png::{root}/outer.zip,a\n",
        "csv-empty": "",
        "csv-header": "file_name,text\n",
        "csv-no-name": "name,text\na.png,a\n",
        "csv-no-value": "file_name,text\n,a\n",
        "csv-missing": "file_name,text\nb.png,a\n",
        "csv-comma": "file_name,text\na.png,a dog, a cat\n",
        "csv-short": "file_name,text\na.png\n",
        "csv-quote": 'file_name,text\na.png,"a dog\n',
        "csv-twice": "file_name,text,text\na.png,a,b\n",
        "csv-both": "file_name,image,text\na.png,a,b\n",
        "csv-latin": "file_name,text\na.png,caf\xe9\n".encode("latin-1"),
        "csv-blank": "file_name,text\na.png,a\na.png,  \n",
        "csv-folder": "file_name,text\nsub,a\n",
        "csv-link": "file_name,text\nbroken.png,a\n",
    }.items():
        save(root / name / "a.png")
        (root / name / "sub").mkdir()
        path = root / name / "metadata.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (root / "csv-link" / "broken.png").symlink_to("nowhere.png")
    for name, content in {
        "jsonl-empty": "",
        "jsonl-blank": "\n\n",
        "jsonl-html": "<!doctype html>\n",
        "jsonl-list": "[1]\n",
        "jsonl-cut": '{"file_name": "a.png", "text": "a"}\n{"file_na',
        "jsonl-number": '{"file_name": 5, "text": "a"}\n',
        "jsonl-null": '{"file_name": null, "text": "a"}\n',
        "jsonl-nan": '{"file_name": "a.png", "x": NaN}\n',
        "jsonl-twice": '{"file_name": "a.png", "file_name": "b.png"}\n',
        "jsonl-climbs": '{"file_name": "../secret.png", "text": "a"}\n',
        "jsonl-types": '{"file_name": "a.png", "text": "a"}\n{"file_name": "a.png", "text": 5}\n',
        "jsonl-deep": "[" * 100_000 + "\n",
        "jsonl-mask": '{"file_name": "a.png", "mask_file_name": "/etc/passwd", "text": "a"}\n',
    }.items():
        save(root / name / "a.png")
        (root / name / "metadata.jsonl").write_text(content)
    save(root / "parquet-corrupt" / "a.png")
    (root / "parquet-corrupt" / "metadata.parquet").write_bytes(b"PAR1" + bytes(50) + b"PAR1")
    save(root / "parquet-climbs" / "a.png")
    parquet.write_table(pa.table({"file_name": ["../secret.png"]}), root / "parquet-climbs" / "metadata.parquet")
    save(root / "parquet-second" / "a.png")
    second = datasets.Features({"file_name": datasets.Value("string"), "mask": datasets.Image()}).arrow_schema
    rows = {"file_name": ["a.png"], "mask": [{"bytes": None, "path": "/etc/passwd"}]}
    parquet.write_table(pa.table(rows, schema=second), root / "parquet-second" / "metadata.parquet")
    save(root / "two-kinds" / "x" / "a.png")
    save(root / "two-kinds" / "y" / "a.png")
    (root / "two-kinds" / "x" / "metadata.csv").write_text("file_name,text\na.png,5x\n")
    (root / "two-kinds" / "y" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": 5}\n')
    save(root / "metadata-fifo" / "a.png")
    os.mkfifo(root / "metadata-fifo" / "metadata.csv")


def files(root: Path) -> None:
    """Folders of odd files."""
    for name in ("fifo", "socket", "dangling", "folder", "loop", "null", "long", "cut", "text", "zero"):
        save(root / name / "a.png")
    os.mkfifo(root / "fifo" / "b.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root / "socket")  # whose path may be too long for an address
        server.bind("b.png")
        os.chdir(here)
    (root / "dangling" / "b.png").symlink_to("nowhere.png")
    (root / "loop" / "b.png").symlink_to("b.png")
    (root / "null" / "b.png").symlink_to("/dev/null")
    save(root / "long" / "b.png", size=(2000, 1))
    (root / "cut" / "b.png").write_bytes((root / "cut" / "a.png").read_bytes()[:40])
    (root / "text" / "b.png").write_text("<html>")
    (root / "zero" / "b.png").write_bytes(b"")
    (root / "latin").mkdir()
    Path(os.fsdecode(os.fsencode(root / "latin") + b"/caf\xe9.png")).write_bytes((root / "secret.png").read_bytes())
    (root / "forged").mkdir()
    (root / "forged" / "a\nerror: b.png").write_text("no image")
    (root / "nothing").mkdir()
    (root / "hidden" / ".git").mkdir(parents=True)
    save(root / "hidden" / ".git" / "a.png")
    (root / "notes").mkdir()
    (root / "notes" / "a.txt").write_text("hello")
    (root / "self-link").symlink_to("self-link")
    for name, content in {
        "pickle": None,
        "header": b"\x93NUMPY\x01\x00",
        "short": np.lib.format.magic(1, 0) + b"v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9)}",
    }.items():
        (root / f"npy-{name}").mkdir()
        path = root / f"npy-{name}" / "a.npy"
        if content is None:
            np.save(path, np.array([{"a": 1}]), allow_pickle=True)
        else:
            path.write_bytes(content)
    (root / "npy-raw").mkdir()
    (root / "npy-raw" / "a.npy").write_bytes(pickle.dumps(pytest.fail))
    for name, array in {
        "words": np.array([["a"]]),
        "complex": np.ones((4, 4), complex),
        "axes": np.ones((2, 2, 2, 2)),
        "none": np.ones((0, 4)),
        "nan": np.full((4, 4), np.nan),
        "flat": np.full((4, 4), 0.5),
        "times": np.zeros((4, 4), "M8[s]"),
    }.items():
        (root / f"npy-{name}").mkdir()
        np.save(root / f"npy-{name}" / "a.npy", array)
    (root / "npy-mixed").mkdir()
    np.save(root / "npy-mixed" / "a.npy", np.ones((4, 4, 2), np.uint8))
    save(root / "npy-mixed" / "b.png", mode="RGB")
    (root / "npy-float").mkdir()
    np.save(root / "npy-float" / "a.npy", np.eye(4, dtype=np.float32))
    save(root / "npy-float" / "b.png")
    for name, content in {"bad": b"PK no zip", "empty": b""}.items():
        save(root / f"zip-{name}" / "a.png")
        (root / f"zip-{name}" / "b.zip").write_bytes(content)
    (root / "zip-text").mkdir()
    with zipfile.ZipFile(root / "zip-text" / "a.zip", "w") as archive:
        archive.writestr("a.png", "no image")
    (root / "zip-climbs").mkdir()
    with zipfile.ZipFile(root / "zip-climbs" / "a.zip", "w") as archive:
        archive.writestr("../../escaped.png", "no image")
    with zipfile.ZipFile(root / "zip-climbs" / "a.zip", "a") as archive:
        archive.writestr("/etc/passwd.png", "no image")
    for name in ("train", "test"):
        save(root / "splits" / name / "a.png", 3)
        save(root / "captioned" / name / "a.png", 3)
        (root / "captioned" / name / "metadata.csv").write_text("file_name,text\na.png,one\n")
    save(root / "gray" / "a.png", 5)
    save(root / "gray" / "b.png", 6)
    (root / "parquet").mkdir()
    (root / "parquet" / "a.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    table(root / "no-rows" / "a.parquet", [])
    (root / "a-file.png").write_text("")


def saved(root: Path) -> None:
    """What save_to_disk wrote, and what became of it."""
    good = datasets.Dataset.from_dict({"image": [Image.new("L", (4, 4), n) for n in range(4)], "text": list("abcd")})
    for name in ("saved", "saved-state", "saved-climbs", "saved-cut", "saved-info", "saved-gone", "saved-html"):
        good.save_to_disk(root / name)
    (root / "saved-state" / "state.json").write_text("{")
    state = json.loads((root / "saved-climbs" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../saved/data-00000-of-00001.arrow"}]
    (root / "saved-climbs" / "state.json").write_text(json.dumps(state))
    arrow = next((root / "saved-cut").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:300])
    (root / "saved-info" / "dataset_info.json").write_text('{"features": {"image": {"_type": "Nonsense"}}}')
    next((root / "saved-gone").glob("*.arrow")).unlink()
    (root / "saved-html" / "state.json").write_text("<!doctype html>")
    for name, file in {"saved-fifo": "data-00000-of-00001.arrow", "saved-info-fifo": "dataset_info.json"}.items():
        good.save_to_disk(root / name)
        (root / name / file).unlink()
        os.mkfifo(root / name / file)
    both = datasets.DatasetDict({"train": good, "test": good})
    for name in ("dict", "dict-climbs", "dict-type", "dict-gone"):
        both.save_to_disk(root / name)
    (root / "dict-climbs" / "dataset_dict.json").write_text('{"splits": ["train", "../saved"]}')
    (root / "dict-type" / "dataset_dict.json").write_text('{"splits": "train"}')
    (root / "dict-gone" / "dataset_dict.json").write_text('{"splits": ["train", "more"]}')
    struct = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    rows = {"image": [{"bytes": None, "path": str(root / "secret.png")}]}  # as an Image it would have been embedded
    datasets.Dataset.from_dict(rows, struct).save_to_disk(root / "saved-names")


def columns(root: Path) -> None:
    """Tables with columns that aren't what they are called."""
    one = {"image": [Image.new("L", (4, 4), n) for n in (1, 2)]}
    for name, more in {
        "two-images": {"mask": one["image"]},
        "labels": {"label": [0, -1], "kind": [0.5, 1.5], "animal": ["owl", None]},
        "texts": {"title": ["a", "b"], "author": ["c", "d"], "number": [1, 2]},
        "no-captions": {"text": ["", None]},
        "one-caption": {"text": ["a", " "]},
    }.items():
        datasets.Dataset.from_dict(one | more).save_to_disk(root / name)
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(root / "no-images")
    ragged = datasets.Features({"image": datasets.List(datasets.List(datasets.Value("uint8")))})
    datasets.Dataset.from_dict({"image": [[[1, 2], [3]]]}, ragged).save_to_disk(root / "ragged")
    datasets.Dataset.from_dict({"image": [None, [[1, 2], [3, 4]]]}, ragged).save_to_disk(root / "null-array")
    datasets.Dataset.from_dict({"image": ["a.png", "b.png"]}).save_to_disk(root / "strings")
    few = {"label": [0, 7]}
    wrong = datasets.Dataset.from_dict(one | few).cast_column("label", datasets.ClassLabel(names=[*"abcdefgh"]))
    wrong.info.features["label"] = datasets.ClassLabel(names=["a", "b"])
    wrong.save_to_disk(root / "beyond")


U = "train_unconditional.py --resolution 4 --cache_dir {cache} --output_dir out "
V = U + "--eval_steps 1 "
T = "train_text2img.py --resolution 4 --cache_dir {cache} --output_dir out "
A = "train_autoencoder.py --resolution 4 --cache_dir {cache} --output_dir out "

CASES = [
    (U + f"--train_data_dir rows-{name}", line)
    for name, line in {
        "absolute": r"rows-absolute: row 1 names the file /etc/passwd, outside \S+; only files of the data",
        "own-absolute": r"row 1 names the file /\S+secret\.png, outside",
        "climbs": r"row 1 names the file \.\./secret\.png, outside",
        "deep": r"row 1 names the file x/\.\./\.\./secret\.png, outside",
        "relative": r"row 1 \(secret\.png\): can't be decoded \(No such file",
        "url": r"row 1 names the file file:///etc/passwd, outside",
        "http": r"row 1 names the file http://127\S+, outside",
        "hub": r"row 1 names the file hf://datasets/user/name/a\.png, outside",
        "zip": r"row 1 names the file zip://a\.png::\S+/outer\.zip, outside",
        "zip-url": r"row 1 names the file zip://a\.png::http://\S+, outside",
        "null": r"row 1 names the file a\\x00b\.png, outside",
        "link": r"row 1 names the file out\.dat, outside",
        "fifo": r"row 1 \(pipe\.dat\): can't be decoded \(not a regular file",
        "folder": r"row 1 \(sub\): can't be decoded \(not a regular file",
        "npy": r"row 1 names the file /etc/x\.npy, outside",
        "home": r"can't be decoded \(No such file",
        "lines": r"row 1 names the file /etc/\\nerror: forged, outside",
    }.items()
]
CASES += [
    (U + "--train_data_dir rows-absolute --skip_bad_images", r"row 1 names the file /etc/passwd, outside"),
    (U + "--dataset_name rows-absolute", r"row 1 names the file /etc/passwd, outside"),
    (U + "--dataset_name ./rows-climbs", r"row 1 names the file \.\./secret\.png, outside"),
    (T + "--train_data_dir rows-absolute", r"row 1 names the file /etc/passwd, outside"),
    (A + "--train_data_dir rows-absolute", r"row 1 names the file /etc/passwd, outside"),
    (U + "--train_data_dir saved-names", r"saved-names: row 0 names the file \S+/secret\.png, outside \S+/saved-names"),
    (U + "--dataset_name card-absolute", r"its card names the file /\S+train\.parquet, outside of /\S+card-absolute"),
    (U + "--dataset_name card-climbs", r"card-climbs"),
    (U + "--dataset_name card-broken", r"card-broken: can't be"),
    (U + "--train_data_dir empty-rows", r"row 1: can't be decoded \(no image there\)"),
]
CASES += [
    (T + f"--train_data_dir {name}", line)
    for name, line in {
        "csv-absolute": r"metadata\.csv: row 1: file_name names /etc/passwd, outside of the folder",
        "csv-own-absolute": r"row 1: file_name names /\S+a\.png, outside of the folder",
        "csv-climbs": r"row 2: file_name names \.\./secret\.png, outside",
        "csv-url": r"row 1: file_name names file:///etc/passwd, outside",
        "csv-zip": r"row 1: file_name names zip://\S+, outside",
        "csv-empty": r"metadata\.csv: has no rows",
        "csv-header": r"metadata\.csv: has no rows",
        "csv-no-name": r"metadata\.csv: has no column file_name, .*; it has name, text",
        "csv-no-value": r"row 1: file_name is None; it must be the path",
        "csv-missing": r"csv-missing/b\.png: can't be decoded \(No such file",
        "csv-comma": r"line 2 has 3 values for 2 columns; put double quotes",
        "csv-short": r"line 2 has 1 values for 2 columns",
        "csv-quote": r"line 2: unexpected end of data",
        "csv-twice": r"line 1 names a column twice",
        "csv-both": r"has columns file_name and image, which would be one",
        "csv-latin": r"metadata\.csv: is not text in UTF-8 .* at byte",
        "csv-blank": r"--caption_column text: 1 of 2 rows have no caption \(rows 1\)",
        "csv-folder": r"csv-folder/sub: can't be decoded \(not a regular file",
        "csv-link": r"broken\.png: can't be decoded \(No such file",
        "jsonl-empty": r"metadata\.jsonl: has no rows",
        "jsonl-blank": r"metadata\.jsonl: has no rows",
        "jsonl-html": r"metadata\.jsonl: line 1: not valid JSON",
        "jsonl-list": r"metadata\.jsonl: line 1: must map names to values, holds a list",
        "jsonl-cut": r"metadata\.jsonl: line 2: not valid JSON",
        "jsonl-number": r"row 1: file_name is 5; it must be the path",
        "jsonl-null": r"row 1: file_name is None; it must be the path",
        "jsonl-nan": r"line 1: not valid JSON \(NaN is no JSON\)",
        "jsonl-twice": r"line 1: not valid JSON \(key 'file_name' is given twice\)",
        "jsonl-climbs": r"row 1: file_name names \.\./secret\.png, outside",
        "jsonl-types": r"metadata\.jsonl: can't be read",
        "jsonl-deep": r"metadata\.jsonl: line 1: not valid JSON",
        "jsonl-mask": r"row 1: mask_file_name names /etc/passwd, outside",
        "parquet-corrupt": r"metadata\.parquet: can't be read",
        "parquet-climbs": r"row 1: file_name names \.\./secret\.png, outside",
        "two-kinds": r"don't have the same types of columns",
        "metadata-fifo": r"metadata\.csv: can't be read \(not a regular file\)",
        "saved-state": r"saved-state/state\.json: not valid JSON",
        "gray": r"no column holds captions; columns of text: none; all columns: image",
        "texts": r"several columns may hold the captions: title, author; choose with --caption_column",
        "no-captions": r"--caption_column text: 2 of 2 rows have no caption",
        "one-caption": r"--caption_column text: 1 of 2 rows have no caption \(rows 1\)",
    }.items()
]
CASES += [
    (U + "--train_data_dir parquet-second --image_column mask", r"row 0 names the file /etc/passwd, outside"),
    (T + "--train_data_dir texts --caption_column number", r"--caption_column number: holds no strings"),
    (T + "--train_data_dir texts --caption_column nope", r"--caption_column nope: no such column"),
    (T + "--train_data_dir texts --caption_column image", r"--caption_column image: holds no strings"),
    (T + "--train_data_dir no-captions --skip_empty_captions", r"2 of 2 rows have no caption"),
]
CASES += [
    (U + f"--train_data_dir {name}", line)
    for name, line in {
        "fifo": r"fifo/b\.png: can't be decoded \(not a regular file\); replace or remove it, or pass --skip",
        "socket": r"socket/b\.png: can't be decoded \(not a regular file\)",
        "dangling": r"dangling/b\.png: can't be decoded \(No such file",
        "loop": r"loop/b\.png: can't be decoded \(Too many levels of symbolic links",
        "null": r"null/b\.png: can't be decoded \(not a regular file\)",
        "long": r"long/b\.png: can't be decoded \(2000 x 1 pixels, one side more than 50 times the other; crop it\)",
        "cut": r"cut/b\.png: can't be decoded",
        "text": r"text/b\.png: can't be decoded \(cannot identify",
        "zero": r"zero/b\.png: can't be decoded \(cannot identify",
        "latin": r"caf\\udce9\.png: the name isn't UTF-8",
        "forged": r"forged/a\\nerror: b\.png: can't be decoded",
        "nothing": r"--train_data_dir nothing: no image, \.npy, \.zip or \.parquet file in it or below",
        "hidden": r"--train_data_dir hidden: no image",
        "notes": r"--train_data_dir notes: no image",
        "self-link": r"self-link: (no such folder|Too many levels|Symlink loop)",
        "nowhere": r"--train_data_dir nowhere: no such folder",
        "a-file.png": r"--train_data_dir a-file\.png: no such folder",
        "/dev/null": r"--train_data_dir /dev/null: no such folder",
        "secret.png/x": r"no such folder|Not a directory",
        "n" * 300: r"File name too long",
        "npy-pickle": r"a\.npy: can't be decoded \(.*Python objects in dtype",
        "npy-raw": r"a\.npy: can't be decoded",
        "npy-header": r"a\.npy: can't be decoded",
        "npy-short": r"a\.npy: can't be decoded",
        "npy-words": r"a\.npy: can't be decoded \(an array of <U1",
        "npy-complex": r"can't be decoded \(an array of complex128",
        "npy-axes": r"can't be decoded \(an array of float64 \(2, 2, 2, 2\)",
        "npy-none": r"can't be decoded \(.*",
        "npy-nan": r"can't be decoded \(it holds NaN",
        "npy-flat": r"all values of the float images are 0\.5",
        "npy-times": r"can't be decoded \(an array of datetime64",
        "npy-mixed": r"differ in their channels: .*arrays aren't converted",
        "npy-float": r"differ in their values: 1 float32, 1 uint8; float images can't be mixed",
        "zip-bad": r"b\.zip: a zip that can't be read \(File is not a zip file\)",
        "zip-climbs": r"a\.zip: holds a file called \S+, which leads out of it; remove it",
        "zip-empty": r"b\.zip: a zip that can't be read",
        "zip-text": r"zip://\S+png::\S+a\.zip: can't be decoded \(cannot identify",
        "parquet": r"parquet: can't be read: .*; check its files",
        "no-rows": r"no-rows: can't be read: .*; check its files",
        "saved-climbs": r"saved-climbs/state\.json: .* is not a file beside it",
        "saved-cut": r"saved-cut: (split train|row|column).*can't be read",
        "saved-info": r"saved-info: split train: can't be read",
        "saved-gone": r"saved-gone/\S+\.arrow: no such file; restore it",
        "saved-fifo": r"saved-fifo/\S+\.arrow: not a regular file; restore it",
        "saved-info-fifo": r"saved-info-fifo/dataset_info\.json: not a regular file; restore it",
        "saved-html": r"saved-html/state\.json: not valid JSON",
        "dict-climbs": r"dict-climbs/dataset_dict\.json: '\.\./saved' is not the name of a split",
        "dict-type": r"dataset_dict\.json: 'splits' must be a list, is 'train'",
        "dict-gone --split more": r"dict-gone/more/state\.json: there is no such file",
        "two-images": r"several columns hold images: image, mask; choose one with --image_column",
        "no-images": r"no column holds images; columns: text \(string\)",
        "strings": r"no column holds images",
        "ragged": r"row 0: can't be decoded|ragged: can't be read",
        "null-array": r"row 0: can't be decoded \(no image there\)|null-array: can't be read",
        "beyond": r"column label: row 1 has label 7, but there are 2 classes",
        "labels --image_column nope": r"--image_column nope: no such column",
        "labels --image_column kind": r"--image_column kind: float64 is no type of images",
        "labels --label_column nope": r"--label_column nope: no such column",
        "labels --label_column kind": r"--label_column kind: float64 is no class",
        "labels --label_column label": r"--label_column label: row 1 has -1",
        "labels --label_column animal": r"--label_column animal: row 1 has None",
        "labels --label_column image": r"--label_column image: Image is no class",
        "gray --channels 2": r"--channels 2: PIL images can be given 1, 3 or 4",
        "gray --background nope": r"--background 'nope' is not a colour",
        "gray --dataset_config_name x": r"--dataset_config_name x: gray has no configurations",
        "saved --dataset_config_name x": r"--dataset_config_name x: saved has no configurations",
        "gray --dataset_name digits": r"--dataset_name digits and --train_data_dir gray: give one of the two",
    }.items()
]
BAD_SPLITS = {
    "train[:0]": r"--split train\[:0\]: no rows in it; train has \d+",
    "train[3:2]": r"--split train\[3:2\]: no rows in it",
    "train[5000:]": r"no rows in it; train has",
    "train[abc]": r"--split train\[abc\]: can't be read .*; give a split, slice or sum such as train, train\[:10%\]",
    "train[": r"--split train\[: can't be read",
    "train[200%:]": r"--split train\[200%:\]: can't be read",
    "train[5]": r"can't be read",
    "nope": r"--split nope: \S+ has train",
    "train+nope[:1]": r"--split train\+nope\[:1\]: \S+ has train",
    "train+": r"can't be read",
}
CASES += [
    (U + f"{data} --split '{split}'", line)
    for data, kinds in {
        "--dataset_name digits": list(BAD_SPLITS),
        "--train_data_dir gray": list(BAD_SPLITS)[:4],
        "--train_data_dir saved": list(BAD_SPLITS)[:4],
        "--train_data_dir captioned": list(BAD_SPLITS)[:4],
        "--dataset_name dict": list(BAD_SPLITS)[:4],
    }.items()
    for split, line in BAD_SPLITS.items()
    if split in kinds
]
CASES += [
    (T + "--train_data_dir captioned --split 'train[:0]'", r"--split train\[:0\]: no rows in it"),
    (U + "--train_data_dir splits --split validation", r"--split validation: splits has train, test"),
    (V + "--dataset_name digits --validation_split 'train[abc]'", r"--validation_split train\[abc\]: can't be read"),
    (V + "--dataset_name digits --validation_split 'train[:0]'", r"--validation_split train\[:0\]: no rows in it"),
    (V + "--dataset_name digits --validation_split test", r"--validation_split test: digits has train"),
    (V + "--train_data_dir splits --validation_split dev", r"--validation_split dev: splits has train, test"),
    (V + "--dataset_name digits --validation_split train", r"--validation_split train: is trained on"),
    (V + "--dataset_name digits --validation_split 'train[9:]'", r"--validation_split train\[9:\]: is trained on"),
    (V + "--dataset_name digits --split all --validation_split 'train[:5%]'", r"--validation_split \S+: is trained on"),
    (A + "--dataset_name digits --validation_split 'train[:0]'", r"--validation_split train\[:0\]: no rows in it"),
    (V + "--train_data_dir gray --validation_share 0.01", r"--validation_share 0\.01: of 2 images that is 0"),
    (U + "--dataset_name digits --dataset_config_name x", r"--dataset_config_name x: digits has no configurations"),
    (
        U + "--dataset_name nowhere",
        r"nowhere: can't be opened: http\S+ can't be reached, or is no Hub; check the network",
    ),
    (U + "--dataset_name user/name", r"user/name: can't be opened: http\S+ can't be reached"),
    (U + "--dataset_name a/b/c", r"--dataset_name a/b/c: no such folder; give one, or user/name"),
    (U + "--dataset_name 'a b'", r"a b: can't be opened: not a name that the Hub allows"),
    (U + "--dataset_name ../nowhere", r"\.\./nowhere: no such folder"),
    (U + "--dataset_name https://huggingface.co/datasets/ylecun/mnist", r"ylecun/mnist: no such folder"),
    (U + "--dataset_name secret.png", r"--dataset_name secret\.png: no such folder"),
    (U + "--dataset_name " + "n" * 300, r"File name too long"),
    (U + "--dataset_name digits --resolution 10000000", r"--resolution 10000000: to resize one image takes 800 TB"),
    (U + "--dataset_name digits --resolution 30000", r"--resolution 30000.* (memory|need \d.* TB)"),
]
for words, line in {
    "/dev/null": r"--cache_dir: the cache /dev/null/snowmelt can't be used \(.*Not a directory",
    "a-file.png": r"--cache_dir: the cache a-file\.png/snowmelt can't be used",
    "a-file.png/x": r"--cache_dir: the cache a-file\.png/x/snowmelt can't be used",
    "n" * 300: r"--cache_dir: the cache n+/snowmelt can't be used \(.*File name too long",
    "self-link": r"--cache_dir: the cache self-link/snowmelt can't be used \(.*Too many levels",
    "/proc/nowhere": r"--cache_dir: the cache /proc/nowhere/snowmelt can't be used",
}.items():
    CASES += [
        (f"train_{script}.py --output_dir out --cache_dir {words} --dataset_name digits --resolution 8", line)
        for script in ("unconditional", "autoencoder")
    ]


E = "evaluate.py --model model --cache_dir {cache} --metrics fd --num_images 10 --output report "
CASES += [
    (E + words, line)
    for words, line in {
        "--train_data_dir rows-absolute": r"rows-absolute: row 1 names the file /etc/passwd, outside",
        "--train_data_dir rows-link": r"row 1 names the file out\.dat, outside",
        "--train_data_dir csv-climbs": r"row 2: file_name names \.\./secret\.png, outside",
        "--train_data_dir saved-names": r"row 0 names the file \S+/secret\.png, outside",
        "--train_data_dir fifo": r"fifo/b\.png: can't be decoded \(not a regular file\)",
        "--train_data_dir nothing": r"--train_data_dir nothing: no image",
        "--train_data_dir jsonl-empty": r"metadata\.jsonl: has no rows",
        "--train_data_dir saved-cut": r"saved-cut: .*can't be read",
        "--train_data_dir long": r"one side more than 50 times the other",
        "--dataset_name digits --split 'train[:0]'": r"--split train\[:0\]: no rows in it; train has 1797",
        "--dataset_name digits --split 'train[abc]'": r"--split train\[abc\]: can't be read",
        "--dataset_name digits --split test": r"--split test: digits has train",
        "--dataset_name digits --held_out_split test": r"--(held_out_)?split test: digits has train",
        "--dataset_name digits --held_out_split 'train[9'": r"--(held_out_)?split train\[9: can't be read",
        "--dataset_name digits --dataset_config_name x": r"--dataset_config_name x: digits has no configurations",
        "--dataset_name digits --label_column nope": r"--label_column nope: no such column",
        "--dataset_name digits --channels 2": r"--channels 2: PIL images can be given 1, 3 or 4",
        "--dataset_name nowhere": r"nowhere: can't be opened: \S+ can't be reached",
        "--dataset_name ../x": r"--dataset_name \.\./x: no such folder",
    }.items()
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client doesn't wait between its attempts to reach one."""
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, time=time.time, monotonic=time.monotonic))


@pytest.mark.parametrize(("command", "line"), CASES)
def test_refused(refuse: Refuse, command: str, line: str) -> None:
    refuse(command, line)

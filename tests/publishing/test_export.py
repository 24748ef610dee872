"""What is published of a run, and nothing else."""

import getpass
import hashlib
import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMPipeline, DiffusionPipeline, UNet2DModel
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import publish
from pipelines import PixelDiffusionPipeline, make_scheduler
from snowmelt.errors import UserError
from snowmelt.evaluation.alignment import write_alignment
from snowmelt.model_folder import read_index, weights_digest
from snowmelt.publishing.export import add_variant, export
from tests.conftest import ROOT
from tests.pipelines.models import tiny_pipeline
from tests.pipelines.test_text2img import make as make_text2img

REPORT = {
    "model": "/home/someone/run",
    "dataset": {"name": "alice/pictures", "on_hub": True, "config": None, "split": "test", "num_images": 1000},
    "num_images": 500,
    "features": {"name": "LeNet", "accuracy": 0.99},
    "sampler": {
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "num_inference_steps": 20,
        "nfe": 20,
        "guidance_scale": 1.0,
        "eta": 0.0,
        "seed": 0,
    },
    "results": [
        {"metric": "fd", "name": "Fréchet distance (LeNet)", "value": 7.25, "error": None, "lower_is_better": True},
        {"metric": "kid", "name": "KID", "value": 0.5, "error": 0.1, "lower_is_better": True},
    ],
    "baseline": [{"metric": "fd", "name": "Fréchet distance", "value": 2.5, "error": None, "lower_is_better": True}],
    "sweep": [],
    "warnings": ["500 samples are few: the distance is biased upwards"],
}


@pytest.fixture(scope="module")
def run(train, tmp_path_factory) -> Path:
    """A run on a folder of images, whose places are of this machine."""
    root = tmp_path_factory.mktemp("someones")
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(root / "photos" / name / f"{i}.png")
    return train(
        root / "run", dataset_name=None, train_data_dir=root / "photos", cache_dir=root / "cache", logger="tensorboard"
    )


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    folder.mkdir()
    export(run, folder, "alice/pets", license="mit")
    return folder


def digest_of(model: Path) -> str:
    return weights_digest({name: model / name for name in read_index(model).components})


def digests(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_holds_what_is_published_and_no_more(run, tmp_path):
    before = digests(run)
    assert any("optimizer" in name for name in before)
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out", "alice/pets")
    assert digests(run) == before
    assert set(digests(tmp_path / "out")) == {
        *("README.md", "config.yaml", "metrics.json", "model_index.json", "pipeline.py"),
        *("samples.png", "denoising.png", "loss.png"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"),
    }


def test_names_nothing_private(run, exported):
    """Neither people nor machines nor places, though the run's own files do."""
    add_variant(exported, "bf16")
    names = {str(run.parent), str(exported), str(Path.home()), str(ROOT), "photos"}
    words = {socket.gethostname(), getpass.getuser()} - {"root"}  # which is a word in the source
    assert "photos" in (run / "config.yaml").read_text()
    for path in (p for p in exported.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert not [name for name in names if name.encode() in content], path
        assert not re.search(rb"hf_[A-Za-z0-9]{10,}", content), path
        if path.suffix not in (".png", ".safetensors"):  # where short words occur by chance
            assert not [word for word in words if re.search(rf"\b{re.escape(word)}\b", content.decode())], path
            assert "_name_or_path" not in content.decode() or path.name in ("config.yaml", "pipeline.py"), path


def test_configuration_keeps_what_strangers_can_use(exported, train, tmp_path):
    config = yaml.safe_load((exported / "config.yaml").read_text())
    assert (config["learning_rate"], config["class_conditional"], config["resolution"]) == (1e-4, True, 8)
    assert not {"train_data_dir", "output_dir", "cache_dir", "hub_model_id"} & config.keys()
    run = train(tmp_path / "digits")
    export(run, tmp_path, "alice/digits")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["dataset_name"] == "digits"


def test_weights_are_the_average(run, exported):
    weights = load_file(exported / "unet/diffusion_pytorch_model.safetensors")
    average, last = (load_file(next((run / "checkpoint-2" / n).glob("*.safetensors"))) for n in ("unet_ema", "unet"))
    assert all(torch.equal(weights[k], average[k]) for k in weights)
    assert not all(torch.equal(weights[k], last[k]) for k in weights)


def test_large_weights_stay_in_shards(run, tmp_path):
    pipeline = PixelDiffusionPipeline.from_pretrained(run)
    pipeline.save_pretrained(tmp_path / "saved", max_shard_size="50KB")
    (tmp_path / "out").mkdir()
    export(tmp_path / "saved", tmp_path / "out", "alice/pets")
    assert len(list((tmp_path / "out/unet").glob("*.safetensors"))) > 1
    loaded = PixelDiffusionPipeline.from_pretrained(tmp_path / "out")
    for a, b in zip(pipeline.unet.parameters(), loaded.unet.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("variant", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_variant(variant, dtype, exported):
    before = digests(exported)
    add_variant(exported, variant)
    after = digests(exported)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before == {f"unet/diffusion_pytorch_model.{variant}.safetensors"}
    low = PixelDiffusionPipeline.from_pretrained(exported, variant=variant, torch_dtype=dtype)
    full = PixelDiffusionPipeline.from_pretrained(exported)
    for a, b in zip(low.unet.parameters(), full.unet.parameters(), strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))


def test_stock_pipeline_needs_no_trust(train, tmp_path):
    run = train(tmp_path / "run", class_conditional=False, objective="epsilon")
    ours = PixelDiffusionPipeline.from_pretrained(run)
    ours.scheduler = make_scheduler("ddim", ours.scheduler)
    ours.save_pretrained(tmp_path / "ddim")
    for source, name in ((run, "DDPMPipeline"), (tmp_path / "ddim", "DDIMPipeline")):
        folder = tmp_path / name
        folder.mkdir()
        export(source, folder, "alice/digits", stock_pipeline=True)
        assert not (folder / "pipeline.py").exists()
        stock = DiffusionPipeline.from_pretrained(folder)
        assert type(stock).__name__ == name
        assert "trust_remote_code" not in (folder / "README.md").read_text()
        if name == "DDIMPipeline":
            assert type(stock) is DDIMPipeline
            call = "use_clipped_model_output=True"
            assert call in (folder / "README.md").read_text()
            options = {"batch_size": 2, "num_inference_steps": 3, "output_type": "np"}
            images = [
                p(generator=torch.Generator().manual_seed(0), **options, **more).images
                for p, more in ((stock, {"use_clipped_model_output": True}), (ours, {}))
            ]
            np.testing.assert_allclose(*images, atol=1e-5)


def test_what_no_stock_pipeline_samples(run, train, tmp_path):
    unconditional = train(tmp_path / "flow", class_conditional=False, objective="flow")
    for number, source in enumerate((run, unconditional)):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(UserError, match="--stock_pipeline: no pipeline of diffusers samples this.*FlowMatchEuler"):
            export(source, tmp_path / str(number), "alice/pets", stock_pipeline=True)


def test_stock_pipeline_where_nothing_is_lost(train, tmp_path):
    """By itself, for a run that diffusers' script could have made; unless ours is asked for."""
    run = train(tmp_path / "run", class_conditional=False, objective="epsilon")
    assert type(DiffusionPipeline.from_pretrained(run)).__name__ == "DDPMPipeline"
    for stock, kind in ((None, "DDPMPipeline"), (False, ["pipeline", "PixelDiffusionPipeline"])):
        folder = tmp_path / str(stock)
        folder.mkdir()
        export(run, folder, "alice/digits", stock_pipeline=stock)
        assert json.loads((folder / "model_index.json").read_text())["_class_name"] == kind
        assert (folder / "pipeline.py").exists() == (stock is False)
        assert type(PixelDiffusionPipeline.from_pretrained(folder)) is PixelDiffusionPipeline


def test_a_runs_folder_loads_with_diffusers_alone(run):
    """As the published one does: it has its code."""
    loaded = DiffusionPipeline.from_pretrained(run, trust_remote_code=True)
    assert type(loaded).__module__.startswith("diffusers_modules.")
    options = {"class_labels": "dogs", "num_inference_steps": 2, "output_type": "np"}
    images = [
        pipeline(generator=torch.Generator().manual_seed(0), **options).images
        for pipeline in (loaded, PixelDiffusionPipeline.from_pretrained(run))
    ]
    assert np.array_equal(*images)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(run)


def test_model_of_float_data(tmp_path):
    """Its value_range is a list in model_index.json, as the components are."""
    tiny_pipeline(value_range=(-3.0, 5.0)).save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    export(tmp_path / "model", tmp_path / "out", "alice/maps", strip=False)
    assert PixelDiffusionPipeline.from_pretrained(tmp_path / "out").config.value_range == (-3.0, 5.0)


def test_only_known_files_of_components(tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "model/unet/secret.txt").write_text("secret")
    (tmp_path / "model/unet/diffusion_pytorch_model.bin").write_text("a pickle")
    (tmp_path / "model/unet/deeper").mkdir()
    (tmp_path / "out").mkdir()
    export(tmp_path / "model", tmp_path / "out", "alice/pets", strip=False)
    assert set(digests(tmp_path / "out/unet")) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert "left out, being no part of a pipeline: unet/deeper, unet/diffusion_pyt" in capsys.readouterr().out


def test_snapshot_of_the_hubs_cache(tmp_path):
    """There files are links to others of the cache; they lead out of the snapshot, not out of the model."""
    tiny_pipeline().save_pretrained(tmp_path / "model")
    snapshot, blobs = tmp_path / "hub/snapshots/0123", tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in (tmp_path / "model").rglob("*") if p.is_file())):
        place = snapshot / path.relative_to(tmp_path / "model")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blobs / str(number))
        place.symlink_to(blobs / str(number))
    (tmp_path / "out").mkdir()
    export(snapshot, tmp_path / "out", "alice/pets", strip=False)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"weights": "0" * 64, "checkpoint": "checkpoint-4"}, "is of the weights of checkpoint-4, not of these"),
        ({"weights": "0" * 64, "checkpoint": None}, "is of the weights of another model, not of these"),
        ({}, "is of weights that it doesn't name"),
    ],
)
def test_report_of_other_weights(weights, said, tmp_path, capsys):
    """It stayed in the folder while the model was trained anew: it says nothing of this one."""
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    (model / "report").mkdir()
    (model / "report/report.json").write_text(json.dumps(REPORT | weights))
    Image.new("L", (4, 4)).save(model / "report/sweep-sampler.png")
    write_alignment(model / "alignment.md", "| prompts |\n", "0" * 64)
    Image.new("L", (4, 4)).save(model / "alignment.png")
    (tmp_path / "out").mkdir()
    export(model, tmp_path / "out", "alice/pets", strip=False)
    printed = capsys.readouterr().out
    assert said in printed
    assert "alignment.md is of other weights" in printed
    assert "Not measured." in (tmp_path / "out/README.md").read_text()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("README.md", "metrics.json", "model_index.json", "unet", "scheduler")
    }
    with pytest.raises(UserError, match=f"--report: .*{said}"):
        export(model, tmp_path / "out", "alice/pets", report=model / "report")


def test_report_and_alignment_of_these_weights_until_they_change(tmp_path):
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    (model / "report").mkdir()
    (model / "report/report.json").write_text(json.dumps(REPORT | {"weights": digest_of(model)}))
    write_alignment(model / "alignment.md", "| prompts |\n", digest_of(model))
    for name, given in (("same", True), ("changed", False)):
        (tmp_path / name).mkdir()
        export(model, tmp_path / name, "alice/pets", strip=False)
        assert ("Fréchet distance" in (tmp_path / name / "README.md").read_text()) == given
        assert ("| prompts |" in (tmp_path / name / "README.md").read_text()) == given
        changed = tiny_pipeline()
        changed.unet.conv_in.bias.data.add_(1)
        changed.save_pretrained(model)


def test_names_cannot_forge_what_a_card_says(run, tmp_path):
    """Neither its metadata nor its text: a name is a name."""
    model = Path(shutil.copytree(run, tmp_path / "model"))
    forged = "x\n---\nlicense: forged\n\n# Forged\n[click](https://evil.example) <script> ``` |"
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"id2label": {"0": forged, "1": "dog"}}))
    facts = json.loads((model / "run.json").read_text())
    facts |= {"hardware": forged, "mixed_precision": forged, "software": {forged: forged}}
    (model / "run.json").write_text(json.dumps(facts | {"config": facts["config"] | {"split": forged}}))
    report = REPORT | {"weights": digest_of(model), "warnings": [forged]}
    report["results"] = [REPORT["results"][0] | {"name": forged, "metric": forged}]
    report["sampler"] = REPORT["sampler"] | {"scheduler": forged, forged: forged}
    (model / "report").mkdir()
    (model / "report/report.json").write_text(json.dumps(report))
    (tmp_path / "out").mkdir()
    export(model, tmp_path / "out", "alice/pets", license="mit", strip=False)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "mit"
    assert not re.search(r"^(#+ Forged|---|license: forged)", card.text, re.MULTILINE)
    assert "<script>" not in re.sub("`[^`\n]*`", "", card.text)
    assert "[click]" not in re.sub("`[^`\n]*`", "", card.text)
    metadata = (tmp_path / "out/README.md").read_text().split("\n---\n")[0]
    assert "\nlicense: forged" not in metadata


def test_published_again_from_its_own_form(exported, tmp_path):
    """What was downloaded can be published by someone else: code, form and what is known of its training stay."""
    (tmp_path / "again").mkdir()
    export(exported, tmp_path / "again", "bob/pets")
    first, second = (digests(folder) for folder in (exported, tmp_path / "again"))
    assert first.keys() - second.keys() == {"config.yaml"}  # of a run that isn't bob's
    for name in ("model_index.json", "pipeline.py", "unet/diffusion_pytorch_model.safetensors", "samples.png"):
        assert first[name] == second[name], name


def test_card(run, exported):
    card = ModelCard.load(exported / "README.md")
    assert (card.data.library_name, card.data.license) == ("diffusers", "mit")
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert card.data.datasets is None
    assert {"snowmelt", "class-conditional"} <= set(card.data.tags)
    text = card.text
    assert '"alice/pets", trust_remote_code=True' in text
    assert "0 cats, 1 dogs" in text
    assert "8 images" in text
    assert "2 optimizer steps of 8 images" in text
    assert "Not measured." in text
    unet = UNet2DModel.from_pretrained(run, subfolder="unet")
    assert f"{unet.num_parameters() / 1e6:.2f} million parameters" in text
    for photo in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (exported / photo).is_file()
    assert not re.search(r"[{}]|None|\n\n\n", text.replace("{%", "x"))


@pytest.mark.parametrize("name_of_baseline", ["baseline", "floor"])
def test_card_with_results(name_of_baseline, run, tmp_path):
    """Of reports of today, and of version 0.1."""
    (tmp_path / "report").mkdir()
    written = {name_of_baseline if name == "baseline" else name: value for name, value in REPORT.items()}
    (tmp_path / "report/report.json").write_text(json.dumps(written | {"weights": digest_of(run)}))
    for name in ("sweep-sampler.png", "closest.png"):
        Image.new("L", (4, 4)).save(tmp_path / "report" / name)
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out", "alice/pets", report=tmp_path / "report", dataset_name="alice/pictures")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.datasets == ["alice/pictures"]
    first = card.data.eval_results[0]
    assert (first.metric_type, first.metric_value, first.dataset_type) == ("fd", 7.25, "alice/pictures")
    assert (first.dataset_split, first.dataset_args) == ("test", {"num_images": 1000})
    assert first.metric_args == {"num_images": 500, "features": "LeNet", **REPORT["sampler"]}
    assert "| Fréchet distance (lower is better) | 7.25 | 2.5 |" in card.text
    assert "| KID (lower is better) | 0.5 ± 0.1 |  |" in card.text
    assert REPORT["warnings"][0] in card.text
    assert "![report-sweep-sampler.png](report-sweep-sampler.png)" in card.text
    assert not (tmp_path / "out/report-closest.png").exists()
    assert json.loads((tmp_path / "out/metrics.json").read_text())["evaluation"]["num_images"] == 500
    assert "someone" not in "".join(p.read_text() for p in (tmp_path / "out").glob("*.*") if p.suffix != ".png")


def test_own_card_is_kept(run, tmp_path):
    pipeline = PixelDiffusionPipeline.from_pretrained(run)
    pipeline.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved/README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (tmp_path / "out").mkdir()
    export(tmp_path / "saved", tmp_path / "out", "alice/pets")
    assert "# Mine" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--model: needed"),
        (["--model", "m"], "--hub_model_id: needed"),
        (
            ["--model", "nowhere", "--hub_model_id", "a/b", "--output_dir", "{}/out"],
            "nowhere holds no model_index.json",
        ),
        (["--model", "{run}", "--hub_model_id", "a/b", "--output_dir", "{run}"], "is not empty; name another"),
        (
            ["--model", "{run}", "--hub_model_id", "a/b", "--output_dir", "{}/o", "--report", "{}"],
            "holds no report.json",
        ),
        (["--model", "{run}", "--hub_model_id", "a/b", "--output_dir", "{}/o", "--space"], "uploads nothing"),
        (["--model", "{run}", "--hub_model_id", "a/b", "--variant", "int8"], "--variant"),
    ],
)
def test_bad_input(words, said, run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["publish.py", *(w.replace("{run}", str(run)).replace("{}", str(tmp_path)) for w in words)]
    )
    with pytest.raises(UserError, match=re.escape(said)):
        publish.main()


@pytest.mark.parametrize("latent", [True, False])
def test_card_says_what_the_network_works_on(latent, tmp_path):
    make_text2img(latent=latent).save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    export(tmp_path / "model", tmp_path / "out", "alice/pets")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert ("latent-diffusion" in card.data.tags) == latent
    assert card.data.pipeline_tag == "text-to-image"


def test_alignment_is_on_the_card(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    write_alignment(copy / "alignment.md", "| prompts | all |\n| --- | --- |\n| seen | 91.0% |\n", digest_of(run))
    Image.new("RGB", (4, 4)).save(copy / "alignment-prompts.png")
    (tmp_path / "out").mkdir()
    export(copy, tmp_path / "out", "alice/pets")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| seen | 91.0% |" in card
    assert "![alignment-prompts.png](alignment-prompts.png)" in card
    assert "Not measured." not in card
    assert (tmp_path / "out" / "alignment-prompts.png").is_file()

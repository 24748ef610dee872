"""README.md of a published model: `model_cards/template.md`, filled with what is known of it.

What is filled in was read from files that anybody may have written. In the text it can't be markup, in code no more
than the name that it is, and in the metadata no more than a value.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment

from pipelines.controlnet import CONTROLNET
from pipelines.schedulers import FEW_STEPS
from snowmelt.errors import printable
from snowmelt.image_conditions import example_arguments
from snowmelt.model_folder import INDEX_FILE, read_index
from snowmelt.publishing.facts import Facts
from snowmelt.shipped import shipped
from snowmelt.text.prompt_templates import templates

TEMPLATE = shipped("model_cards") / "template.md"
MARKUP = {ord(c): f"&#{ord(c)};" for c in "<[`|"}
"""What begins a tag, a link, an image, code or a cell, as it is written where it means itself."""


class _Code(str):
    """A text that stands between backticks, and is left as it is."""


def _code(value: object) -> _Code:
    """A value as code: neither the end of it nor that of a table's cell can be in it."""
    return _Code("`" + printable(str(value)).replace("`", "'").replace("|", "¦") + "`")


def _shown(value: object) -> object:
    """What an expression of the template leaves: text that is no markup."""
    return value if not isinstance(value, str) or isinstance(value, _Code) else printable(value).translate(MARKUP)


def write_card(folder: Path, repo_id: str, license: str, facts: Facts) -> None:
    """Write README.md, whose metadata the Hub can read.

    Args:
        folder: the export, with its images.
        repo_id: user/name, checked.
        license: by its name on the Hub.
        facts: of the model.
    """
    config = facts.run["config"] if facts.run else {}
    index = facts.index.values if facts.index else {}
    base = config.get("pretrained_model_name_or_path")
    classes = {int(number): str(name) for number, name in (index.get("id2label") or {}).items()}
    task = "text-to-image" if facts.by_text else "unconditional-image-generation"
    task = "image-to-image" if facts.condition else task
    dataset = config.get("dataset_name")
    tags = [
        "snowmelt",
        "diffusion",
        *(["class-conditional"] if classes else []),
        *([facts.adapter.tag] if facts.adapter else []),
    ]
    beside = facts.controlnet or facts.index is not None and CONTROLNET in facts.index.components
    tags += ["controlnet"] if beside else []
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        license=license,
        base_model=base,
        datasets=[dataset] if dataset and "/" in dataset else None,
        tags=[*tags, *(["latent-diffusion"] if facts.latent else [])],
        model_name=repo_id.rpartition("/")[-1],
        eval_results=_results(facts.report, task) if facts.report else None,
    )
    environment = Environment(finalize=_shown)
    environment.filters["code"] = _code
    environment.filters["as_is"] = _Code
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        card_data=data.to_yaml(),
        title=repo_id.rpartition("/")[-1],
        repo_id=repo_id,
        facts=facts,
        index=index,
        components=facts.index.components if facts.index else {},
        config=config,
        by_text=facts.by_text,
        base=base,
        classes=classes,
        named=any(str(number) != name for number, name in classes.items()),
        size=_size(config.get("resolution") or facts.network.get("sample_size")),
        call=_call(facts, folder),
        images=sorted(p.name for p in folder.glob("*.png")),
        pipeline=_class_of(folder),
        stock=not (folder / "pipeline.py").is_file(),
    )
    ModelCard(text).save(folder / "README.md")


def _size(given: Any) -> list[str]:
    """Height and width, of a side, `HEIGHTxWIDTH` or a list of both, which is whatever stands in the files."""
    sides = [str(side) for side in given] if isinstance(given, list) else str(given).split("x")
    return [sides[0], sides[-1]] if sides else ["", ""]


def _class_of(folder: Path) -> str:
    """The pipeline that the export is loaded as; empty for an adapter or a ControlNet."""
    return read_index(folder).class_name if (folder / INDEX_FILE).is_file() else ""


def _call(facts: Facts, folder: Path) -> str:
    """Arguments of a call that shows something."""
    words = [_prompt(facts)] if facts.by_text else []
    spec = facts.condition
    words += [example_arguments(spec).removesuffix(", ")] if spec else []
    if facts.network.get("num_class_embeds") or facts.index and facts.index.values.get("id2label"):
        words.append("class_labels=0")
    # The steps of an SDE must be short beside its noise, which those of other samplers needn't.
    kind = facts.index.components.get("scheduler", ("", ""))[1] if facts.index else ""
    steps = 500 if _class_of(folder) == "ScoreSdePipeline" else FEW_STEPS.get(kind, 50)
    words.append(f"num_inference_steps={steps}")
    # Where this clips the predicted x0, it must step with the noise that fits the clipped one; ours does so by itself.
    return ", ".join([*words, *(["use_clipped_model_output=True"] if _class_of(folder) == "DDIMPipeline" else [])])


def _prompt(facts: Facts) -> str:
    """A prompt as a literal of Python: that of the run, or with the word that it taught."""
    config = facts.run["config"] if facts.run else {}
    taught, word = config.get("instance_prompt"), config.get("placeholder_token")
    if isinstance(word, str):
        taught = templates(str(config.get("learnable_property")), word)[0]
    return json.dumps(taught if isinstance(taught, str) else "a red circle", ensure_ascii=False)


def _results(report: dict[str, Any], task: str) -> list[EvalResult]:
    """The model-index: each number with all that it depends on."""
    data, features = report["dataset"], report["features"]["name"]
    return [
        EvalResult(
            task_type=task,
            dataset_type=data["name"] or "local",
            dataset_name=data["name"] or "a local data set",
            dataset_config=data["config"],
            dataset_split=data["split"],
            dataset_args={"num_images": data["num_images"]},
            metric_type=result["metric"],
            metric_name=result["name"],
            metric_value=result["value"],
            metric_args={"num_images": report["num_images"], "features": features, **report["sampler"]},
        )
        for result in report["results"]
    ]

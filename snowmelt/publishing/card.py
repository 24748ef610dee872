"""README.md of a published model: `model_cards/template.md`, filled with what is known of it."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from snowmelt.publishing.facts import Facts

TEMPLATE = Path(__file__).resolve().parents[2] / "model_cards" / "template.md"


def write_card(folder: Path, repo_id: str, license: str, facts: Facts) -> None:
    """Write README.md, whose metadata the Hub can read.

    Args:
        folder: the export, with its pictures.
        repo_id: user/name.
        license: by its name on the Hub.
        facts: of the model.
    """
    config = facts.run["config"] if facts.run else {}
    by_text, base = facts.by_text, config.get("pretrained_model_name_or_path")
    classes = {int(number): name for number, name in (facts.index.get("id2label") or {}).items()}
    task = "text-to-image" if by_text else "unconditional-image-generation"
    dataset = config.get("dataset_name")
    tags = ["snowmelt", "diffusion", *(["class-conditional"] if classes else []), *(["lora"] if facts.lora else [])]
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
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=repo_id.rpartition("/")[-1],
        repo_id=repo_id,
        facts=facts,
        config=config,
        by_text=by_text,
        base=base,
        classes=classes,
        named=any(str(number) != name for number, name in classes.items()),
        side=config.get("resolution") or facts.network["sample_size"],
        call=_call(facts, by_text),
        pictures=sorted(p.name for p in folder.glob("*.png")),
        stock=not (folder / "pipeline.py").is_file(),
    )
    card.save(folder / "README.md")


def _call(facts: Facts, by_text: bool) -> str:
    """Arguments of a call that shows something."""
    words = ['"a red circle"'] if by_text else []
    if facts.network.get("num_class_embeds"):
        words.append("class_labels=0")
    return ", ".join([*words, "num_inference_steps=50"])


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

"""docs/from-diffusers.md holds every difference to the flags of diffusers' scripts, and nothing else.

`python -m tests.test_from_diffusers` prints the table.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from snowmelt.config import Config, parse
from snowmelt.options import UnconditionalConfig
from snowmelt.text.options import TextToImageConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/from-diffusers.md"
THEIRS: dict[str, dict[str, Any]] = json.loads((ROOT / "tests/diffusers_flags.json").read_text())["scripts"]
LETTERS = {"train_unconditional": "U", "train_text_to_image": "T", "train_text_to_image_lora": "L"}
HEAD = ["| flag | scripts | default there | default here | what is different |", "|---|---|---|---|---|"]

NOTES = {
    "--allow_tf32": "TF32 is on, as PyTorch has it for convolutions; `--no-allow_tf32` turns it off",
    "--cache_dir": "holds the decoded images and latents too",
    "--caption_column": "found by name or type; the first text column is not taken blindly",
    "--dataset_name": "also `digits` and `scenes`, which come with the project, and what `save_to_disk` wrote",
    "--ddpm_beta_schedule": "chooses DDPM, with linear betas unless given",
    "--ddpm_num_inference_steps": "grids are drawn by DDIM, which needs fewer steps, not by DDPM",
    "--ddpm_num_steps": "chooses DDPM, of 1000 steps unless given",
    "--enable_xformers_memory_efficient_attention": "ignored with a line: PyTorch's own attention is as sparing",
    "--foreach_ema": "ignored with a line: it is always so",
    "--image_column": "found by type",
    "--image_interpolation_mode": "an alias of `--interpolation`",
    "--local_rank": "ignored with a line: the launcher says it in LOCAL_RANK",
    "--logger": "`metrics.jsonl` and `loss.png` are always written; a tracker comes on top of them",
    "--logging_dir": "always inside `--output_dir`",
    "--lr_warmup_steps": "counts optimizer steps, whatever the accumulation and the number of processes",
    "--mixed_precision": "that of `accelerate config` or `accelerate launch`, else bf16 where the hardware has it",
    "--model_config_name_or_path": "without it the network is a named size (`--model_size small`), not one of 114 M",
    "--num_validation_images": "with several prompts, images of each",
    "--offload_ema": "ignored with a line: the EMA stays on the device",
    "--output_dir L": "one name for both kinds of fine-tuning",
    "--overwrite_output_dir": "needed for a folder that isn't empty; removes what runs left there, and nothing else",
    "--prediction_type U": "**without it flow matching is trained, not DDPM**; `epsilon` trains DDPM",
    "--preserve_input_precision": "16-bit images keep it; `--no-preserve_input_precision` makes them 8-bit",
    "--report_to": "an alias of `--logger`; `all` takes those that are installed",
    "--resume_from_checkpoint": "exact, to the bit on CPUs; refuses checkpoints of other programs and other options",
    "--seed": "always set, so that every run can be repeated",
    "--tracker_project_name": "of every script",
    "--train_data_dir": "sub-folders are classes; `.npy` and parquet too; of `train/` and `test/` one is read",
    "--use_ema U": "on; `--no-use_ema` turns it off",
    "--validation_epochs": "an alias of `--save_images_epochs`",
    "--validation_prompt": "an alias of `--validation_prompts`; without it the first captions are drawn",
    "--validation_prompts": "without them the first captions are drawn",
}
"""What differs in meaning, or why a default does."""


def ours() -> dict[str, Config]:
    """Our options as these scripts' command lines give them."""
    fine = {"defaults_with": ("pretrained_model_name_or_path", "finetune")}
    source = ["--pretrained_model_name_or_path", "x"]
    return {
        "train_unconditional": parse(UnconditionalConfig, ["--dataset_name", "x"]),
        "train_text_to_image": parse(TextToImageConfig, source, **fine),
        "train_text_to_image_lora": parse(TextToImageConfig, [*source, "--rank", "4"], **fine),
    }


def value_here(config: Config, flag: str) -> tuple[bool, Any]:
    """Whether there is such a flag, and its default."""
    fields = config.fields()
    names = {alias: name for name, f in fields.items() for alias in f.metadata["aliases"]}
    name = names.get(flag.removeprefix("--"), flag.removeprefix("--"))
    return (True, getattr(config, name)) if name in fields else (False, None)


def shown(value: Any) -> str:
    return "" if value in (None, []) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def table() -> list[str]:
    """Rows of the flags that differ, by their names, scripts of equal defaults in one."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for script, config in ours().items():
        for flag, default in THEIRS[script].items():
            known, value = value_here(config, flag)
            named = flag in ("--dataset_name", "--pretrained_model_name_or_path")  # given above
            differs = not known or (value != default and shown(value) != shown(default) and not named)
            note = NOTES.get(flag) or NOTES.get(f"{flag} {LETTERS[script]}")
            if differs or note:
                here = "missing" if not known else "" if named else shown(value)
                rows.setdefault((flag, shown(default), here, note or ""), []).append(LETTERS[script])
    return [
        f"| `{flag}` | {' '.join(letters)} | {there} | {here} | {note} |"
        for (flag, there, here, note), letters in sorted(rows.items())
    ]


def test_the_page_has_every_difference() -> None:
    lines = PAGE.read_text().splitlines()
    start = lines.index(HEAD[0])
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    assert lines[start:end] == [*HEAD, *table()]


def test_every_difference_is_explained() -> None:
    unexplained = [line for line in table() if line.endswith("|  |")]
    assert not unexplained


@pytest.mark.parametrize("script", THEIRS)
def test_every_flag_is_taken(script: str) -> None:
    missing = [flag for flag in THEIRS[script] if not value_here(ours()[script], flag)[0]]
    assert not missing


def test_ignored_flags_are_said() -> None:
    words = ["--local_rank", "0", "--enable_xformers_memory_efficient_attention", "--foreach_ema", "--offload_ema"]
    config = parse(UnconditionalConfig, ["--dataset_name", "x", *words])
    assert [line.split(" is ignored: ")[0] for line in config.ignored()] == [w for w in words if w.startswith("--")]
    assert not parse(UnconditionalConfig, ["--dataset_name", "x"]).ignored()


if __name__ == "__main__":
    print("\n".join([*HEAD, *table()]))

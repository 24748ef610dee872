"""Measure a trained model: distances of its samples from real images, its likelihood, and whether it copies.

It writes report.json, report.md and plots. Under `accelerate launch` the processes share the sampling, and the report
is the same.
"""

from snowmelt.config import parse
from snowmelt.errors import run
from snowmelt.evaluation.options import EvaluateConfig


def main() -> None:
    config = parse(EvaluateConfig)

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    import torch
    from accelerate import PartialState
    from diffusers.utils import logging

    from snowmelt.environment import find_launch, use_all_cores
    from snowmelt.evaluation.study import Study

    use_all_cores(find_launch())
    logging.disable_progress_bar()  # of loading, which happens for each value of a sweep
    state = PartialState(cpu=not torch.accelerator.is_available())
    Study(config, state).run()
    if state.is_main_process:
        print((config.folder / "report.md").read_text())
        print(f"report in {config.folder}")
    state.destroy_process_group()


if __name__ == "__main__":
    run(main)

"""A page that samples a model: `python app.py --model DIR_OR_REPO`, and what `publish.py --space` puts on the Hub.

It needs gradio, and of Snowmelt nothing: the model brings its code.
"""

import argparse
import inspect
from pathlib import Path

import gradio
import torch
from diffusers import DiffusionPipeline


def make_page(model: str) -> gradio.Blocks:
    """The page of one model, with the controls that it has a use for."""
    pipeline = DiffusionPipeline.from_pretrained(model, trust_remote_code=True)
    pipeline.to(torch.accelerator.current_accelerator() or "cpu")
    classes = list((pipeline.config.get("id2label") or {}).values())
    by_text = "tokenizer" in pipeline.components
    # What was measured best for such models stands in the pipeline's own signature.
    guidance = inspect.signature(pipeline.__call__).parameters.get("guidance_scale")

    def sample(condition: str | None, scale: float, steps: float, count: float, seed: float) -> list:
        options = {"num_inference_steps": int(steps), "generator": torch.Generator().manual_seed(int(seed))}
        if by_text:
            options |= {"prompt": condition, "num_images_per_prompt": int(count), "guidance_scale": scale}
        else:
            options["batch_size"] = int(count)
            if classes and condition is not None:
                options |= {"class_labels": condition, "guidance_scale": scale}
        return pipeline(**options).images

    with gradio.Blocks(title=model) as page:
        gradio.Markdown(f"# {model}")
        with gradio.Row():
            condition = (
                gradio.Textbox(label="Prompt")
                if by_text
                else gradio.Dropdown(classes, label="Class", visible=bool(classes))
            )
            start = guidance.default if guidance else 1
            scale = gradio.Slider(1, 8, start, label="Guidance", visible=by_text or bool(classes))
            usual = getattr(pipeline, "default_steps", 50)
            steps = gradio.Slider(1, 250 if usual > 2 else 40, usual, step=1, label="Steps")
            count = gradio.Slider(1, 16, 4, step=1, label="Images")
            seed = gradio.Number(0, label="Seed", precision=0)
        button = gradio.Button("Sample")
        gallery = gradio.Gallery(label="Images", columns=4)
        button.click(sample, [condition, scale, steps, count, seed], gallery, api_name="sample")
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    beside = Path(__file__).with_name("model.txt")  # in a Space, which calls this without arguments
    parser.add_argument("--model", default=beside.read_text() if beside.exists() else "runs/digits")
    make_page(parser.parse_args().model).launch()

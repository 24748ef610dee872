"""Images from texts, by a transformer."""

from typing import Any

from diffusers import PixArtTransformer2DModel

from pipelines.text2img import TextPipeline


class TextToImageTransformerPipeline(TextPipeline):
    """With a `PixArtTransformer2DModel` without added conditions (Chen et al. 2024).

    Args:
        transformer: the network.

    The other arguments are those of `TextPipeline`.

    Raises:
        ValueError: for a network that needs the size of its images too, or as `TextPipeline`.
    """

    COMPONENT = "transformer"
    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer: PixArtTransformer2DModel,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vae: Any = None,
        prediction_type: str | None = None,
        flow_map: bool = False,
    ) -> None:
        if getattr(transformer, "use_additional_conditions", False):
            raise ValueError(
                "transformer: takes sizes as conditions (use_additional_conditions), which aren't given here"
            )
        super().__init__(transformer, scheduler, text_encoder, tokenizer, vae, prediction_type, flow_map)

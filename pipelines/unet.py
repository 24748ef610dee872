"""Pipelines of an unconditional network, or one on class labels, by the kind of network."""

from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DModel

from pipelines.unconditional import UnconditionalPipeline


class UNetPipeline(UnconditionalPipeline):
    """With a `UNet2DModel`.

    Args:
        unet: the network.

    The other arguments are those of `UnconditionalPipeline`.
    """

    COMPONENT = "unet"
    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        prediction_type: str | None = None,
        id2label: dict | None = None,
        value_range: tuple[float, float] | None = None,
        augment_channels: int | None = None,
        self_condition: bool = False,
        flow_map: bool = False,
    ) -> None:
        super().__init__(
            unet, scheduler, prediction_type, id2label, value_range, augment_channels, self_condition, flow_map
        )


class TransformerPipeline(UnconditionalPipeline):
    """With a `DiTTransformer2DModel` (Peebles & Xie 2023), which makes square images only.

    Args:
        transformer: the network.

    The other arguments are those of `UnconditionalPipeline`.
    """

    COMPONENT = "transformer"
    model_cpu_offload_seq = "transformer"

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        scheduler: Any,
        prediction_type: str | None = None,
        id2label: dict | None = None,
        value_range: tuple[float, float] | None = None,
        augment_channels: int | None = None,
        self_condition: bool = False,
        flow_map: bool = False,
    ) -> None:
        super().__init__(
            transformer, scheduler, prediction_type, id2label, value_range, augment_channels, self_condition, flow_map
        )

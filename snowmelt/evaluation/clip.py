"""How well images fit their captions, by CLIP."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoTokenizer

from snowmelt.errors import UserError, one_line
from snowmelt.evaluation.features import HubFeatures
from snowmelt.evaluation.metrics import Estimate

FLAG = "--clip_model_name_or_path"


class ClipScore:
    """100 max(cos, 0) of embeddings of image and caption (Hessel et al. 2021, eq. 1, weighted as torchmetrics has it).

    torchmetrics' own needs torchvision, through the image processor.

    Args:
        name: a CLIP model of transformers, by Hub name or local folder.
        channels: of the images.
        device: where it computes.

    Raises:
        UserError: if it can't be loaded, or has no text side.
    """

    def __init__(self, name: str, channels: int, device: torch.device) -> None:
        self.features = HubFeatures(name, channels, device, FLAG)
        if not hasattr(self.features.net, "get_text_features"):
            raise UserError(f"{FLAG} {name}: knows no text; take a CLIP model, as openai/clip-vit-base-patch32")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # as for its image side
            raise UserError(f"{FLAG} {name}: can't load its tokenizer ({one_line(error)[:200]})") from error
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, C, H, W) in [0, 1] and as many captions, which are cut where the model ends."""
        net = self.features.net
        limit = net.config.text_config.max_position_embeddings
        tokens = self._tokenizer(list(captions), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        output = net.get_text_features(**tokens.to(self._device))
        text = getattr(output, "pooler_output", output).float().cpu()
        return 100 * torch.cosine_similarity(self.features(images), text).clamp(min=0)


def clip_score(scores: Tensor) -> Estimate:
    """The mean of scores (N,) and its standard error."""
    return Estimate(scores.mean().item(), (scores.std() / len(scores) ** 0.5).item())

"""The CLIP score against the model's own towers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, CLIPTokenizer

from snowmelt.errors import UserError
from snowmelt.evaluation.clip import ClipScore, clip_score
from snowmelt.evaluation.features import resized

CPU = torch.device("cpu")
CAPTIONS = ["a a", "b", "ab " * 100]


def test_clip_score(vision_models: Path) -> None:
    vocabulary = {"<|startoftext|>": 98, "<|endoftext|>": 99, "a</w>": 0, "b</w>": 1, "a": 2, "b": 3}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    tokenizer.save_pretrained(vision_models / "clip")
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    score = ClipScore(str(vision_models / "clip"), 3, CPU)
    found = score(images, CAPTIONS)

    net = AutoModel.from_pretrained(vision_models / "clip").eval()
    with torch.no_grad():
        vision = net.vision_model(pixel_values=(resized(images, 32) - 0.5) / 0.25).pooler_output
        expected = []
        for image, caption in zip(net.visual_projection(vision), CAPTIONS, strict=True):
            ids = tokenizer(caption, truncation=True, max_length=16, return_tensors="pt").input_ids
            text = net.text_projection(net.text_model(input_ids=ids).pooler_output)[0]
            expected.append(100 * max(0.0, float(image @ text / image.norm() / text.norm())))
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found.min() >= 0
    assert len(found.unique()) > 1
    estimate = clip_score(torch.tensor([1.0, 3.0]))
    assert (estimate.value, estimate.error) == (2, 1)


def test_models_without_text(vision_models: Path) -> None:
    with pytest.raises(UserError, match="--clip_model_name_or_path .*vit: knows no text; take a CLIP model"):
        ClipScore(str(vision_models / "vit"), 3, CPU)

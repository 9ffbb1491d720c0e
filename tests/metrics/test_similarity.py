"""CLIP similarity on a tiny CLIP made here, and consistency of features with known angles."""

import math
from pathlib import Path

import pytest
import torch

from fourdiffusion.errors import UserError
from fourdiffusion.metrics.similarity import ImageEncoder, adjacent_consistency, all_pairs_consistency, find_encoder
from fourdiffusion.metrics.weights import Missing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"vocab_size": 99}, vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("encoders") / "tiny-clip"
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def pictures(seed: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """Smooth pictures [3, 3, H, W] whose 8-bit values are exact."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(3, 3, 6, 8, generator=generator)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
    return (large * 255).round() / 255


def test_features_are_those_of_transformers_own_preprocessing(folder: Path) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, CLIPModel

    images = pictures(0)
    files = [Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()) for image in images]
    pixels = AutoImageProcessor.from_pretrained(folder, use_fast=False)(files, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = CLIPModel.from_pretrained(folder).eval().get_image_features(pixel_values=pixels)
    expected = output if isinstance(output, torch.Tensor) else output.pooler_output
    features = ImageEncoder(folder, "tiny-clip")(images)
    assert features.shape == (3, 16)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    cosine = torch.nn.functional.cosine_similarity(features, expected)
    assert float(cosine.min()) > 0.9999  # Pillow rounds to 8 bits between resizing and normalizing
    assert float(torch.nn.functional.cosine_similarity(features, expected.roll(1, 0)).max()) < 0.9999
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        ImageEncoder(folder, "tiny-clip")(images * 255)


def test_consistency_of_a_turning_feature() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3])
    features = torch.stack([angles.cos(), angles.sin()], dim=-1)
    assert adjacent_consistency(features) == pytest.approx((math.cos(0.1) + math.cos(0.2)) / 2)
    assert all_pairs_consistency(features) == pytest.approx((math.cos(0.1) + math.cos(0.2) + math.cos(0.3)) / 3)
    with pytest.raises(ValueError, match="unit length"):
        adjacent_consistency(2 * features)
    with pytest.raises(ValueError, match="at least 2 frames"):
        all_pairs_consistency(features[:1])


def test_an_encoder_is_found_in_named_folders_or_reported_missing(folder: Path, tmp_path: Path) -> None:
    assert find_encoder("somebody/tiny-clip", [str(folder.parent)]) == folder
    missing = find_encoder("nobody/no-such-encoder", [str(tmp_path)])
    assert isinstance(missing, Missing) and "hf download nobody/no-such-encoder" in missing.line()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="image encoder"):
        ImageEncoder(tmp_path, "broken")

"""The terms of the autoencoder's and the towers' stages against their formulas."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from test_objectives import predict
from tiny_model import SIZE, tiny_pipeline
from torch import Tensor, nn

from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.objectives import AutoencoderObjective, DiffusionObjective, TowersObjective

KL = 12.0


class FlatVae(nn.Module):
    """A VAE whose mean and deviation are known: the decoder gives back the first three latents, enlarged."""

    def encode(self, images: Tensor) -> SimpleNamespace:
        self.seen = images
        mean = torch.full((len(images), 4, 2, 2), 0.25)
        latents = SimpleNamespace(mean=mean, std=torch.full_like(mean, 0.5), kl=lambda: torch.full((len(images),), KL))
        return SimpleNamespace(latent_dist=latents)

    def decode(self, z: Tensor) -> SimpleNamespace:
        self.z = z
        return SimpleNamespace(sample=z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3))


class Distance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor, truth: Tensor) -> Tensor:
        assert 0 <= image.min() and image.max() <= 1
        return self.weight * (image - truth).abs().flatten(1).mean(1)


def test_the_terms_of_the_autoencoder() -> None:
    vae: Any = FlatVae()
    pipeline: Any = SimpleNamespace(vae=vae)
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.tensor([4.0, -4.0])[:, None, None, None].expand(2, 4, 2, 2)
    pictures = torch.tensor([1.625, -0.375])[:, None, None, None]  # of 0.25 + 0.5 * 4 = 2.25 and of -1.75
    distance = Distance()
    terms = AutoencoderObjective(pipeline, 1e-2, 0.5, distance)(images, noise)
    assert not distance.weight.requires_grad
    torch.testing.assert_close(vae.seen, images * 2 - 1)
    assert vae.z[0].eq(2.25).all() and vae.z[1].eq(-1.75).all()
    assert float(terms["l1"]) == pytest.approx(float((pictures - images).abs().mean()))
    assert float(terms["l2"]) == pytest.approx(10 * float((pictures - images).square().mean()), rel=1e-5)
    assert float(terms["kl"]) == pytest.approx(1e-2 * 2 * KL / 32)
    small = images.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5)) * 2 - 1
    assert float(terms["low_pass"]) == pytest.approx(float((0.25 - small).square().mean()), rel=1e-5)
    assert float(terms["lpips"]) == pytest.approx(0.5 * float((pictures.clamp(0, 1) - images).abs().mean()), rel=1e-5)
    assert "lpips" not in AutoencoderObjective(pipeline, 1e-2)(images, noise)


def test_the_towers_contrast() -> None:
    """Symmetric cross-entropy at a temperature of 0.1; two samples of one caption share the target."""
    pipeline = tiny_pipeline()
    torch.manual_seed(0)
    objective = TowersObjective(pipeline)
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    captions = ["a red ball", "a green cow", "a red ball"]
    with torch.no_grad():
        found = float(objective(images, captions)["contrast"])
        tokens = encoders.encode_image(pipeline.feature_extractor, pipeline.image_encoder, images)
        states = encoders.encode_text(pipeline.tokenizer, pipeline.text_encoder, captions)
        image = functional.normalize(objective.project_image(tokens.mean(1)), dim=1)
        text = functional.normalize(objective.project_text(states[:, -1]), dim=1)
        logits = 10 * image @ text.T
        wanted = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
        rows = -(wanted * logits.log_softmax(1)).sum(1).mean()
        columns = -(wanted * logits.T.log_softmax(1)).sum(1).mean()
    assert found == pytest.approx(float(rows + columns) / 2, rel=1e-5)


def test_the_towers_train_all_that_is_read() -> None:
    pipeline = tiny_pipeline()
    objective = TowersObjective(pipeline)
    assert set(objective.trainable) == {"text_encoder", "image_encoder", "project_text", "project_image"}
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    objective(images, ["a red ball", "a green cow"])["contrast"].backward()
    without = [n for n, p in objective.trainable.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    frozen = {n for n, p in pipeline.image_encoder.named_parameters() if not p.requires_grad}
    assert frozen and all("post_layernorm" in name or "layers.1." in name for name in frozen)


def test_a_draw_at_the_probability_itself_drops_nothing() -> None:
    objective = DiffusionObjective(tiny_pipeline(moving=True), "motion", 0.5, 0.25, True, None)
    kept = predict(objective, dropout=torch.tensor([[0.5, 0.25], [0.5, 0.25]]))
    assert torch.equal(kept, predict(objective, dropout=torch.ones(2, 2)))

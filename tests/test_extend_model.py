"""The script that makes a model of twice the resolution: latents stay near the old ones, the rest is copied."""

import pytest
import torch
import torch.nn.functional as functional
from conftest import ROOT
from extend_model import extended

from fourdiffusion.cli.schema import shipped
from fourdiffusion.datasets.clips import read_clip
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.media.image import composite

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_the_latents_are_those_of_the_halved_picture_and_decode_to_the_whole() -> None:
    old = load_pipeline(str(shipped("data/models/tiny"))).vae.float()
    new = extended(old, num_steps=200)
    frames = composite(read_clip(ROOT / "tests/data/creature/truth").rgba[::3, 0].float() / 255)
    picture = functional.interpolate(frames, (128, 128), mode="bilinear") * 2 - 1
    with torch.no_grad():
        wanted = old.encode(functional.avg_pool2d(picture, 2)).latent_dist.mean
        found = new.encode(picture).latent_dist.mean
        decoded = new.decode(wanted).sample
    assert functional.mse_loss(found, wanted) < 0.02 * wanted.var()
    assert functional.mse_loss(decoded, picture) < 0.1 * picture.var()
    for name, value in old.decoder.up_blocks.state_dict().items():
        if "upsamplers" not in name:
            assert torch.equal(new.decoder.up_blocks.state_dict()[name], value), name


def test_the_same_model_gives_the_same_weights() -> None:
    old = load_pipeline(str(shipped("data/models/tiny"))).vae.float()
    first, second = (extended(old, num_steps=5).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())

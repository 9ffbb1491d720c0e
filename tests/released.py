"""Checkpoints as others release them, made of fresh weights."""

from pathlib import Path

import torch
from tiny_model import CAPTIONS
from torch import Tensor

from fourdiffusion.diffusion import encoders, release
from fourdiffusion.diffusion.loading import fresh_pipeline
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import ModelConfig


def release_of(pipeline: FourDiffusionPipeline) -> dict[str, Tensor]:
    """What the ImageDream release would hold, had it these weights; with keys that 4DM has no use for."""
    places = release.imagedream_places(pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder)
    tensors: dict[str, Tensor] = {}
    for name, where in places.items():
        tensors |= release.to_release(where, pipeline.components[name].state_dict())
    last = pipeline.text_encoder.config.num_hidden_layers
    for key in ("logit_scale", "text_projection", "visual.proj", f"transformer.resblocks.{last}.ln_1.weight"):
        tensors[release.CLIP_PREFIX + key] = torch.zeros(2)
    return tensors | {"betas": torch.zeros(1000)}


def write_release(path: Path, sizes: ModelConfig, known: dict[str, Tensor] | None = None) -> FourDiffusionPipeline:
    """A release of fresh weights, some of them replaced, and a vocabulary beside it; returns the fresh model."""
    tokenizer = encoders.train_tokenizer(CAPTIONS, sizes.vocab_size, sizes.text_length)
    tokenizer.save_pretrained(path.parent / "tokenizer")
    pipeline = fresh_pipeline(sizes, tokenizer, seed=0)
    torch.save(release_of(pipeline) | (known or {}), path)
    return pipeline

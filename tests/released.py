"""Checkpoints as others release them, made of fresh weights or of the known answers' rule."""

import gzip
import importlib.util
import json
from pathlib import Path

import torch
from conftest import ROOT
from safetensors.torch import load_file
from tiny_model import CAPTIONS
from torch import Tensor

from fourdiffusion.diffusion import encoders, release
from fourdiffusion.diffusion.loading import fresh_pipeline
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import ModelConfig, architecture


def release_of(pipeline: FourDiffusionPipeline) -> dict[str, Tensor]:
    """Return these weights in the format of the ImageDream release, with keys that 4DM does not use."""
    mappings = release.imagedream_mappings(pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder)
    tensors: dict[str, Tensor] = {}
    for name, where in mappings.items():
        tensors |= release.to_release(where, pipeline.components[name].state_dict())
    last = pipeline.text_encoder.config.num_hidden_layers
    for key in ("logit_scale", "text_projection", "visual.proj", f"transformer.resblocks.{last}.ln_1.weight"):
        tensors[release.CLIP_PREFIX + key] = torch.zeros(2)
    return tensors | {"betas": torch.zeros(1000)}


def write_release(path: Path, sizes: ModelConfig, known: dict[str, Tensor] | None = None) -> FourDiffusionPipeline:
    """A release of fresh weights, some of them replaced, and a vocabulary beside it; returns the fresh model."""
    numbers = architecture(sizes)
    tokenizer = encoders.train_tokenizer(CAPTIONS, numbers.vocab_size, numbers.text_length)
    tokenizer.save_pretrained(path.parent / "tokenizer")
    pipeline = fresh_pipeline(sizes, tokenizer, seed=0)
    torch.save(release_of(pipeline) | (known or {}), path)
    return pipeline


ANSWERS = ROOT / "tests/data/reference"


def zipped_json(name: str) -> dict[str, list[int]]:
    """Return a table of keys and shapes of the known answers, ``NAME.json.gz``."""
    content: dict[str, list[int]] = json.loads(gzip.decompress((ANSWERS / f"{name}.json.gz").read_bytes()))
    return content


def rule_weights(group: str) -> dict[str, Tensor]:
    """Return the weights of a narrow network of the known answers, under the release's keys.

    They follow from each key and shape (``rule.py``); the motion modules' position tables are stored.
    """
    spec = importlib.util.spec_from_file_location("rule", ANSWERS / "rule.py")
    assert spec is not None and spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    shapes = json.loads(gzip.decompress((ANSWERS / "keys_narrow.json.gz").read_bytes()))[group]
    stored = load_file(ANSWERS / f"{group.removesuffix('_motion')}.safetensors") if group.endswith("_motion") else {}
    return {
        key: stored[f"tables.{shape[-1]}"].clone()
        if key.endswith("pos_encoder.pe")
        else torch.from_numpy(rule.weight(key, tuple(shape)))
        for key, shape in shapes.items()
    }

"""Minimal model and clips for the tests of the diffusion model and of its verbs."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import Clip, write_clip
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.loading import fresh_pipeline
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import ModelConfig

SIZE = 16  # pixels
LATENT = SIZE // 4  # side of the latents
FRAMES = 4
CAPTIONS = ["two balls, one red", "a green ball that turns"]
AZIMUTHS = [
    [40.0, 130.0, 220.0, 310.0, 15.0, 105.0, 195.0, 285.0],
    [70.0, 160.0, 250.0, 340.0, 0.0, 90.0, 180.0, 270.0],
]
COLOURS = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.7, 0.2], [0.2, 0.1, 0.4]])


def tiny_config(path: str | None = None) -> ModelConfig:
    return ModelConfig(
        path=path,
        num_inference_steps=3,
        guidance_scale=2.0,
        image_size=SIZE,
        channels=[32, 32],
        attention_levels=[True, True],
        blocks_per_level=1,
        head_dim=16,
        context_dim=32,
        num_image_tokens=2,
        resampler_layers=1,
        resampler_heads=2,
        resampler_head_dim=16,
        norm_groups=8,
        motion_heads=2,
        max_frames=8,
        vae_channels=[8, 8, 16],
        vae_blocks_per_level=1,
        vae_norm_groups=4,
        vae_attention=False,
        vocab_size=512,
        text_length=12,
        text_layers=1,
        text_heads=2,
        image_encoder_size=SIZE,
        image_patch=8,
        image_dim=32,
        image_layers=2,
        image_heads=2,
    )


def tiny_pipeline(moving: bool = False) -> FourDiffusionPipeline:
    """A fresh model; with ``moving`` its motion layers do something, as trained ones do."""
    config = tiny_config()
    assert config.vocab_size is not None and config.text_length is not None
    tokenizer = encoders.train_tokenizer(CAPTIONS, config.vocab_size, config.text_length)
    pipeline = fresh_pipeline(config, tokenizer, seed=0)
    if moving:
        generator = torch.Generator().manual_seed(1)
        for layer in pipeline.motion.layers:
            nn.init.normal_(layer.proj_out.weight, std=0.3, generator=generator)
    return pipeline


def balls(index: int, times: Tensor) -> Tensor:
    """Centres [F, 3, 3] of three balls that move, no two alike and none on the axis: no view looks like its mirror."""
    place = torch.tensor([[0.2, 0.1, 0.1], [-0.05, 0.25, -0.1], [0.1, -0.1, 0.25]])
    way = torch.tensor([[0.1, -0.1, 0.05], [0.0, 0.1, 0.15], [-0.15, 0.1, 0.0]]) * (1 - 2 * index)
    return place + way * times[:, None, None]


def picture(c2w: Tensor, centres: Tensor, size: int = SIZE) -> Tensor:
    """Soft balls, RGBA with straight alpha: cameras [..., 4, 4] and centres [..., 3, 3] -> [..., 4, H, W]."""
    origins, directions = cameras.rays(c2w, cameras.FOVY_DEG, size, size)
    offset = centres[..., None, None, :, :] - origins[..., None, :]  # [..., H, W, 3, 3]
    distance = torch.linalg.cross(offset, directions[..., None, :].expand_as(offset)).norm(dim=-1)
    weight = torch.exp(-((distance / 0.12) ** 2))
    alpha = 1 - (1 - weight).prod(-1)
    colour = (weight @ COLOURS) / weight.sum(-1, keepdim=True).clamp(min=1e-6)
    return torch.cat([colour, alpha[..., None]], dim=-1).movedim(-1, -3)


def tiny_clip(index: int) -> Clip:
    """Two sets of four evenly spaced views of three moving balls."""
    c2w = cameras.orbit(torch.tensor(AZIMUTHS[index]))
    times = torch.linspace(0, 1, FRAMES)
    rgba = picture(c2w[:, None].expand(-1, FRAMES, 4, 4), balls(index, times).expand(len(c2w), FRAMES, 3, 3))
    pixels = (rgba * 255).round().to(torch.uint8)
    return Clip(f"clip-{index}", pixels, c2w, cameras.FOVY_DEG, times, CAPTIONS[index], "Apache-2.0", "a test")


def write_clips(folder: Path) -> Path:
    for index in range(2):
        write_clip(folder / f"clip-{index}", tiny_clip(index))
    return folder


def write_model(folder: Path) -> Path:
    tiny_pipeline().save_whole(folder)
    return folder

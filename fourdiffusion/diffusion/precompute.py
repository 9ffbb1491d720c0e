"""Precompute the outputs of the frozen networks for a clip: latents, tokens of the image prompt, text states.

The image prompt is stored as the resampler's tokens, 16 x 1024 numbers per picture at full size; the image tower's
states are 20 times as large.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.finite import require_finite
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.runs import tensor_digest

LATENTS, IMAGE, TEXT, EMPTY_TEXT = "latents", "image_tokens", "text", "empty_text"  # names of the cached tensors
NAMES = (LATENTS, IMAGE, TEXT, EMPTY_TEXT)


@torch.no_grad()
def encode_pictures(pipeline: FourDiffusionPipeline, images: Tensor, batch: int) -> dict[str, Tensor]:
    """Encode RGB images on white in [0, 1], [N, 3, H, W], ``batch`` at a time.

    Returns:
        latents [N, C, h, w] (the posterior's mean, scaled) and image_tokens [N, T, D], float32 on the CPU.

    Raises:
        UserError: an encoder's output is not finite.
    """
    latents, tokens = [], []
    for part in images.split(batch):
        part = part.to(pipeline.vae.device)
        latents.append(encoders.encode_latents(pipeline.vae, part).cpu())
        states = encoders.encode_image(pipeline.feature_extractor, pipeline.image_encoder, part)
        tokens.append(pipeline.unet.resampler(states[None])[0].float().cpu())
    found = {LATENTS: torch.cat(latents), IMAGE: torch.cat(tokens)}
    for name, value in found.items():
        require_finite(value, f"encoding: {name}")
    return found


@torch.no_grad()
def encode_captions(pipeline: FourDiffusionPipeline, captions: list[str]) -> Tensor:
    """Return the text states [B, L, D] of captions, float32 on the CPU."""
    return encoders.encode_text(pipeline.tokenizer, pipeline.text_encoder, captions).float().cpu()


@torch.no_grad()
def tokens_without_image(pipeline: FourDiffusionPipeline) -> Tensor:
    """Return the resampler's tokens [T, D] for an image prompt of zeros, the dropped image prompt."""
    vision = pipeline.image_encoder.config
    count = (vision.image_size // vision.patch_size) ** 2 + 1
    resampler = pipeline.unet.resampler
    weight = next(resampler.parameters())
    return resampler(weight.new_zeros(1, 1, count, vision.hidden_size))[0, 0]


def encoder_digests(pipeline: FourDiffusionPipeline, names: Sequence[str] = NAMES) -> dict[str, str]:
    """Return {tensor's name: sha256 of the weights that compute it}: cached tensors are valid for one model."""
    text: list[nn.Module] = [pipeline.text_encoder]
    image: list[nn.Module] = [pipeline.image_encoder, pipeline.unet.resampler]
    makers: dict[str, list[nn.Module]] = {LATENTS: [pipeline.vae], IMAGE: image, TEXT: text, EMPTY_TEXT: text}
    return {name: _digest(makers[name]) for name in names}


def _digest(modules: list[nn.Module]) -> str:
    found = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            found.update(f"{name} {tensor_digest(value.float().cpu())}\n".encode())
    return found.hexdigest()

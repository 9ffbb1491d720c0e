"""4D-aware score distillation in x0 form (paper Eq. 10).

Functions of tensors; the denoiser is an argument, so that any model, backend or cache can be used.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor

from fourdiffusion.diffusion import encoders


def add_noise(z: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise; alpha_bar is a scalar tensor."""
    return alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * noise


def predict_x0(z_t: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return the clean latent of ``z_t`` under the predicted ``noise``."""
    return (z_t - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()


def velocity(z: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) z (Salimans and Ho 2022)."""
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * z


def noise_of_velocity(z_t: Tensor, v: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return the noise in ``z_t`` under the v prediction ``v``."""
    return alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * z_t


def guide(noise_cond: Tensor, noise_uncond: Tensor, guidance: float) -> Tensor:
    """Return the prediction with classifier-free guidance: uncond + guidance * (cond - uncond)."""
    return noise_uncond + guidance * (noise_cond - noise_uncond)


@torch.no_grad()
def sds_target(
    z_t: Tensor, noise_cond: Tensor, noise_uncond: Tensor, alpha_bar: Tensor, guidance: float, rescale: float
) -> Tensor:
    """Return x0': the guided clean latents, partly rescaled to the standard deviation without guidance.

    x0' = r * x0 * std(x0 without guidance) / std(x0) + (1 - r) * x0, with the standard deviation over the whole clip.

    Args:
        z_t, noise_cond, noise_uncond: [F, V, C, h, w].
        alpha_bar: scalar tensor in (0, 1).
        guidance: classifier-free guidance scale (paper: 5).
        rescale: r in [0, 1] (paper: 0.2).
    """
    x0 = predict_x0(z_t, guide(noise_cond, noise_uncond, guidance), alpha_bar)
    x0_plain = predict_x0(z_t, noise_cond, alpha_bar)
    return x0 * (rescale * x0_plain.std() / x0.std() + (1 - rescale))


def sds_loss(z: Tensor, target: Tensor) -> Tensor:
    """Return 0.5 * sum((z - stopgrad(x0'))^2) / (F V), Eq. 10; z and target [F, V, C, h, w]."""
    return 0.5 * (z - target.detach()).square().sum() / (z.shape[0] * z.shape[1])


def distil(
    images: Tensor,
    size: int,
    vae: AutoencoderKL,
    denoise: Callable[[Tensor], tuple[Tensor, Tensor]],
    alpha_bar: Tensor,
    guidance: float,
    rescale: float,
    generator: torch.Generator,
    chunk: int = 0,
    in_pixels: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the SDS loss of renders and its gradient with respect to them.

    Args:
        images: renders of any square size, RGB in [0, 1], [F, V, 3, side, side].
        size: side in pixels of the model's training images.
        denoise: noisy latents [F, V, C, h, w] -> conditional and unconditional noise, at the level of ``alpha_bar``.
        alpha_bar, guidance, rescale: see ``sds_target``.
        generator: of the noise.
        chunk: pictures encoded with gradient at a time; 0: all. Limits the memory of the VAE's activations; pictures
            are then encoded twice.
        in_pixels: compare the renders with the decoded x0' in RGB instead of in latents (Eq. 10), without a gradient
            through the VAE (not in the paper; like ReconFusion's sampled views, Wu et al. 2024).

    Returns:
        The loss, and its gradient [F, V, 3, side, side].
    """
    flat = images.flatten(0, 1).detach().contiguous().requires_grad_()
    parts = flat.split(chunk or len(flat))
    whole = len(parts) == 1 and not in_pixels
    with torch.set_grad_enabled(whole):
        latents = torch.cat([encoders.encode_latents(vae, _resize(part, size)) for part in parts])
    z = latents.detach().unflatten(0, images.shape[:2])
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    z_t = add_noise(z, noise, alpha_bar)
    target = sds_target(z_t, *denoise(z_t), alpha_bar, guidance, rescale)
    if in_pixels:
        loss = sds_loss(_resize(flat, size).unflatten(0, images.shape[:2]), encoders.decode_latents(vae, target))
        loss.backward()
    else:
        loss = sds_loss(z.requires_grad_(), target)
        (slope,) = torch.autograd.grad(loss, z)
        if whole:
            latents.backward(slope.flatten(0, 1))
        else:
            for part, part_slope in zip(parts, slope.flatten(0, 1).split(chunk), strict=True):
                encoders.encode_latents(vae, _resize(part, size)).backward(part_slope)
    assert flat.grad is not None
    return loss.detach(), flat.grad.view_as(images)


def _resize(images: Tensor, size: int) -> Tensor:
    """Return renders [N, 3, side, side] resized to the model's size."""
    if images.shape[-1] == size:
        return images
    return functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def draw_window(num_frames: int, length: int, generator: torch.Generator) -> Tensor:
    """Return the frame indices of one SDS step: all, or ``length`` of a longer video at a random stride and offset."""
    if num_frames <= length:
        return torch.arange(num_frames)
    longest = max((num_frames - 1) // max(length - 1, 1), 1)
    stride = 1 + int(torch.randint(longest, (), generator=generator))
    start = int(torch.randint(num_frames - (length - 1) * stride, (), generator=generator))
    return start + stride * torch.arange(length)

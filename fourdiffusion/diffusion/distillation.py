"""4D-aware score distillation in x0 form (paper Eq. 10).

Pure functions of tensors; the denoiser is called outside, so that any model, backend or cache can stand behind it.
"""

import torch
from torch import Tensor


def add_noise(z: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise; alpha_bar is a scalar tensor."""
    return alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * noise


def predict_x0(z_t: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean latent that ``z_t`` would come from if ``noise`` was what had been added."""
    return (z_t - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()


def velocity(z: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) z (Salimans and Ho 2022)."""
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * z


def noise_of_velocity(z_t: Tensor, v: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise in ``z_t`` that the velocity ``v`` speaks of."""
    return alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * z_t


def guide(noise_cond: Tensor, noise_uncond: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: the unconditional prediction pushed ``guidance`` times towards the conditional one."""
    return noise_uncond + guidance * (noise_cond - noise_uncond)


@torch.no_grad()
def sds_target(
    z_t: Tensor, noise_cond: Tensor, noise_uncond: Tensor, alpha_bar: Tensor, guidance: float, rescale: float
) -> Tensor:
    """x0': the guided clean latents, partly brought back to the spread that they have without guidance.

    x0' = r * x0 * std(x0 without guidance) / std(x0) + (1 - r) * x0, the deviation over the whole clip.

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
    """0.5 * sum((z - stopgrad(x0'))^2) / (F V), Eq. 10; z and target [F, V, C, h, w]."""
    return 0.5 * (z - target.detach()).square().sum() / (z.shape[0] * z.shape[1])

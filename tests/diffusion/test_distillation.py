"""The gradient of SDS on renders, in latents (Eq. 10) and in pixels."""

import pytest
import torch
import torch.nn.functional as functional
from tiny_model import SIZE, tiny_pipeline
from torch import Tensor

from fourdiffusion.diffusion import distillation, encoders

ALPHA_BAR = torch.tensor(0.3)
FRAMES, VIEWS = 2, 3


def guess(z_t: Tensor) -> tuple[Tensor, Tensor]:
    """A denoiser that stands for any: noise that depends on its input."""
    return 0.9 * z_t, 0.7 * z_t.roll(1, 0)


@pytest.mark.parametrize("in_pixels", [False, True])
@pytest.mark.parametrize("side, chunk", [(SIZE, 0), (SIZE // 2, 4)])
def test_the_gradient_is_that_of_the_loss_with_a_fixed_target(in_pixels: bool, side: int, chunk: int) -> None:
    vae = tiny_pipeline().vae
    images = torch.rand(FRAMES, VIEWS, 3, side, side, generator=torch.Generator().manual_seed(0))
    loss, gradient = distillation.distil(
        images, SIZE, vae, guess, ALPHA_BAR, 5.0, 0.2, torch.Generator().manual_seed(1), chunk, in_pixels
    )
    leaf = images.clone().requires_grad_()
    brought = functional.interpolate(leaf.flatten(0, 1), (SIZE, SIZE), mode="bilinear").unflatten(0, images.shape[:2])
    z = encoders.encode_latents(vae, brought)
    z_t = distillation.add_noise(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(1)), ALPHA_BAR)
    target = distillation.sds_target(z_t, *guess(z_t), ALPHA_BAR, 5.0, 0.2)
    render, aim = (brought, encoders.decode_latents(vae, target)) if in_pixels else (z, target)
    expected = 0.5 * (render - aim).square().sum() / (FRAMES * VIEWS)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)
    assert gradient.norm() > 0

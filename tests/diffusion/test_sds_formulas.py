"""The formulas of score distillation against numbers worked out by hand."""

import pytest
import torch
from torch import Tensor

from fourdiffusion.diffusion import distillation as sds

A = torch.tensor(0.36)  # sqrt(A) = 0.6, sqrt(1 - A) = 0.8


def test_noise_is_added_removed_and_turned_into_velocity() -> None:
    z, noise = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    z_t = sds.add_noise(z, noise, A)
    torch.testing.assert_close(z_t, torch.tensor([1.6, 0.2]))
    torch.testing.assert_close(sds.predict_x0(z_t, noise, A), z)
    v = sds.velocity(z, noise, A)
    torch.testing.assert_close(v, torch.tensor([-1.3, 1.4]))
    torch.testing.assert_close(sds.noise_of_velocity(z_t, v, A), noise)


def test_guidance_goes_from_the_unconditional_through_the_conditional_prediction() -> None:
    cond, uncond = torch.tensor([2.0]), torch.tensor([0.5])
    assert [float(sds.guide(cond, uncond, g)) for g in (0.0, 1.0, 3.0)] == [0.5, 2.0, 5.0]


def test_the_target_is_rescaled_by_its_share() -> None:
    generator = torch.Generator().manual_seed(0)
    z_t, cond, uncond = (torch.randn(2, 4, 3, 2, 2, generator=generator) for _ in range(3))
    x0 = (z_t - 0.8 * (uncond + 5 * (cond - uncond))) / 0.6
    plain = (z_t - 0.8 * cond) / 0.6
    for share in (0.0, 0.2, 1.0):
        expected = share * x0 * plain.std() / x0.std() + (1 - share) * x0
        torch.testing.assert_close(sds.sds_target(z_t, cond, uncond, A, 5.0, share), expected)
    assert not sds.sds_target(z_t.requires_grad_(), cond, uncond, A, 5.0, 0.2).requires_grad


def test_the_loss_is_half_the_squared_distance_per_picture() -> None:
    z, target = torch.zeros(2, 3, 1, 2, 2), torch.full((2, 3, 1, 2, 2), 3.0)
    assert float(sds.sds_loss(z, target)) == pytest.approx(0.5 * 9 * 24 / 6)
    z.requires_grad_()
    sds.sds_loss(z, target).backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.full_like(z, -3.0 / 6))  # minus the gradient leads to the target


class Vae:
    """Latents are the pictures in [-1, 1], with a fourth channel of zeros."""

    dtype = torch.float32

    class config:
        scaling_factor = 1.0

    sizes: list[int] = []

    def encode(self, images: Tensor) -> object:
        from types import SimpleNamespace

        self.sizes.append(len(images))
        mean = torch.cat([images, torch.zeros_like(images[:, :1])], dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))


@pytest.mark.parametrize(("chunk", "sizes"), [(0, [6]), (4, [4, 2, 4, 2])])
def test_pictures_are_encoded_in_chunks_with_one_gradient(chunk: int, sizes: list[int]) -> None:
    vae = Vae()
    vae.sizes = []
    images = torch.full((2, 3, 3, 4, 4), 0.75)  # latents 0.5
    target = torch.full((2, 3, 4, 4, 4), 0.1)

    def denoise(z_t: Tensor) -> tuple[Tensor, Tensor]:
        noise = (z_t - 0.6 * target) / 0.8
        return noise, noise

    loss, gradient = sds.distil(
        images,
        4,
        vae,
        denoise,
        A,
        5.0,
        0.2,
        torch.Generator().manual_seed(0),
        chunk,  # type: ignore[arg-type]
    )
    assert vae.sizes == sizes
    expected = 0.5 * (3 * 16 * 0.4**2 + 16 * 0.1**2)
    assert float(loss) == pytest.approx(expected, rel=1e-4) and not loss.requires_grad
    torch.testing.assert_close(gradient, torch.full_like(images, 2 * 0.4 / 6), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("num_frames", "length", "longest"), [(9, 4, 2), (10, 4, 3), (7, 4, 2), (6, 4, 1), (5, 1, 4)])
def test_windows_have_every_stride_and_place_that_fits(num_frames: int, length: int, longest: int) -> None:
    generator = torch.Generator().manual_seed(0)
    seen = {tuple(sds.draw_window(num_frames, length, generator).tolist()) for _ in range(600)}
    strides = range(1, longest + 1)
    every = {
        tuple(start + stride * n for n in range(length))
        for stride in strides
        for start in range(num_frames - (length - 1) * stride)
    }
    assert seen == every


def test_a_short_video_is_its_own_window() -> None:
    for num_frames in (1, 3, 4):
        assert sds.draw_window(num_frames, 4, torch.Generator()).tolist() == list(range(num_frames))
    assert len(sds.draw_window(5, 4, torch.Generator())) == 4

"""Cameras against the known answers and their own symmetries."""

import pytest
import torch
from safetensors.torch import load_file

from fourdiffusion import cameras


@pytest.fixture
def answers(known_answers):
    return load_file(known_answers / "cameras.safetensors")


def test_orbit_rays_and_conditioning_equal_the_reference(answers):
    c2w = cameras.orbit(answers["orbit.azimuth_deg"], answers["orbit.elevation_deg"], answers["orbit.distance"])
    torch.testing.assert_close(c2w, answers["orbit.c2w"], atol=1e-5, rtol=0)
    _, directions = cameras.rays(c2w, answers["orbit.fovy_deg"], 8, 8)
    torch.testing.assert_close(directions, answers["orbit.rays_d_8x8"], atol=1e-5, rtol=0)
    torch.testing.assert_close(cameras.conditioning(c2w), answers["orbit.condition"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("elevation", [0, 15])
def test_the_samplers_views_stand_at_azimuth_0_90_180_270(answers, elevation):
    expected = answers[f"imagedream.elevation{elevation}"]
    views = cameras.conditioning(cameras.orbit(cameras.orthogonal_azimuths(4), elevation))
    torch.testing.assert_close(views, expected[:4], atol=1e-5, rtol=0)
    assert not expected[4].any()  # the extra view's camera


def test_central_ray_looks_at_the_origin():
    c2w = cameras.orbit(torch.tensor([33.0, 200.0]), torch.tensor([12.0, -40.0]), 1.7)
    origins, directions = cameras.rays(c2w, 50.0, 5, 5)
    torch.testing.assert_close(origins[:, 2, 2] + 1.7 * directions[:, 2, 2], torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2, 5, 5))


def test_rotation_is_right_handed_and_orthonormal():
    rotation = cameras.orbit(torch.linspace(-180, 180, 7), 30.0)[..., :3, :3]
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3).expand(7, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(7))


def test_wide_images_have_square_pixels():
    _, directions = cameras.rays(cameras.orbit(0.0), 45.0, 4, 8)
    slopes = directions / -directions[..., :1]  # the camera at azimuth 0 looks along -x
    torch.testing.assert_close(
        slopes[0, 1, 1] - slopes[0, 0, 1], slopes[0, 0, 2] - slopes[1, 0, 2], rtol=1e-4, atol=1e-6
    )


def test_elevation_over_the_pole_is_refused():
    with pytest.raises(ValueError, match="90"):
        cameras.orbit(0.0, 95.0)

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


@pytest.mark.parametrize("elevation", [-90.0, 90.0])
def test_the_poles_themselves_are_refused(elevation: float) -> None:
    with pytest.raises(ValueError, match="90"):
        cameras.orbit(0.0, elevation)


def test_orbit_by_hand() -> None:
    """Azimuth turns from +x towards +y, elevation rises towards +z; right, up, back are the columns."""
    half = 0.5**0.5
    expected = torch.tensor(
        [[-1.0, 0.0, 0.0, 0.0], [0.0, -half, half, 2 * half], [0.0, half, half, 2 * half], [0.0, 0.0, 0.0, 1.0]]
    )
    torch.testing.assert_close(cameras.orbit(90.0, 45.0, 2.0), expected, atol=1e-6, rtol=0)
    assert float(cameras.orbit(0.0)[0, 3]) == pytest.approx(1.1)
    assert cameras.orbit(torch.zeros(2, 1), torch.zeros(3)).shape == (2, 3, 4, 4)


def test_azimuths_are_evenly_spaced_from_the_offset() -> None:
    assert cameras.orthogonal_azimuths(4).tolist() == [0, 90, 180, 270]
    assert cameras.orthogonal_azimuths(3, 30.0).tolist() == [30, 150, 270]


def test_azimuth_of_a_camera() -> None:
    azimuths = torch.tensor([-179.0, -90.0, -30.0, 0.0, 45.0, 90.0, 135.0, 180.0])
    found = cameras.azimuth_deg(cameras.orbit(azimuths, 20.0, 3.0))
    torch.testing.assert_close(found[:7], azimuths[:7], atol=1e-3, rtol=0)
    assert abs(float(found[7])) == pytest.approx(180, abs=1e-3)  # the sign is the rounding's


def test_turning_a_camera_adds_to_its_azimuth() -> None:
    angles = torch.tensor([10.0, -70.0])
    turned = cameras.turn(cameras.orbit(torch.tensor([20.0, 20.0]), 30.0), angles)
    torch.testing.assert_close(turned, cameras.orbit(torch.tensor([30.0, -50.0]), 30.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(cameras.turn(cameras.orbit(20.0), 5.0), cameras.orbit(25.0), atol=1e-6, rtol=0)


def test_the_mirrored_camera_sees_the_mirrored_point_at_the_mirrored_pixel() -> None:
    c2w, point = cameras.orbit(torch.tensor([25.0, 130.0]), torch.tensor([40.0, -10.0])), torch.tensor([0.3, 0.2, -0.1])

    def seen(camera: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        homogeneous = torch.cat([place, torch.ones(1)])
        return (torch.linalg.inv(camera) @ homogeneous)[..., :3]

    mirrored = cameras.mirror(c2w)
    flipped = seen(mirrored, point * torch.tensor([1.0, -1.0, 1.0]))
    torch.testing.assert_close(flipped, seen(c2w, point) * torch.tensor([-1.0, 1.0, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(mirrored[:, :3, :3]), torch.ones(2))  # a rotation still
    torch.testing.assert_close(mirrored, cameras.orbit(torch.tensor([-25.0, -130.0]), torch.tensor([40.0, -10.0])))


def test_a_camera_is_found_to_a_hundredth() -> None:
    c2w = cameras.orbit(cameras.orthogonal_azimuths(4), 10.0)
    assert [cameras.find(c2w, camera) for camera in c2w] == [0, 1, 2, 3]
    moved = c2w[2].clone()
    moved[0, 3] += 0.009
    assert cameras.find(c2w, moved) == 2
    moved[0, 3] += 0.002
    assert cameras.find(c2w, moved) is None
    exact = torch.zeros(1, 4, 4)
    assert cameras.find(exact, exact[0] + 0.01) == 0  # the bound itself


def test_rays_of_a_wide_image_by_hand() -> None:
    """The corner pixel's centre at 90 degrees: half a pixel inside the frame, row 0 at the top."""
    origins, directions = cameras.rays(cameras.orbit(0.0, 0.0, 2.0), 90.0, 2, 4)
    assert directions.shape == origins.shape == (2, 4, 3)
    corner = torch.tensor([-1.0, -1.5, 0.5])  # forward -x, left -y, up z
    torch.testing.assert_close(directions[0, 0], corner / corner.norm(), atol=1e-6, rtol=0)
    torch.testing.assert_close(origins[1, 3], torch.tensor([2.0, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_conditioning_keeps_rotation_and_scales_the_place() -> None:
    c2w = cameras.orbit(torch.tensor([30.0]), 20.0, 3.0)
    values = cameras.conditioning(c2w).view(1, 4, 4)
    torch.testing.assert_close(values[..., :3], c2w[..., :3])
    torch.testing.assert_close(values[:, :3, 3], c2w[:, :3, 3] / 3, atol=1e-6, rtol=0)
    torch.testing.assert_close(values[:, 3], c2w[:, 3])
    assert float(c2w[0, :3, 3].norm()) == pytest.approx(3)  # the argument is as it was


def test_one_camera_and_a_grid_of_cameras_are_conditioned_as_a_list_is() -> None:
    c2w = cameras.orbit(torch.tensor([0.0, 40.0, 80.0, 120.0, 160.0, 200.0]), 20.0, 1.7)
    each = cameras.conditioning(c2w)
    assert torch.equal(cameras.conditioning(c2w[2]), each[2])
    assert torch.equal(cameras.conditioning(c2w.view(2, 3, 4, 4)), each.view(2, 3, 16))


def test_the_default_camera_is_the_releases_and_elevations_reach_up_to_the_poles() -> None:
    assert (cameras.FOVY_DEG, cameras.DISTANCE) == (45.0, 1.1)
    assert float(cameras.orbit(0.0, 89.5)[2, 3]) == pytest.approx(1.1, abs=1e-3)

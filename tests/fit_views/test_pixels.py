"""The pixels of a fit to multi-view video, and the space that their silhouettes leave."""

from pathlib import Path

import pytest
import torch
from tiny_model import SIZE, tiny_clip

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import open_clip, write_clip
from fourdiffusion.errors import UserError
from fourdiffusion.fit_views.pixels import (
    HALF_EXTENT,
    PixelSet,
    load_pixels,
    normalizing_transform,
    to_scene,
    visual_hull,
)

VIEWS, KEPT_FRAMES = [1, 4, 6], [0, 2, 3]


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> PixelSet:
    folder = tmp_path_factory.mktemp("clips") / "clip"
    write_clip(folder, tiny_clip(0))
    clip = open_clip(folder)
    return load_pixels(clip, VIEWS, KEPT_FRAMES, clip.c2w)


def test_rays_and_colors_belong_to_the_same_view_frame_and_pixel(pixels: PixelSet) -> None:
    clip = tiny_clip(0)
    origins, directions = cameras.rays(clip.c2w[VIEWS], clip.fovy_deg, SIZE, SIZE)  # [V, H, W, 3]
    found, rgba = pixels.draw(500, 0.5, torch.Generator().manual_seed(0))
    truth = clip.rgba[VIEWS][:, KEPT_FRAMES].permute(1, 0, 3, 4, 2).float() / 255  # [F, V, H, W, 4]
    for k in range(500):
        frame = int((clip.times[KEPT_FRAMES] - found.times[k]).abs().argmin())
        view = int((clip.c2w[VIEWS][:, :3, 3] - found.origins[k]).norm(dim=-1).argmin())
        error = (directions[view] - found.directions[k]).norm(dim=-1)  # [H, W]
        row, column = divmod(int(error.argmin()), SIZE)
        assert error.min() < 1e-5
        assert torch.equal(truth[frame, view, row, column], rgba[k])
    assert found.jitter.min() >= 0 and found.jitter.max() < 1


def test_the_foreground_share_is_of_the_rays(pixels: PixelSet) -> None:
    near = torch.zeros(len(pixels.rgba), dtype=torch.bool)
    near[pixels.foreground.long()] = True
    assert 0.05 < near.float().mean() < 0.9
    assert near[pixels.rgba[:, 3] > 8].all()
    alpha = pixels.rgba[:, 3].view(9, 1, SIZE, SIZE).float()
    assert not near.view(9, 1, SIZE, SIZE)[torch.nn.functional.max_pool2d(alpha, 5, 1, 2) <= 8].any()
    for share in (0.0, 1.0):
        _, rgba = pixels.draw(4000, share, torch.Generator().manual_seed(1))
        everywhere = pixels.rgba[:, 3].float().mean() / 255
        among_near = pixels.rgba[pixels.foreground.long(), 3].float().mean() / 255
        expected = among_near if share else everywhere
        assert abs(float(rgba[:, 3].mean() - expected)) < 0.03


def test_wide_pictures_have_wide_rays() -> None:
    shape = (1, 1, 4, 8)
    c2w = cameras.orbit(torch.tensor([30.0]), 10.0)
    wide = PixelSet(torch.zeros(32, 4, dtype=torch.uint8), shape, c2w, 40.0, torch.zeros(1), torch.empty(0))
    _, directions, _ = wide.rays(torch.arange(32))
    _, expected = cameras.rays(c2w[0], 40.0, 4, 8)
    torch.testing.assert_close(directions.view(4, 8, 3), expected)


def test_the_hull_holds_a_moving_ball_and_little_else() -> None:
    radius, size = 0.15, 40
    c2w = cameras.orbit(torch.tensor([0.0, 60, 120, 180, 240, 300]), torch.tensor([0.0, 40, 0, -40, 0, 70]))
    centers = torch.tensor([[-0.2, 0.0, 0.1], [0.2, 0.1, 0.0]])  # of two frames
    origins, directions = cameras.rays(c2w, cameras.FOVY_DEG, size, size)
    offset = centers[:, None, None, None] - origins  # [F, V, H, W, 3]
    alpha = torch.linalg.cross(offset, directions.expand_as(offset)).norm(dim=-1) < radius
    rgba = torch.zeros(*alpha.shape, 4, dtype=torch.uint8)
    rgba[..., 3] = alpha * 255
    foreground = alpha.flatten().nonzero().squeeze(1).to(torch.int32)
    times = torch.tensor([0.0, 1.0])
    pixels = PixelSet(rgba.view(-1, 4), tuple(alpha.shape), c2w, cameras.FOVY_DEG, times, foreground)  # type: ignore[arg-type]

    hull = visual_hull(pixels, 32, 0.5)
    index = torch.arange(32)
    x = ((torch.stack(torch.meshgrid(index, index, index, indexing="ij"), dim=-1) + 0.5) / 16 - 1) / 2
    distance = (x[..., None, :] - centers).norm(dim=-1).amin(-1)
    assert hull[distance < radius].all()
    balls_share = (distance < radius).float().mean()
    assert hull.float().mean() < 3 * balls_share
    assert hull.flip(2).float().mean() == hull.float().mean() and not hull.flip(2)[distance < radius].all()
    # one frame's silhouettes rule out where the ball was at the other
    half = len(rgba.view(-1, 4)) // 2
    last = PixelSet(rgba.view(-1, 4)[half:], (1, *pixels.shape[1:]), c2w, cameras.FOVY_DEG, times[1:], foreground)
    assert not visual_hull(last, 32, 0.5)[(x - centers[0]).norm(dim=-1) < radius].any()


def test_without_alpha_nothing_is_ruled_out(tmp_path: Path) -> None:
    clip = tiny_clip(0)
    clip.rgba[:, :, 3] = 255
    write_clip(tmp_path / "clip", clip)
    opened = open_clip(tmp_path / "clip")
    pixels = load_pixels(opened, [0, 1], [0, 1], opened.c2w)
    assert not pixels.has_alpha
    assert visual_hull(pixels, 8, 1.0).all()


def test_an_empty_clip_is_refused(tmp_path: Path) -> None:
    clip = tiny_clip(0)
    clip.rgba[:, :, 3] = 0
    write_clip(tmp_path / "clip", clip)
    opened = open_clip(tmp_path / "clip")
    with pytest.raises(UserError, match="every pixel is transparent"):
        load_pixels(opened, [0], [0], opened.c2w)


def test_a_moved_and_scaled_world_is_brought_back() -> None:
    c2w = cameras.orbit(torch.arange(6) * 60.0, torch.tensor([0.0, 20, -10, 5, 30, 0]))
    away = c2w.clone()
    away[:, :3, 3] = c2w[:, :3, 3] * 4 + torch.tensor([3.0, -1.0, 2.0])
    center, scale = normalizing_transform(away, cameras.FOVY_DEG, 1.0)
    torch.testing.assert_close(center, torch.tensor([3.0, -1.0, 2.0]), atol=1e-4, rtol=0)
    assert scale == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(to_scene(away, center, scale), c2w, atol=1e-4, rtol=0)


def test_a_narrower_view_brings_the_world_nearer() -> None:
    c2w = cameras.orbit(torch.arange(4) * 90.0)
    _, scale = normalizing_transform(c2w, 20.0, 1.0)
    seen = cameras.DISTANCE * torch.tan(torch.deg2rad(torch.tensor(10.0)))
    assert scale == pytest.approx(HALF_EXTENT / float(seen), rel=1e-4)
    _, portrait = normalizing_transform(c2w, cameras.FOVY_DEG, 0.5)
    assert portrait == pytest.approx(2.0, rel=1e-4)


def test_the_default_world_and_parallel_axes_stay() -> None:
    assert normalizing_transform(cameras.orbit(torch.arange(4) * 90.0), cameras.FOVY_DEG, 1.0)[1] == 1.0
    parallel = cameras.orbit(torch.zeros(3))
    parallel[:, 1, 3] = torch.tensor([0.0, 5.0, 9.0])
    center, scale = normalizing_transform(parallel, 10.0, 1.0)
    assert scale == 1.0 and not center.any()


def test_a_patch_is_a_square_of_one_picture_around_the_object(pixels: PixelSet) -> None:
    side, where = 5, set()
    for seed in range(40):
        drawn, rgba = pixels.draw_patch(side, torch.Generator().manual_seed(seed))
        num_frames, num_views, height, width = pixels.shape
        found = [
            (frame, view, top, left)
            for frame in range(num_frames) for view in range(num_views)
            for top in range(height - side + 1) for left in range(width - side + 1)
            if torch.equal(
                pixels.rgba.view(*pixels.shape, 4)[frame, view, top : top + side, left : left + side].flatten(0, 1),
                (rgba * 255).round().to(torch.uint8),
            )
        ]  # fmt: skip
        rows = [pixels.rays(_places(pixels, *at, side)) for at in found]
        assert any(torch.equal(drawn.directions, row[1]) and torch.equal(drawn.origins, row[0]) for row in rows)
        assert bool((rgba[:, 3] > 0).any())
        where |= set(found)
    assert len({at[0] for at in where}) > 1 and len({at[1] for at in where}) > 1
    whole = pixels.draw_patch(min(pixels.shape[2:]), torch.Generator().manual_seed(0))[1]
    assert len(whole) == min(pixels.shape[2:]) ** 2


def _places(pixels: PixelSet, frame: int, view: int, top: int, left: int, side: int) -> torch.Tensor:
    _, num_views, height, width = pixels.shape
    row, column = torch.arange(top, top + side)[:, None], torch.arange(left, left + side)
    return ((frame * num_views + view) * height * width + row * width + column).flatten()

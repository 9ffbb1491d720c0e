"""The script that makes the sample which ships: the truth is half as large as the video, its colors free of fringes."""

import dataclasses
from pathlib import Path

import make_sample
import torch

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import opaque_clip, read_clip, write_clip
from fourdiffusion.media.read import video_frames


def test_colors_are_averaged_by_opacity() -> None:
    rgba = torch.zeros(1, 1, 4, 2, 4, dtype=torch.uint8)
    rgba[0, 0, 1, :, :2] = 90  # transparent green, but for one opaque red pixel
    rgba[0, 0, :, 0, 0] = torch.tensor([200, 0, 0, 255], dtype=torch.uint8)
    rgba[0, 0, :, :, 2:] = torch.tensor([10, 20, 30, 255], dtype=torch.uint8)[:, None, None]
    small = make_sample.halved(rgba)
    assert small.shape == (1, 1, 4, 1, 2)
    assert small[0, 0, :, 0, 0].tolist() == [200, 0, 0, 64]
    assert small[0, 0, :, 0, 1].tolist() == [10, 20, 30, 255]


def test_the_video_is_view_0_and_the_truth_all_views_at_half_the_size(tmp_path: Path) -> None:
    views = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, -1)
    views = views.repeat_interleave(8, -2)  # [2, 3, 3, 64, 64], flat squares of 8 pixels
    clip = opaque_clip("fox-run", views, cameras.orbit(torch.tensor([0.0, 45.0])), 49.1, "a fox", "a test")
    write_clip(tmp_path / "clip", dataclasses.replace(clip, author="Ann", license="CC0-1.0"))
    make_sample.main(tmp_path / "sample", tmp_path / "clip")
    truth = read_clip(tmp_path / "sample/truth")
    assert (truth.uid, truth.author, truth.license, truth.caption) == ("truth", "Ann", "CC0-1.0", "a fox")
    torch.testing.assert_close(truth.rgba[:, :, :3, ::4, ::4] / 255, views[..., ::8, ::8], atol=3e-3, rtol=0)
    frames = video_frames(tmp_path / "sample/input.mp4", {0, 1, 2})  # small videos are written at 256 pixels
    shown = torch.stack([torch.tensor(frame[2::4, 2::4, :3]) for frame in frames]).movedim(-1, 1) / 255
    near, far = ((shown - view).abs().mean() for view in views)
    assert near < 0.1 < far

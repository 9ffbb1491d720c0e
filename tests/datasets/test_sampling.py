"""Training samples: repeatable, seen from the input camera, mirrored with their cameras; bad clips are named."""

from itertools import product
from pathlib import Path

import pytest
import torch
from tiny_model import AZIMUTHS, CAPTIONS, FRAMES, balls, picture, tiny_clip, write_clips
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import write_clip
from fourdiffusion.datasets.sampling import Batch, ClipSamples, collate, even_rigs
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.errors import UserError
from fourdiffusion.media.image import composite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


def same(a: Batch, b: Batch) -> bool:
    tensors = torch.equal(a.target, b.target) and torch.equal(a.input, b.input) and torch.equal(a.c2w, b.c2w)
    return tensors and a.captions == b.captions


def read(config: DataConfig, num_frames: int, size: int, seed: int = 0, step: int = 0, first: int = 0) -> Batch:
    """Samples first .. first + size - 1 of a step."""
    samples = ClipSamples(config, num_frames, seed)
    return collate([samples[step, number] for number in range(first, first + size)])


def gap(a: Tensor, b: Tensor | float) -> Tensor:
    """Smallest angle between azimuths in degrees."""
    return ((a - b + 180) % 360 - 180).abs()


def test_a_sample_is_a_function_of_seed_step_and_number(clips: Path) -> None:
    config = DataConfig(str(clips), num_frames=2, augment=True)
    reader = ClipSamples(config, 2, 0)
    _ = reader[1, 0], reader[5, 2]  # what was read before changes nothing
    seen = collate([reader[7, number] for number in range(3)])
    assert same(seen, read(config, 2, 3, step=7)) and seen.samples == [0, 1, 2]
    for other in ({"seed": 1, "step": 7}, {"first": 3, "step": 7}, {"step": 8}):
        assert not same(seen, read(config, 2, 3, **other)), other
    assert same(collate([reader[7, 2]]), read(config, 2, 1, step=7, first=2))  # whatever batch it is in


def test_a_bounded_cache_changes_nothing(clips: Path) -> None:
    large, small = (ClipSamples(DataConfig(str(clips), cache_mib=mib), FRAMES, 0) for mib in (10, 0))
    for step in range(4):
        assert same(collate([large[step, 0]]), collate([small[step, 0]]))
    assert len(small.cache) == small.cached_bytes == 0
    assert large.cached_bytes == sum(picture.nbytes for picture in large.cache.values()) > 0


def test_only_the_pictures_of_a_sample_are_read(clips: Path) -> None:
    samples = ClipSamples(DataConfig(str(clips), num_views=2), 2, 0)
    _ = samples[0, 0]
    assert 4 <= len(samples.cache) <= 6  # 2 views x 2 frames and the input's 2 frames, of 8 views x 4 frames


def test_shapes_and_captions(clips: Path) -> None:
    batch = read(DataConfig(str(clips), num_views=2, frame_stride=2), 2, 5)
    assert batch.target.shape == (5, 2, 2, 3, 16, 16) and batch.input.shape == (5, 2, 3, 16, 16)
    assert batch.c2w.shape == (5, 2, 4, 4) and set(batch.captions) <= set(CAPTIONS)
    assert 0 <= batch.target.min() and batch.target.max() <= 1


def test_cameras_are_relative_to_the_input(clips: Path) -> None:
    batch = read(DataConfig(str(clips)), FRAMES, 16)
    azimuths = cameras.azimuth_deg(batch.c2w)  # [B, V]
    assert bool((gap(azimuths.roll(-1, 1), azimuths + 90) < 0.1).all())  # evenly spaced, in order
    inside = gap(azimuths, 0) < 0.1
    assert 0 < inside.any(1).sum() < 16  # the input view stood in the rig for some samples, not for all
    for i, v in inside.nonzero().tolist():
        assert torch.equal(batch.target[i, :, v], batch.input[i])
    for i in (~inside.any(1)).nonzero().flatten().tolist():
        assert not any(torch.equal(batch.target[i, :, v], batch.input[i]) for v in range(4))


def grey(rgba: Tensor) -> Tensor:
    return composite(rgba).mean(-3)


@pytest.mark.parametrize("augment", [False, True])
def test_images_are_what_the_cameras_see(clips: Path, augment: bool) -> None:
    """Drawn again from the batch's cameras, mirrored or not, the world gives the batch's images."""
    batch = read(DataConfig(str(clips), augment=augment), FRAMES, 12)
    times = torch.linspace(0, 1, FRAMES)
    mirrored, shuffled = 0, 0
    for i in range(12):
        errors = {}
        for index, azimuth, mirror in product(range(2), range(8), (False, True)):
            turned = cameras.turn(torch.eye(4), -AZIMUTHS[index][azimuth])[:3, :3]
            world = balls(index, times) @ turned.T
            if mirror:
                world = world * torch.tensor([1.0, -1.0, 1.0])
            seen = grey(picture(cameras.orbit(0.0).expand(FRAMES, 4, 4), world))
            errors[float((seen - batch.input[i].mean(-3)).abs().max())] = world, mirror, CAPTIONS[index]
        error, (world, mirror, caption) = min(errors.items())
        assert error < 0.005  # 8 bits
        seen = grey(picture(batch.c2w[i].expand(FRAMES, 4, 4, 4), world[:, None].expand(FRAMES, 4, 3, 3)))
        torch.testing.assert_close(batch.target[i].mean(-3), seen, atol=0.005, rtol=0)
        assert batch.captions[i] in (caption, "")
        mirrored, shuffled = mirrored + mirror, shuffled + (batch.captions[i] == "")
    assert (0 < mirrored < 12 and 0 < shuffled < 12) if augment else mirrored == shuffled == 0


@pytest.mark.parametrize(
    "azimuths, num_views, expected",
    [
        ([0, 90, 180, 270], 4, [[0, 1, 2, 3]]),
        ([0, 90, 180, 270], 2, [[0, 2], [1, 3]]),
        ([0, 90, 180, 270], 1, [[0], [1], [2], [3]]),
        ([0, 45, 90, 135, 180, 225, 270, 315], 4, [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ([200, 290, 20, 110], 4, [[2, 3, 0, 1]]),
        ([-0.00001, 90, 180, 270], 4, [[0, 1, 2, 3]]),  # a rounding error below 0 is 0
        ([359.9, 90, 180, 270], 4, [[1, 2, 3, 0]]),
        ([0, 120, 240, 10], 3, [[0, 1, 2]]),
        ([0, 90, 180, 270, 0.3, 90.3, 180.3, 270.3], 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),  # two sets almost alike
    ],
)
def test_even_rigs(azimuths: list[float], num_views: int, expected: list[list[int]]) -> None:
    clip = tiny_clip(0)
    clip.c2w = cameras.orbit(torch.tensor(azimuths, dtype=torch.float32))
    assert even_rigs(clip, num_views) == expected


def test_an_even_rig_has_one_elevation() -> None:
    clip = tiny_clip(0)
    clip.c2w = cameras.orbit(torch.tensor([0.0, 90, 180, 270, 0.2]), torch.tensor([0.0, 0, 0, 0, 20]))
    assert even_rigs(clip, 4) == [[0, 1, 2, 3]]
    clip.c2w = cameras.orbit(torch.tensor([0.0, 90, 180, 270]), torch.tensor([0.0, 0, 20, 0]))
    with pytest.raises(UserError, match="no 4 evenly spaced"):
        even_rigs(clip, 4)


def test_mistakes_are_named(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 4 frames; 3 at stride 2 need 5: lower data.num_frames or"):
        read(DataConfig(str(clips), frame_stride=2), 3, 1)
    with pytest.raises(UserError, match=r"no 3 evenly spaced views .* set data.num_views"):
        read(DataConfig(str(clips), num_views=3), 2, 1)
    with pytest.raises(UserError, match="no such folder"):
        ClipSamples(DataConfig(str(tmp_path / "none")), 2, 0)
    with pytest.raises(UserError, match="holds no clip"):
        ClipSamples(DataConfig(str(tmp_path)), 2, 0)
    write_clip(tmp_path / "clip", tiny_clip(0))
    for path in (tmp_path / "clip/rgba").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"v0\d_f0\d.png: not a readable image"):
        read(DataConfig(str(tmp_path)), 2, 1)

"""Finding the object: a disc drawn with known alpha and color, put before backgrounds and cut out again."""

from pathlib import Path

import numpy as np
import pytest

from fourdiffusion.errors import UserError
from fourdiffusion.media import u2net
from fourdiffusion.media.matting import find_alpha, matte_picture

HEIGHT, WIDTH = 72, 96


def disc(frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Color [H, W, 3] and antialiased alpha [H, W, 1] in [0, 1] of an orange disc that moves to the right."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    alpha = (14.5 - np.hypot(x - 24 - 3 * frame, y - 36)).clip(0, 1)[..., None]
    return np.array([0.8, 0.25, 0.1]) * (0.7 + 0.3 * (y / HEIGHT))[..., None], alpha


def before(background: float | np.ndarray, count: int = 3) -> np.ndarray:
    """Opaque frames uint8 [F, H, W, 4] of the disc before a background."""
    frames = np.ones((count, HEIGHT, WIDTH, 4))
    for i in range(count):
        color, alpha = disc(i)
        frames[i, ..., :3] = color * alpha + background * (1 - alpha)
    return (255 * frames).round().astype(np.uint8)


def opaque(rgb: np.ndarray) -> np.ndarray:  # uint8 [F, H, W, 3] -> [F, H, W, 4]
    return np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=-1)


def textured(count: int = 3) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    return opaque(noise.repeat(8, 1).repeat(8, 2))


@pytest.mark.parametrize("background", [0.0, 0.5, 1.0])
def test_soft_edge_and_its_color_come_back(background: float) -> None:
    """Before grey the edge's alpha and unmixed color are those that the frame was drawn with."""
    frames, name, _ = find_alpha("clip", before(background), "auto", "u2netp")
    assert name == f"the plain background #{f'{round(255 * background):02x}' * 3}"
    for i, frame in enumerate(frames / 255):
        color, alpha = disc(i)
        assert np.abs(frame[..., 3:] - alpha).max() < 0.2
        assert np.abs(frame[..., 3:] - alpha).mean() < 0.005
        shown = (alpha > 0.5)[..., 0]
        assert np.abs(frame[..., :3] - color)[shown].max() < 0.15
        again = frame[..., :3] * frame[..., 3:] + background * (1 - frame[..., 3:])
        assert np.abs(again - before(background)[i, ..., :3] / 255).max() < 0.1


@pytest.mark.parametrize("background, hole_is_kept", [(120, True), (255, False), (0, False)])
def test_holes_and_pale_spots_are_told_apart(background: int, hole_is_kept: bool) -> None:
    """Before white and black, where overexposed and dark parts look like the background, holes are filled."""
    frames = np.full((2, 80, 80, 3), background, np.uint8)
    frames[:, 10:70, 10:70] = (40, 90, 160)
    frames[:, 20:32, 20:32] = background  # large, and exactly the background
    frames[:, 20:32, 48:60] = abs(background - 7)  # nearly the background
    frames[:, 50:53, 50:53] = background  # a highlight
    frames[:, 2:4, 2:4] = (200, 80, 180)  # dirt
    alpha = find_alpha("clip", opaque(frames), "auto", "u2netp")[0][..., 3]
    hole = alpha[:, 23:29, 23:29]
    assert hole.max() == 0 if hole_is_kept else hole.min() == 255
    assert alpha[:, 22:30, 50:58].min() == 255 and alpha[:, 50:53, 50:53].min() == 255
    assert alpha[:, :8].max() == 0


def test_background_is_seen_through_noise_and_a_touching_object() -> None:
    frames = before(0.2)[..., :3].astype(np.float64)
    frames[:, 60:, 40:60] = (0, 200, 200)
    frames += np.random.default_rng(0).normal(0, 3, frames.shape)
    rgba, name, _ = find_alpha("clip", opaque(frames.clip(0, 255).astype(np.uint8)), "auto", "u2netp")
    assert name.startswith("the plain background")
    assert rgba[:, :15, :, 3].max() < 40 and rgba[:, 64:, 44:56, 3].min() > 230


def test_black_bars_are_no_background() -> None:
    """A letterboxed picture is not an object before black."""
    frames = textured(2)
    frames[:, :8] = frames[:, -8:] = (0, 0, 0, 255)
    with pytest.raises(UserError, match="not one plain color"):
        find_alpha("clip", frames, "plain", "u2netp")


def test_no_way_to_alpha_names_the_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(u2net, "installed", lambda: False)
    with pytest.raises(UserError, match="^clip.*no transparency.*three ways.*transparency.*mask=.*plain background"):
        find_alpha("clip", textured(), "auto", "u2netp")
    with pytest.raises(UserError, match="alpha=matting is set, but onnxruntime is not installed: pip install"):
        find_alpha("clip", textured(), "matting", "u2netp")
    with pytest.raises(UserError, match="alpha=plain"):
        find_alpha("clip", textured(), "plain", "u2netp")
    with pytest.raises(UserError, match="alpha=file"):
        find_alpha("clip", textured(), "file", "u2netp")
    with pytest.raises(UserError, match="alpha=mask needs masks.*mask="):
        find_alpha("clip", textured(), "mask", "u2netp")
    frames = textured()
    frames[0, 0, :8, 3] = 0
    with pytest.raises(UserError, match="only 0.065 % transparent pixels"):
        find_alpha("clip", frames, "auto", "u2netp")


# ---- alpha of the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "share, from_file",
    [(0.0, False), (0.001, False), (0.02, False), (0.05, True), (0.5, True)],
)
def test_transparency_counts_where_it_covers_a_meaningful_share(share: float, from_file: bool) -> None:
    """Stray pixels, rounded corners and a thin rim say nothing of the object; the plain background does."""
    frames = before(1.0)
    frames[:, : round(share * HEIGHT), :, 3] = 0
    rows = round(share * HEIGHT)
    frames[0, rows, : round((share * HEIGHT - rows) * 3 * WIDTH), 3] = 0  # the rest, in one frame
    rgba, name, _ = find_alpha("clip", frames, "auto", "u2netp")
    assert (name == "the file") == from_file
    if not from_file:
        assert name == "the plain background #ffffff" and (rgba[..., 3] > 127).mean() < 0.15
    if share > 0:
        assert find_alpha("clip", frames, "file", "u2netp")[1] == "the file"  # asked for, any transparency counts


def test_masks_go_before_everything_else_and_keep_the_colors() -> None:
    frames = before(1.0)
    frames[:, :40, :, 3] = 0
    masks = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    masks[:, 20:50, 10:60] = 200
    rgba, name, _ = find_alpha("clip", frames, "auto", "u2netp", masks)
    assert name == "the masks" and np.array_equal(rgba[..., 3], masks)
    assert np.array_equal(rgba[..., :3], frames[..., :3])


# ---- what may be the wrong object -----------------------------------------------------------------------------------


def test_an_ordinary_object_raises_no_doubt() -> None:
    for background in (0.0, 0.5, 1.0):
        assert find_alpha("clip", before(background), "auto", "u2netp")[2] == []


def test_a_tiny_object_is_doubted() -> None:
    frames = np.full((2, 200, 200, 3), 255, np.uint8)
    frames[:, 90:110, 90:110] = (200, 30, 30)
    (doubt,) = find_alpha("clip", opaque(frames), "auto", "u2netp")[2]
    assert "1 % of the frame" in doubt and "matte.png" in doubt and "pieces" not in doubt


def test_an_object_in_pieces_is_doubted() -> None:
    frames = np.full((2, 100, 100, 3), 128, np.uint8)
    frames[:, 20:50, 10:30] = frames[:, 20:50, 40:60] = frames[:, 20:50, 70:90] = (200, 30, 30)
    (doubt,) = find_alpha("clip", opaque(frames), "auto", "u2netp")[2]
    assert "in 3 pieces" in doubt and "% of the frame" not in doubt
    frames[:, 48:50, 10:90] = (200, 30, 30)
    assert find_alpha("clip", opaque(frames), "auto", "u2netp")[2] == []


@pytest.mark.parametrize("background, body", [(255, 248), (0, 8), (120, 127)])
def test_an_object_of_the_color_of_its_background_is_said(background: int, body: int) -> None:
    """A large eye on a body that differs by 7 of 255 from the wall: one piece, large enough, and still not all."""
    frames = np.full((2, 100, 100, 3), background, np.uint8)
    frames[:, 10:90, 10:90] = body
    frames[:, 35:65, 35:65] = (200, 90, 90)
    doubts = find_alpha("clip", opaque(frames), "auto", "u2netp")[2]
    assert len(doubts) == 1 and "times as large" in doubts[0] and f"#{background:02x}" in doubts[0]
    noisy = frames[:, :, :].astype(np.int64)
    noisy[:, 10:90, 10:90] = background
    noisy[:, 35:65, 35:65] = (200, 90, 90)
    noisy += np.random.default_rng(0).integers(-3, 4, noisy.shape)
    assert find_alpha("clip", opaque(noisy.clip(0, 255).astype(np.uint8)), "auto", "u2netp")[2] == []


def test_the_matte_picture_shows_frames_above_the_cut_out() -> None:
    frames = before(1.0)
    rgba = find_alpha("clip", frames, "auto", "u2netp")[0]
    picture = matte_picture(frames, rgba, height=HEIGHT)
    assert picture.shape == (2 * HEIGHT, 3 * WIDTH, 3)
    assert np.array_equal(picture[:HEIGHT, WIDTH : 2 * WIDTH], frames[1, ..., :3])
    below = picture[HEIGHT:, WIDTH : 2 * WIDTH]
    center = (36, 24 + 3)
    assert np.abs(below[center].astype(int) - frames[1][center][:3]).max() <= 2
    assert set(np.unique(below[:8, 60:])) == {140, 205}  # the checkerboard where nothing was found


# ---- the network ----------------------------------------------------------------------------------------------------


def test_a_missing_network_names_its_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"matting_model=isnet: the file isnet.onnx.*folder {tmp_path}, give its path"):
        u2net.find_model("isnet")
    with pytest.raises(UserError, match="no.onnx: missing"):
        u2net.find_model(str(tmp_path / "no.onnx"))
    (tmp_path / "isnet.onnx").write_text("")
    assert u2net.find_model("isnet") == u2net.find_model(str(tmp_path / "isnet.onnx")) == tmp_path / "isnet.onnx"


def network() -> Path | None:
    try:
        return u2net.find_model("u2netp") if u2net.installed() else None
    except UserError:
        return None


@pytest.mark.skipif(not u2net.installed(), reason="onnxruntime is not installed")
def test_a_file_that_is_no_network_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_text("no network")
    with pytest.raises(UserError, match="broken.onnx: no network for matting"):
        find_alpha("clip", textured(), "matting", str(tmp_path / "broken.onnx"))


@pytest.mark.skipif(network() is None, reason="onnxruntime or u2netp.onnx is not at hand")
def test_the_network_finds_a_disc_before_noise() -> None:
    noise = np.random.default_rng(0).integers(90, 140, (1, 192, 256, 3), dtype=np.uint8)
    y, x = np.mgrid[:192, :256]
    disc = np.hypot(x - 128, y - 96) < 50
    noise[:, disc] = (210, 40, 30)
    rgba, name, doubts = find_alpha("clip", opaque(noise), "auto", "u2netp")
    found = rgba[0, ..., 3] > 127
    assert name == "the network u2netp" and doubts == []
    assert (found & disc).sum() / (found | disc).sum() > 0.95
    assert np.array_equal(rgba[..., :3], noise)

"""Finding the object: a disc drawn with known alpha and colour, put before backgrounds and cut out again."""

import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fourdiffusion.errors import UserError
from fourdiffusion.media.matting import find_alpha

HEIGHT, WIDTH = 72, 96


def disc(frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour [H, W, 3] and antialiased alpha [H, W, 1] in [0, 1] of an orange disc that moves to the right."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    alpha = (14.5 - np.hypot(x - 24 - 3 * frame, y - 36)).clip(0, 1)[..., None]
    return np.array([0.8, 0.25, 0.1]) * (0.7 + 0.3 * (y / HEIGHT))[..., None], alpha


def before(background: float | np.ndarray, count: int = 3) -> np.ndarray:
    """Opaque frames uint8 [F, H, W, 4] of the disc before a background."""
    frames = np.ones((count, HEIGHT, WIDTH, 4))
    for i in range(count):
        colour, alpha = disc(i)
        frames[i, ..., :3] = colour * alpha + background * (1 - alpha)
    return (255 * frames).round().astype(np.uint8)


def opaque(rgb: np.ndarray) -> np.ndarray:  # uint8 [F, H, W, 3] -> [F, H, W, 4]
    return np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=-1)


def textured(count: int = 3) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    return opaque(noise.repeat(8, 1).repeat(8, 2))


@pytest.mark.parametrize("background", [0.0, 0.5, 1.0])
def test_soft_edge_and_its_colour_come_back(background: float) -> None:
    """Before grey the edge's alpha and unmixed colour are those that the frame was drawn with."""
    frames, name = find_alpha("clip", before(background), "auto", "u2net")
    assert name == f"the plain background #{f'{round(255 * background):02x}' * 3}"
    for i, frame in enumerate(frames / 255):
        colour, alpha = disc(i)
        assert np.abs(frame[..., 3:] - alpha).max() < 0.2
        assert np.abs(frame[..., 3:] - alpha).mean() < 0.005
        shown = (alpha > 0.5)[..., 0]
        assert np.abs(frame[..., :3] - colour)[shown].max() < 0.15
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
    alpha = find_alpha("clip", opaque(frames), "auto", "u2net")[0][..., 3]
    hole = alpha[:, 23:29, 23:29]
    assert hole.max() == 0 if hole_is_kept else hole.min() == 255
    assert alpha[:, 22:30, 50:58].min() == 255 and alpha[:, 50:53, 50:53].min() == 255
    assert alpha[:, :8].max() == 0


def test_background_is_seen_through_noise_and_a_touching_object() -> None:
    frames = before(0.2)[..., :3].astype(np.float64)
    frames[:, 60:, 40:60] = (0, 200, 200)
    frames += np.random.default_rng(0).normal(0, 3, frames.shape)
    rgba, name = find_alpha("clip", opaque(frames.clip(0, 255).astype(np.uint8)), "auto", "u2net")
    assert name.startswith("the plain background")
    assert rgba[:, :15, :, 3].max() < 40 and rgba[:, 64:, 44:56, 3].min() > 230


def test_black_bars_are_no_background() -> None:
    """A letterboxed picture is not an object before black."""
    frames = textured(2)
    frames[:, :8] = frames[:, -8:] = (0, 0, 0, 255)
    with pytest.raises(UserError, match="not one plain colour"):
        find_alpha("clip", frames, "plain", "u2net")


def test_no_way_to_alpha_names_the_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(UserError, match="^clip.*three ways.*transparency.*plain background.*rembg"):
        find_alpha("clip", textured(), "auto", "u2net")
    with pytest.raises(UserError, match="alpha=rembg.*not installed"):
        find_alpha("clip", textured(), "rembg", "u2net")
    with pytest.raises(UserError, match="alpha=plain"):
        find_alpha("clip", textured(), "plain", "u2net")
    with pytest.raises(UserError, match="alpha=file"):
        find_alpha("clip", textured(), "file", "u2net")


def test_rembg_is_asked_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of rembg's two functions: the real one loads a network of 170 MB."""
    rembg, runtime = ModuleType("rembg"), ModuleType("onnxruntime.capi.onnxruntime_pybind11_state")

    class InvalidProtobuf(Exception):
        pass

    def new_session(name: str, **settings: str) -> str:
        if settings.get("model_path") == "/broken.onnx":
            raise InvalidProtobuf("Load model failed")
        if name == "unknown":
            raise ValueError("No session class found\nfor unknown")
        return settings.get("model_path", name)

    def remove(image: Image.Image, session: str) -> Image.Image:
        image.putalpha(Image.new("L", image.size, len(session)))
        return image

    monkeypatch.setattr(rembg, "new_session", new_session, raising=False)
    monkeypatch.setattr(rembg, "remove", remove, raising=False)
    monkeypatch.setattr(runtime, "InvalidProtobuf", InvalidProtobuf, raising=False)
    monkeypatch.setattr(runtime, "Fail", InvalidProtobuf, raising=False)
    for name in ("onnxruntime", "onnxruntime.capi"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, runtime.__name__, runtime)
    monkeypatch.setitem(sys.modules, "rembg", rembg)
    frames, name = find_alpha("clip", textured(), "auto", "u2net")
    assert name == "rembg" and frames.shape == (3, 64, 64, 4) and (frames[..., 3] == 5).all()
    assert (find_alpha("clip", textured(), "rembg", "dis_custom:/m/a.onnx")[0][..., 3] == len("/m/a.onnx")).all()
    with pytest.raises(UserError, match="the model unknown .No session class found for unknown.: give matting_model"):
        find_alpha("clip", textured(), "auto", "unknown")
    with pytest.raises(UserError, match="Load model failed"):
        find_alpha("clip", textured(), "auto", "dis_custom:/broken.onnx")

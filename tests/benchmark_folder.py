"""A folder in Consistent4D's layout with predictions whose distortion is known.

python tests/benchmark_folder.py FOLDER [OBJECTS VIEWS FRAMES SIZE]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, view: int, frame: int, size: int, alpha: bool = False) -> np.ndarray:
    """An object on white, uint8 [S, S, 3 or 4]: a moving textured disc whose color and place depend on all numbers."""
    y, x = np.mgrid[:size, :size] / size
    angle = 2 * np.pi * frame / 32
    cx, cy = 0.5 + 0.15 * np.cos(angle + view), 0.5 + 0.1 * np.sin(angle + number)
    inside = (x - cx) ** 2 / (0.05 + 0.01 * view) + (y - cy) ** 2 / 0.06 < 1
    hue = np.array([0.2 + 0.15 * view, 0.3 + 0.08 * number, 0.9 - 0.2 * view])
    texture = 0.5 + 0.5 * np.sin(40 * (x - cx) + 3 * view) * np.cos(30 * (y - cy) + number)
    rgb = (0.35 + 0.65 * texture[..., None]) * hue
    rgb = np.where(inside[..., None], rgb, 0.0 if alpha else 1.0)
    pixels = (rgb.clip(0, 1) * 255).round().astype(np.uint8)
    return np.dstack([pixels, 255 * inside.astype(np.uint8)]) if alpha else pixels


def distort(pixels: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """Noise that grows with the strength, and a shift by whole pixels."""
    noise = np.random.default_rng(seed).normal(0, 60 * strength, pixels.shape)
    moved = np.roll(pixels, round(10 * strength * pixels.shape[0] / 128), axis=1).astype(float)
    return (moved + noise).clip(0, 255).round().astype(np.uint8)


def write_benchmark(
    folder: Path, num_objects: int, num_views: int, num_frames: int, size: int, strengths: dict[str, float]
) -> None:
    """Write gt/ and one folder of predictions for each named strength."""
    for number in range(num_objects):
        for view in range(num_views):
            for frame in range(num_frames):
                true = picture(number, view, frame, size)
                sides = {"gt": true}
                for name, strength in strengths.items():
                    seed = hash((number, view, frame)) % 2**32
                    sides[name] = distort(true, strength, seed)
                for name, pixels in sides.items():
                    place = folder / name / f"object{number}" / f"eval_{view}"
                    place.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(place / f"{frame}.png", compress_level=1)


if __name__ == "__main__":
    objects, views, frames, side = [int(word) for word in sys.argv[2:]] or [7, 4, 32, 512]
    write_benchmark(Path(sys.argv[1]), objects, views, frames, side, {"mild": 0.1, "strong": 0.3})

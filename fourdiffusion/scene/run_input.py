"""The input video in a fit's run folder, for displays of the scene: input.safetensors."""

from pathlib import Path

from torch import Tensor

from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors

NAME = "input.safetensors"


def read_run_input(run: Path) -> tuple[Tensor | None, Tensor] | None:
    """Return the input's RGBA in [0, 1], float32 [F, 4, S, S], and its times in [0, 1], float32 [F].

    None if the run has no such file; None for the pictures if the file has none. UserError if it is damaged.
    """
    path = run / NAME
    if not path.is_file():
        return None
    tensors, _ = load_tensors(path)
    if "times" not in tensors:
        raise UserError(f"{path} lacks times: it is not the input of a fit; remove it, or give num_frames=")
    times, rgba = tensors["times"], tensors.get("rgba")
    if times.ndim != 1 or not times.numel() or not bool(((times >= 0) & (times <= 1)).all()):
        raise UserError(f"{path}: times {_shown(times)} are not those of frames, in [0, 1]: remove it")
    if rgba is None:
        return None, times.float()
    if rgba.shape != (len(times), 4, rgba.shape[-1], rgba.shape[-1]) or not rgba.numel():
        raise UserError(f"{path}: rgba {_shown(rgba)} are not square RGBA pictures of {len(times)} frames: remove it")
    if not bool(((rgba >= 0) & (rgba <= 1)).all()):
        raise UserError(f"{path}: rgba holds values that are not in [0, 1]: remove it")
    return rgba.float(), times.float()


def _shown(value: Tensor) -> str:
    return f"{list(value.shape)}" if value.numel() != 1 else f"{value.reshape(-1).tolist()}"

"""Read initial motion layers: AnimateDiff's, a training run's, a folder's, or 4DM's release.

AnimateDiff v2 (Guo et al. 2024) has one motion module at the same position of each of the 21 blocks, with the same
layers and widths. It was trained on SD 1.5, whose features differ from those of the SD 2.1 UNet here, so training
begins with the projections (``projection_steps`` of `train`).
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fourdiffusion.diffusion import release
from fourdiffusion.diffusion.motion import MotionModules, frame_positions
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet
from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors, read_foreign
from fourdiffusion.runs import CHECKPOINT

EMA_PREFIX = "ema.motion."  # of a training checkpoint
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"  # of a diffusers folder
TABLE_TOLERANCE = 1e-2  # half precision rounds by up to 0.004


def read_motion(path: Path, unet: MultiviewUNet, motion: MotionModules, setting: str) -> dict[str, Tensor]:
    """Return the state dict of ``motion`` from a file or folder, float32.

    Args:
        path: AnimateDiff's checkpoint (read without executing code), a checkpoint of stage motion or the folder of
            such a run, a folder of motion layers or of a whole pipeline, or 4DM's release.
        unet: the UNet of the layers.
        motion: layers of the expected sizes.
        setting: name of the user's setting of ``path``, for messages.

    Raises:
        UserError: the path is missing or of another kind; a tensor is missing, unknown, of another shape or not finite.
    """
    what = f"{setting}={path}"
    tensors = _read(path, what)
    expected = motion.state_dict()
    tables: dict[str, Tensor] = {}
    if any(key.startswith(EMA_PREFIX) for key in tensors):
        state = {key.removeprefix(EMA_PREFIX): value for key, value in tensors.items() if key.startswith(EMA_PREFIX)}
    elif any(".temporal_transformer." in key for key in tensors):
        tensors = release.unwrap(tensors)
        if any("motion_modules." in key for key in tensors):
            tensors = {key.removeprefix(release.MOTION_PREFIX): value for key, value in tensors.items()}
            keys = animatediff_keys(unet, motion)
        else:
            keys = {name: mapping.key for name, mapping in release.motion_mappings(unet, motion).items()}
        names = {key: name for name, key in keys.items()}
        tables = {key: value for key, value in tensors.items() if key.endswith(".pos_encoder.pe")}
        state = {names.get(key, key): value for key, value in tensors.items() if key not in tables}
    else:
        state = tensors
    _check(what, expected, state)
    _check_tables(what, tables, motion.config.max_frames)
    return {name: state[name].float() for name in expected}


def animatediff_keys(unet: MultiviewUNet, motion: MotionModules) -> dict[str, str]:
    """Return {motion parameter: its key in AnimateDiff's checkpoint}; levels are numbered in the order of execution."""
    places = [f"down_blocks.{i}.motion_modules.{j}" for i, level in enumerate(unet.down) for j in _range(level.blocks)]
    places += ["mid_block.motion_modules.0"]
    places += [f"up_blocks.{i}.motion_modules.{j}" for i, level in enumerate(unet.up) for j in _range(level.blocks)]
    keys = {}
    for name, key in release.motion_keys(unet, motion).items():
        inner = key.partition(".temporal_transformer.")[2]
        keys[name] = f"{places[int(name.split('.')[1])]}.temporal_transformer.{inner}"
    return keys


def _range(blocks: list) -> range:
    return range(len(blocks))


def _read(path: Path, what: str) -> dict[str, Tensor]:
    """Return the tensors of a file, or of the file with motion layers in a folder."""
    if path.is_dir():
        candidates = [path / CHECKPOINT, path / WEIGHTS_FILE, path / "motion" / WEIGHTS_FILE]
        found = next((file for file in candidates if file.is_file()), None)
        if found is None:
            raise UserError(f"{what} holds no motion layers: give a run of stage=motion, its motion/, or a file")
        return load_tensors(found)[0] if found.name == CHECKPOINT else load_file(found)
    return read_foreign(path)


def _check(what: str, expected: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Raise UserError for the first tensors that are missing, unknown, of another shape, or not finite."""
    missing = sorted(expected.keys() - state.keys())
    strange = sorted(state.keys() - expected.keys())
    if missing or strange:
        found = [f"{len(names)} {kind}" for kind, names in (("missing", missing), ("unknown", strange)) if names]
        without_middle = missing and not strange and len(missing) < len(expected) // 4
        hint = "; AnimateDiff v1 has no module in the middle block, take v2" if without_middle else ""
        raise UserError(
            f"{what} is not of this model's motion layers: {' and '.join(found)} tensors "
            f"({[*missing, *strange][0]}){hint}"
        )
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise UserError(f"{what}: {name} is {list(state[name].shape)}, this model's is {list(value.shape)}")
        if not state[name].is_floating_point() or not bool(state[name].isfinite().all()):
            raise UserError(f"{what}: {name} is not finite: download the file again")


def _check_tables(what: str, tables: dict[str, Tensor], max_frames: int) -> None:
    """Raise UserError if a file's frame positions [1, L, C], cut to ``max_frames``, are not the sinusoids used here."""
    for key, table in tables.items():
        rows = table.reshape(-1, table.shape[-1])[:max_frames].float()
        if not torch.allclose(rows, frame_positions(*rows.shape), atol=TABLE_TOLERANCE):
            raise UserError(f"{what}: {key} is not the table of frame positions that this model uses")


def motion_config(folder: Path) -> dict[str, object]:
    """Return the sizes of a pipeline folder's motion layers. UserError if there are none."""
    path, remedy = folder / "motion" / "config.json", "give model.path, the pipeline folder that was trained on"
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; {remedy}")
    return content

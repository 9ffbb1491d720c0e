"""``doctor``: what of everything that this package can use is here, and the line that installs the rest."""

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fourdiffusion.metrics.lpips import lpips_files
from fourdiffusion.ops.backends import INSTALL
from fourdiffusion.settings import DoctorConfig

OPTIONAL = (  # module, what it is for, the line that installs it
    ("numba", "fast hash grids on the CPU", INSTALL["numba"]),
    ("tinycudann", "fast hash grids on the GPU", INSTALL["tinycudann"]),
    ("nerfacc", "rays on the GPU; nvcc compiles it at its first use", INSTALL["nerfacc"]),
    ("onnxruntime", "matting of videos with any background", "pip install -e '.[matting]'"),
    ("tensorboard", "training curves", "pip install tensorboard"),
    ("wandb", "training curves on the web", "pip install -e '.[wandb]'"),
)


def doctor(config: DoctorConfig) -> None:
    """Prints one line for each part: present with its version, or missing with the line that installs it."""
    print(f"python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        print(f"GPU: {device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    else:
        print("GPU: none that torch sees; the small model runs on the CPU, the full size needs one")
    for module, purpose, line in OPTIONAL:
        print(f"{module}: {_state(module) or f'missing ({purpose}): {line}'}")
    found = lpips_files(None)
    print("LPIPS: its weights are here" if found else "LPIPS: no weights; docs/weights.md names the two files")
    path = config.model.path
    there = path is not None and (Path(path) / "model_index.json").is_file()
    print(
        f"weights: {path}" if there else f"weights: model.path={path} holds none; docs/weights.md says how to get some"
    )


def _state(module: str) -> str | None:
    """The installed version of a module, without importing it; None where it is missing."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return version(module)
    except PackageNotFoundError:
        return "present"

"""Atomic writing of files; reading and writing of tensors."""

import glob
import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import require_file

UMASK = os.umask(0)  # can only be read by setting it
os.umask(UMASK)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: ``write`` fills a temporary file next to ``path``, which is then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        write(partial)
        os.chmod(partial, 0o666 & ~UMASK)  # safetensors writes 0600
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def fill_folder(folder: Path, write: Callable[[Path], object], replace: bool = False) -> None:
    """Write a folder atomically: ``write`` fills a temporary folder next to ``folder``, which is then renamed.

    An existing folder that is not empty is an OSError, or is replaced at the end with ``replace``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        write(partial)
        for place, _, names in os.walk(partial):
            for name in names:
                os.chmod(os.path.join(place, name), 0o666 & ~UMASK)
        if replace and folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> Path:
    """Return this process's temporary file for ``path``; remove those left by killed processes."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        number = left.name.removeprefix(f"{path.name}.").removesuffix(".partial")
        if number.isdigit() and not _is_running(int(number)):
            remove(left)
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder with its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors of any device and small JSON values atomically as one safetensors file."""
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = {key: json.dumps(value) for key, value in metadata.items()}
    write_atomic(path, lambda partial: save_file(content, partial, metadata=text))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of ``save_tensors``: tensors and metadata. UserError if it is missing or damaged."""
    require_file(path, "give a folder that a run has written")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        return load_file(path), metadata
    except (SafetensorError, json.JSONDecodeError) as error:
        remedy = "restore a copy, or choose another output"
        raise UserError(f"{path} is damaged or in another format ({error}): {remedy}") from error


def first_non_finite(tensors: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor with NaN or infinity; None if all are finite."""
    for name, value in tensors.items():
        # a finite sum has finite terms, and is found ten times faster; that of finite terms may overflow
        if not math.isfinite(value.detach().sum()) and not bool(value.isfinite().all()):
            return name
    return None


WRAPPERS = ("state_dict", "model", "module")  # keys under which training scripts store the weights
FOREIGN = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")  # suffixes of other projects' checkpoints


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Read the tensors of another project's checkpoint; from a pickle only tensors are read, never code.

    Weights may be under keys of WRAPPERS. UserError if the file is missing, damaged, or has other content than tensors.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: give a checkpoint that ends in {', '.join(FOREIGN)}")
    if path.suffix not in FOREIGN:
        raise UserError(f"{path} has an unknown format: give a checkpoint that ends in {', '.join(FOREIGN)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged, or holds more than tensors ({reason}): download it again") from error
    while isinstance(content, dict) and (
        inner := next((k for k in WRAPPERS if isinstance(content.get(k), dict)), None)
    ):
        content = content[inner]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds a {type(content).__name__} and no named tensors: it is not a checkpoint")
    if strange := [str(key) for key, value in content.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path} holds more than tensors ({', '.join(strange[:3])}): it is not a checkpoint")
    return content


def write_foreign(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors atomically for ``read_foreign``; the suffix of ``path`` selects the format."""
    if path.suffix == ".safetensors":
        write_atomic(path, lambda partial: save_file(tensors, partial))
    else:
        write_atomic(path, lambda partial: torch.save({"state_dict": tensors}, partial))

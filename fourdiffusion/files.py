"""Atomic writing of files; reading and writing of tensors."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourdiffusion.errors import UserError


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then rename it: an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # of this process alone
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors of any device and small JSON values atomically as one safetensors file."""
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = {key: json.dumps(value) for key, value in metadata.items()}
    write_atomic(path, lambda partial: save_file(content, partial, metadata=text))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``save_tensors`` wrote. UserError where the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"no file {path}: give a folder that a run has written")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        return load_file(path), metadata
    except (SafetensorError, json.JSONDecodeError) as error:
        remedy = "restore a copy, or choose another output"
        raise UserError(f"{path} is damaged or of another kind ({error}): {remedy}") from error


WRAPPERS = ("state_dict", "model", "module")  # keys under which training scripts store the weights
FOREIGN = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")  # what checkpoints of other projects end in


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Read the tensors of another project's checkpoint; of a pickle only tensors are read, never code.

    Weights may lie under keys of WRAPPERS. UserError where the file is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: give a checkpoint that ends in {', '.join(FOREIGN)}")
    if path.suffix not in FOREIGN:
        raise UserError(f"{path} is of no known kind: give a checkpoint that ends in {', '.join(FOREIGN)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged, or holds more than tensors ({reason}): fetch it again") from error
    while isinstance(content, dict) and (
        inner := next((k for k in WRAPPERS if isinstance(content.get(k), dict)), None)
    ):
        content = content[inner]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds a {type(content).__name__} and no named tensors: it is no checkpoint of weights")
    if strange := [str(key) for key, value in content.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path} holds more than tensors ({', '.join(strange[:3])}): it is no checkpoint of weights")
    return content


def write_foreign(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors atomically as ``read_foreign`` reads them; the suffix of ``path`` chooses the format."""
    if path.suffix == ".safetensors":
        write_atomic(path, lambda partial: save_file(tensors, partial))
    else:
        write_atomic(path, lambda partial: torch.save({"state_dict": tensors}, partial))

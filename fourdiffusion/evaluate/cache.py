"""Features of pictures on disk, found again by content: a truth is encoded once for many predictions and protocols."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fourdiffusion.files import save_tensors

OFF = "off"


class FeatureCache:
    """Tensors by the hash of what they were computed from.

    Args:
        folder: where they lie; None keeps nothing. A folder that cannot be written keeps nothing either.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, kind: str, pictures: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return ``compute()``, or what it returned for the same pictures.

        Args:
            kind: network, checksum of its weights, and all settings that reach the features.
            pictures: in [0, 1], of 8 bits.
        """
        if self.folder is None:
            return compute()
        digest = hashlib.sha256(f"{kind} {list(pictures.shape)}".encode())
        digest.update((pictures * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
        path = self.folder / f"{digest.hexdigest()}.safetensors"
        try:
            return load_file(path)["features"]
        except (OSError, KeyError, SafetensorError):  # not there yet, or cut off
            features = compute()
        try:
            save_tensors(path, {"features": features.contiguous()}, {"kind": kind})
        except OSError:
            self.folder = None
        return features


def cache_folder(setting: str) -> Path | None:
    """Return the folder of the setting ``feature_cache``: "auto" is the user's cache folder, "off" none."""
    if setting == OFF:
        return None
    if setting == "auto":
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "fourdiffusion" / "features"
    return Path(setting).expanduser()

"""Find the weights of metric networks on disk, and report the exact file.

Nothing is downloaded: a metric without weights is reported as missing, with the command that gets them.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Missing:
    """The reason why a metric could not be computed, and the remedy."""

    metric: str
    reason: str
    remedy: str

    def line(self) -> str:
        """Return the line for reports."""
        return f"{self.metric}: missing ({self.reason}): {self.remedy}"


def find_file(names: tuple[str, ...], folders: list[str], caches: list[Path]) -> Path | None:
    """Return the first file of these names in the given folders, then in the libraries' caches; None if not found.

    Args:
        names: accepted file names, the preferred first.
        folders: the user's folders; their subfolders lpips, i3d and weights/v0.1 are searched, too.
        caches: folders of the libraries' own copies.
    """
    places = [Path(folder).expanduser() for folder in folders]
    places = [place / inner for place in places for inner in (".", "lpips", "i3d", "weights/v0.1")] + caches
    for place in places:
        for name in names:
            if (place / name).is_file():
                return place / name
    return None


def torch_hub_cache() -> Path:
    """Return the folder of torchvision's downloads."""
    return Path(torch.hub.get_dir(), "checkpoints")


def package_folder(package: str, inner: str) -> list[Path]:
    """Return a folder inside an installed package, without importing it; an empty list if it is not installed."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    return [Path(places[0], inner)] if places else []


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

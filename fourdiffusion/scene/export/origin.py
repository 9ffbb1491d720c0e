"""Read from a run folder what exported files say of their origin, and which times they show."""

from pathlib import Path

import torch
import yaml
from torch import Tensor

from fourdiffusion.scene.run_input import read_run_input


def origin(run: Path, author: str | None = None, license: str | None = None) -> dict[str, str]:
    """Return what is known of "author", "license", "prompt" and "commit": the arguments, else the run's config.yaml."""
    try:
        content = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        content = None
    content = content if isinstance(content, dict) else {}
    settings = content.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    notes = {key: content.get(key) or settings.get(key) for key in ("author", "license", "prompt", "commit")}
    notes |= {key: value for key, value in (("author", author), ("license", license)) if value}
    return {key: str(value) for key, value in notes.items() if value}


def credit_of(notes: dict[str, str]) -> str:
    """Return author and license in one line, "" where neither is known."""
    return ", ".join(notes[key] for key in ("author", "license") if key in notes)


def frame_times(run: Path, num_frames: int | None) -> Tensor:
    """Return evenly spaced times [F] from 0 to 1; without a number the run's own, or eight where it has none."""
    found = read_run_input(run) if num_frames is None else None
    if found is not None:
        return found[1]
    return torch.linspace(0, 1, num_frames or 8)

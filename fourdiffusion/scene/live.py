"""Load the scene of a run that is still being fitted, from its newest checkpoint."""

from pathlib import Path
from typing import Any

import torch
import yaml

from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene, load_scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig


def newest_file(run: Path) -> Path | None:
    """Return the file with the run's newest scene, finished or not; None if there is none yet."""
    files = [run / "scene" / "occupancy.safetensors", run / "occupancy.safetensors", run / "checkpoint.safetensors"]
    # save_scene writes the occupancy last: if it exists, the scene is complete.
    found = [path for path in files if path.is_file()]
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name)) if found else None


def load_newest(run: Path, device: torch.device | None = None) -> tuple[Scene, int | None]:
    """Return the newest scene of a run folder and its step; the step is None for a finished scene.

    Raises:
        UserError: the folder has neither a scene nor a checkpoint of a fit.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give the run folder of a fit, or its scene/")
    path = newest_file(run)
    if path is None or path.name != "checkpoint.safetensors":
        return load_scene(run, device), None
    tensors, metadata = load_tensors(path)
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["settings"]["scene"]
        scene = _build(settings["field"], settings["renderer"])
        scene.field.load_state_dict(_under(tensors, "scene."))
        scene.occupancy.load_state_dict(_under(tensors, "occupancy."))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{run}: config.yaml and {path.name} do not hold a fit's scene ({reason}); fit it again"
        ) from error
    scene.field.to(device)
    scene.occupancy.to(device)
    return scene, int(metadata["step"])


def _build(field: dict[str, Any], renderer: dict[str, Any]) -> Scene:
    grids = {name: HashGridConfig(**field[name]) for name in ("space", "spacetime")}
    config = RendererConfig(**renderer)
    return Scene(DynamicField(FieldConfig(**(field | grids))), OccupancyGrid(config), config)


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

"""Shared parts of the fits of a scene: optimizer, checkpoint, and the check for a collapsed density."""

import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.errors import UserError
from fourdiffusion.files import first_non_finite
from fourdiffusion.runs import load_checkpoint, restore_optimizer, trim_log
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene

EMPTY = 1e-4  # largest opacity of a single sample


def make_optimizer(scene: Scene, grid_lr: float, mlp_lr: float) -> torch.optim.Optimizer:
    """Return AdamW on grids and MLPs (method.md section 2); a group keeps its rate before decay as ``base_lr``."""
    groups = scene.field.parameter_groups(grid_lr, mlp_lr)
    for group in groups:
        group["base_lr"] = group["lr"]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


def check_density(occupancy: OccupancyGrid, number: int, culprits: str, rates: str) -> None:
    """Raise UserError if the density has collapsed or is not finite: no loss recovers it.

    Args:
        number: of the step.
        culprits: settings that empty a scene if they are too high.
        rates: settings that can make it diverge.
    """
    density = float(occupancy.density.max())
    if not math.isfinite(density):
        raise UserError(f"the scene's density is {density} at step {number}: lower {rates}")
    opacity = -math.expm1(-density * occupancy.config.step)
    if opacity < EMPTY:
        raise UserError(
            f"the scene is empty at step {number} (a sample's opacity is {opacity:.1e} at most): lower {culprits}, or "
            "grid_lr, and choose another output"
        )


def check_finite(tensors: dict[str, Tensor], what: str, number: int, rates: str) -> None:
    """Raise UserError with the name of the first tensor that is not finite; other arguments as in ``check_density``."""
    if name := first_non_finite(tensors):
        raise UserError(f"{what} {name} is not finite at step {number}: lower {rates}, and choose another output")


def scene_tensors(scene: Scene) -> dict[str, Tensor]:
    """Return the field's and the occupancy grid's tensors, under their names in a checkpoint."""
    tensors = {f"scene.{name}": value for name, value in scene.field.state_dict().items()}
    return tensors | {f"occupancy.{name}": value for name, value in scene.occupancy.state_dict().items()}


def resume(output: Path, scene: Scene, optimizer: torch.optim.Optimizer, verb: str) -> int:
    """Restore the last checkpoint of ``verb`` and return the step to resume from; 0 without a checkpoint."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    moments = {
        f"optimizer.{index}.{key}": value for index, value in enumerate(parameters) for key in ("exp_avg", "exp_avg_sq")
    }
    steps = {f"optimizer.{index}.step": torch.zeros(()) for index in range(len(parameters))}
    found = load_checkpoint(output, verb, scene_tensors(scene) | moments | steps, tqdm.write)
    if found is None:
        trim_log(output, 0)
        return 0
    tensors, number = found
    for prefix, module in (("scene.", scene.field), ("occupancy.", scene.occupancy)):
        module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    restore_optimizer(optimizer, tensors)
    trim_log(output, number)
    return number

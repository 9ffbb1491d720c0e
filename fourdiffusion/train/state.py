"""What a training run carries from step to step, its checkpoints, and which of them stay.

<run>/checkpoint.safetensors           the state that the run resumes from (``runs.save_checkpoint``)
<run>/kept/000500.safetensors          states that stay, every ``keep_every`` steps, the last ``keep_last`` of them
<run>/kept/best.safetensors            the state of least validation loss

A checkpoint holds the trained weights, their moving average, the optimizer and, in fp16, the gradient scaler. The data
position is its step: samples are functions of (seed, step, number in the batch).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors, save_tensors
from fourdiffusion.runs import load_checkpoint, optimizer_tensors, restore_optimizer
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.setup import Objective

KEPT, BEST = "kept", "best.safetensors"


@dataclass
class Training:
    """A run between two steps."""

    config: TrainConfig
    accelerator: Accelerator
    pipeline: FourDiffusionPipeline
    objective: Objective
    model: nn.Module  # the objective as accelerate wraps it
    optimizer: torch.optim.Optimizer  # likewise
    ema: dict[str, Tensor]  # moving average of the trained weights
    parameters: dict[str, nn.Parameter]  # that are trained
    accumulation: int  # micro-batches of a step

    @property
    def output(self) -> Path:
        """The run folder."""
        return Path(self.config.output)


def checkpoint_tensors(training: Training) -> dict[str, Tensor]:
    """Return everything that a checkpoint holds; never a frozen network."""
    tensors = {f"weights.{name}": value for name, value in training.objective.trainable.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in training.ema.items()}
    tensors |= scaler_tensors(training.accelerator.scaler)
    state = optimizer_tensors(getattr(training.optimizer, "optimizer", training.optimizer))
    return tensors | {name: torch.as_tensor(value) for name, value in state.items()}  # bitsandbytes counts in int


def scaler_tensors(scaler: torch.amp.GradScaler | None) -> dict[str, Tensor]:
    """Return the state of fp16's gradient scaler as named tensors; nothing in other precisions."""
    state = scaler.state_dict() if scaler is not None else {}
    return {f"scaler.{key}": torch.tensor(value, dtype=torch.float64) for key, value in state.items()}


def restore_scaler(scaler: torch.amp.GradScaler | None, tensors: dict[str, Tensor]) -> None:
    """Restore what ``scaler_tensors`` returned; nothing where the checkpoint or the run has none."""
    state: dict[str, float] = {}
    for key, value in tensors.items():
        if key.startswith("scaler."):
            name = key.removeprefix("scaler.")
            state[name] = int(value) if name in ("growth_interval", "_growth_tracker") else float(value)
    if scaler is not None and state:
        scaler.load_state_dict(state)


def resume(output: Path, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Tensor]]:
    """Restore the last whole checkpoint's weights and optimizer. Return its step, and its tensors of everything else.

    Where there is none, the step is 0 and the moving average the fresh weights.
    """
    fresh = objective.trainable.state_dict()
    expected = {f"{prefix}.{name}": value for prefix in ("weights", "ema") for name, value in fresh.items()}
    found = load_checkpoint(output, "train", expected, tqdm.write)
    if found is None:
        return 0, {f"ema.{name}": value for name, value in fresh.items()}
    tensors, step = found
    objective.trainable.load_state_dict({name: tensors[f"weights.{name}"] for name in fresh})
    counts = {name: int(value) for name, value in tensors.items() if value.ndim == 0 and not value.is_floating_point()}
    restore_optimizer(optimizer, tensors | counts)  # type: ignore[arg-type]
    return step, tensors


@contextlib.contextmanager
def averaged_weights(training: Training) -> Iterator[None]:
    """Hold the moving average in place of the trained weights for the block."""
    trainable = training.objective.trainable
    trained = {name: value.clone() for name, value in trainable.state_dict().items()}
    trainable.load_state_dict(training.ema)
    try:
        yield
    finally:
        trainable.load_state_dict(trained)


def keep_checkpoints(training: Training, step: int, validation_loss: float | None) -> None:
    """Write the states of ``step`` that stay, and delete those beyond ``keep_last``."""
    config, folder = training.config, training.output / KEPT
    if config.keep_every and step % config.keep_every == 0:
        save_tensors(folder / f"{step:06d}.safetensors", checkpoint_tensors(training), {"step": step, "verb": "train"})
        numbered = sorted((path for path in folder.glob("*.safetensors") if path.stem.isdecimal()), key=_number)
        for path in numbered[: -config.keep_last] if config.keep_last else []:
            path.unlink()
    if config.keep_best and validation_loss is not None and validation_loss < best_loss(folder / BEST, step):
        metadata = {"step": step, "verb": "train", "validation_loss": validation_loss}
        save_tensors(folder / BEST, checkpoint_tensors(training), metadata)


def _number(path: Path) -> int:
    return int(path.stem)


def best_loss(path: Path, step: int) -> float:
    """Return the validation loss of the best state before ``step``; infinity where there is none, or it is damaged."""
    with contextlib.suppress(UserError, OSError):
        _, metadata = load_tensors(path)
        if metadata["step"] < step:
            return float(metadata["validation_loss"])
    return float("inf")

"""Whether a run learns: throughput, data wait, memory, and a diagnosis where it does not."""

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fourdiffusion.errors import UserError
from fourdiffusion.train.settings import TrainConfig

MEAN_STEPS = 100  # over about so many steps the loss is averaged before it is compared
Item = TypeVar("Item")


@dataclass
class Meter:
    """Seconds since the last line of the log, and how many of them went into waiting for data."""

    busy: float = 0.0
    waited: float = 0.0
    clips: int = 0
    skipped: set[str] = field(default_factory=set)  # clips that could not be read, each with its reason
    began: float = field(default_factory=time.monotonic)

    def timed(self, batches: Iterator[Item]) -> Item:
        """Return the next batch; the time that it takes counts as waiting."""
        began = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - began
        return batch

    def note_skipped(self, reasons: list[str]) -> None:
        """Say which clips could not be read, each reason once."""
        for reason in reasons:
            if reason not in self.skipped:
                tqdm.write(f"skipped: {reason}")
        self.skipped.update(reasons)

    def read(self, device: torch.device) -> dict[str, float]:
        """Return what the log says of the steps since the last call, and begin anew."""
        values = {
            "clips_per_second": round(self.clips / max(self.busy, 1e-9), 4),
            "data_wait": round(self.waited / max(self.busy, 1e-9), 4),
            "memory_gib": round(peak_memory(device) / 2**30, 3),
            "seconds": round(time.monotonic() - self.began, 2),
        }
        values |= {"skipped": len(self.skipped)} if self.skipped else {}
        self.busy, self.waited, self.clips = 0.0, 0.0, 0
        return values


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes of torch's tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass
class LossWatch:
    """The mean loss of the last steps, and the least that it has been since the run was started."""

    mean: float = 0.0
    steps: int = 0
    least: float = float("inf")

    def diverged(self, loss: float, rise: float) -> bool:
        """Return whether the mean with this ``loss`` is ``rise`` times the least; 0 and the first steps: never."""
        self.steps += 1
        self.mean += (loss - self.mean) / min(self.steps, MEAN_STEPS)
        if self.steps < MEAN_STEPS:
            return False
        self.least = min(self.least, self.mean)
        return 0 < rise * self.least < self.mean


def check_loss(config: TrainConfig, step: int, terms: dict[str, Tensor]) -> None:
    """UserError for a loss that is not finite; it names the first term that is not."""
    broken = next(((name, value) for name, value in terms.items() if not bool(value.isfinite())), None)
    if broken is not None:
        raise UserError(
            f"the loss is {broken[1].item()} at step {step} (term {broken[0]}): lower learning_rate; "
            f"{config.output} holds the last checkpoint"
        )


def check_rise(config: TrainConfig, step: int, watch: LossWatch, loss: float) -> None:
    """UserError where the mean loss has risen to ``max_loss_rise`` times its least."""
    if watch.diverged(loss, config.max_loss_rise):
        raise UserError(
            f"the mean loss of the last {MEAN_STEPS} steps is {watch.mean:.4g} at step {step}, above "
            f"max_loss_rise={config.max_loss_rise:g} times its least ({watch.least:.4g}): the run diverges, lower "
            "learning_rate"
        )


def check_gradients(step: int, parameters: dict[str, nn.Parameter], norm: float, scaled: bool) -> None:
    """UserError where the gradients of a step cannot train: not finite, all zero, or missing.

    Args:
        step: its number.
        parameters: that this step trains.
        norm: of their gradients.
        scaled: fp16, whose gradient scaler skips steps that overflow.
    """
    if missing := [name for name, parameter in parameters.items() if parameter.grad is None]:
        raise UserError(
            f"{len(missing)} of {len(parameters)} trained tensors get no gradient at step {step} ({missing[0]}): the "
            "loss does not reach them; reentrant gradient checkpointing over a frozen base does that"
        )
    if norm == 0:
        raise UserError(
            f"the gradient is zero at step {step}: nothing learns; in fp16 it underflowed (mixed_precision=bf16), else "
            "the output projections and what feeds them are zero (init_motion)"
        )
    if not scaled and not norm < float("inf"):
        raise UserError(f"the gradient's norm is {norm} at step {step}: lower learning_rate")

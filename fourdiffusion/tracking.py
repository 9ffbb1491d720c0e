"""Curves of a run while it goes on, for TensorBoard and wandb; ``log.jsonl`` is written in any case."""

import contextlib
import importlib.util
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic

INSTALL = {"tensorboard": "pip install tensorboard", "wandb": "pip install wandb"}
Track = Callable[[dict[str, float], int], None]  # a name and value of each curve, and the step


def check_trackers(names: list[str]) -> None:
    """UserError for a tracker that is unknown or not installed."""
    for name in names:
        if name not in INSTALL:
            raise UserError(f"trackers: {name} is none of {', '.join(INSTALL)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed: {INSTALL[name]}, or rely on log.jsonl")


@contextlib.contextmanager
def trackers(names: list[str], folder: Path, start: int, settings: dict[str, Any]) -> Iterator[Track]:
    """A function that sends values to each tracker.

    What a resumed run makes again replaces what TensorBoard has; wandb keeps the first.

    Args:
        names: of ``check_trackers``.
        folder: the run folder.
        start: the step that the run goes on from.
        settings: of the run, for wandb's page.
    """
    sinks: list[Track] = []
    with contextlib.ExitStack() as stack:
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            writer = stack.enter_context(SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1))

            def to_tensorboard(values: dict[str, float], step: int) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)

            sinks.append(to_tensorboard)
        if "wandb" in names:
            sinks.append(stack.enter_context(_wandb(folder, settings)).log)

        def track(values: dict[str, float], step: int) -> None:
            for sink in sinks:
                sink(values, step)

        yield track


def _wandb(folder: Path, settings: dict[str, Any]) -> Any:
    """The run on wandb; one run folder stays one run there."""
    import wandb

    note = folder / "wandb.txt"
    if not note.is_file():
        write_atomic(note, lambda partial: partial.write_text(uuid.uuid4().hex[:8]))
    try:
        return wandb.init(
            project="fourdiffusion", id=note.read_text(), name=folder.name, resume="allow", dir=folder, config=settings
        )
    except wandb.errors.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"trackers: wandb does not start ({reason}): `wandb login`, or WANDB_MODE=offline") from error

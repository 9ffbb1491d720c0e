"""Log the curves of a run to TensorBoard and wandb; ``log.jsonl`` is always written."""

import contextlib
import importlib.util
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic

INSTALL = {"tensorboard": "pip install tensorboard", "wandb": "pip install wandb"}
Track = Callable[[dict[str, float], int], None]  # {name of a curve: value}, and the step


def check_trackers(names: list[str]) -> None:
    """Raise UserError for a tracker that is unknown or not installed."""
    for name in names:
        if name not in INSTALL:
            raise UserError(f"trackers: {name} is not one of {', '.join(INSTALL)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed: {INSTALL[name]}, or rely on log.jsonl")


@contextlib.contextmanager
def trackers(names: list[str], folder: Path, start: int, settings: dict[str, Any]) -> Iterator[Track]:
    """Return a function that sends values to each tracker.

    Values repeated by a resumed run replace those of TensorBoard; wandb keeps the first.

    Args:
        names: of ``check_trackers``.
        folder: the run folder.
        start: the step from which the run resumes.
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
    """Return the wandb run; one run folder is one wandb run."""
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

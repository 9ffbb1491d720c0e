"""The micro-batches of a run, and what is said where one cannot be had."""

import re
import signal
import threading
from collections.abc import Iterator

from torch.utils.data import DataLoader

from fourdiffusion.datasets.processes import ignore_interrupt
from fourdiffusion.datasets.sampling import Batch, ClipSamples, collate
from fourdiffusion.datasets.shards.storage import is_remote
from fourdiffusion.errors import UserError
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.step import micro_batches


class DataError(UserError):
    """The clips of a step cannot be read; between two steps, so that the run can be saved before it ends."""


def make_loader(config: TrainConfig, data: ClipSamples, start: int, rank: int, num_processes: int) -> DataLoader:
    """Return the micro-batches of one process from step ``start`` on.

    Data loading processes are forks; where shards are read over a network, new interpreters: the event loop of a remote
    filesystem is not safe to fork, a fork that closes an inherited connection leaves its parent waiting for an answer.
    """
    new = config.num_workers > 0 and is_remote(config.data.path)
    return DataLoader(
        data,
        batch_sampler=micro_batches(config, start, rank, num_processes),
        num_workers=config.num_workers,
        collate_fn=collate,
        multiprocessing_context="spawn" if new else None,
        worker_init_fn=ignore_interrupt if new else None,
    )


def read_batches(config: TrainConfig, data: ClipSamples, start: int, rank: int, num_processes: int) -> Iterator[Batch]:
    """Yield the micro-batches of ``make_loader``.

    Raises DataError, which names the clips, where one cannot be read or a data loading process is killed.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if getattr(before, "__module__", "").startswith("torch."):  # of a former loader of this process
        before = signal.SIG_DFL
    batches = iter(make_loader(config, data, start, rank, num_processes))
    if before is not None and threading.current_thread() is threading.main_thread():
        # torch's handler raises at any moment, also while an optimizer step is half done; without it, a killed process
        # is noticed here, a few seconds later
        signal.signal(signal.SIGCHLD, before)
    for wanted in micro_batches(config, start, rank, num_processes):
        try:
            batch = next(batches)
        except (UserError, OSError, MemoryError, RuntimeError, EOFError) as error:
            if (text := _reason(error, config.num_workers > 0)) is None:
                raise
            step = wanted[0][0]
            names = dict.fromkeys(data.first_clip(*index) for index in wanted)
            shown = ", ".join(list(names)[:4]) + (", ..." if len(names) > 4 else "")
            raise DataError(f"data.path={config.data.path}: {text} (step {step}, clips {shown})") from error
        yield batch


def _reason(error: Exception, workers: bool) -> str | None:
    """Return what to say of a batch that did not come; None where it is a fault of the program.

    ``workers``: others read the clips; an OSError of this process is then that of a broken connection to them.
    """
    text = str(error)
    broken = workers and isinstance(error, OSError | EOFError) and not text.startswith("Caught")
    if broken or re.match(r"DataLoader worker \(pid.* (killed|exited)", text):
        return "a data loading process was killed, perhaps for lack of memory: take fewer num_workers"
    if isinstance(error, RuntimeError) and "can't allocate memory" not in text:
        return None
    if wrapped := re.match(r"Caught (\w+) in DataLoader worker", text):  # with the worker's traceback behind it
        text = text.rpartition(f"{wrapped[1]}: ")[2] or wrapped[1]
    return " ".join(text.split()) or type(error).__name__

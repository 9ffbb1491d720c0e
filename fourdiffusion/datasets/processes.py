"""Run jobs in several processes, and detect killed ones."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from fourdiffusion.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the main process; run in data loader ``worker``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_jobs(function: Callable[[Job], Result], jobs: list[Job], num_workers: int) -> Iterator[Result]:
    """Yield ``function(job)`` for each job: in this process, or in ``num_workers`` processes, in order of completion.

    Each computes with one thread, so that results do not depend on ``num_workers``. UserError if one is killed.
    """
    if num_workers == 1 or len(jobs) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(function, jobs)
        finally:
            torch.set_num_threads(threads)
        return
    # Spawned processes: torch's thread pool does not survive a fork. An executor, unlike a Pool, notices that one of
    # them was killed.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, torch.set_num_threads, (1,)) as pool:
        futures = [pool.submit(function, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                f"a worker process was killed (or out of memory): take fewer num_workers than "
                f"{num_workers}, and run the same command again to resume"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

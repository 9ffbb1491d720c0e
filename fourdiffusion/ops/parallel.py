"""Run jobs on a pool of threads that sleep while they wait.

Numba's parallel kernels and torch's loops split their work in advance and spin at a barrier. On a shared machine each
barrier waits for the last interrupted thread. Here a free thread takes the next job, and no thread spins. A job must
release the GIL (numba's ``nogil``).
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None


def run_jobs(work: Callable[[int], None], num_jobs: int) -> None:
    """Call ``work`` with each of 0 ... num_jobs - 1 once, on the calling thread and up to torch.get_num_threads() - 1
    more. May be called from several threads and from inside a job. The first error of a job is raised again.
    """
    jobs = itertools.count()  # next() of it is atomic

    def drain() -> None:
        while (job := next(jobs)) < num_jobs:
            work(job)

    helpers = min(torch.get_num_threads(), num_jobs) - 1
    futures = [_threads().submit(drain) for _ in range(helpers)]
    try:
        drain()
    finally:
        # A helper that has not started is no longer needed; the caller may even occupy the pool's last thread.
        started = [future for future in futures if not future.cancel()]
        errors = [future.exception() for future in started]
    if error := next(filter(None, errors), None):
        raise error


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="ops")
    return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # a child process does not inherit its parent's threads

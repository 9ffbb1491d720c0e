"""How threads wait and freed memory is kept. Imports no torch: OpenMP reads its settings when torch is loaded."""

import ctypes
import os
import sys

POLICY = "OMP_WAIT_POLICY"
SPINS = "GOMP_SPINCOUNT"
DEFAULT_SPINS = 5000  # well below a millisecond
MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2  # parameters of mallopt(3)
MALLOC_OPTIONS = {MMAP_THRESHOLD: 2**30, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 2**26}  # bytes
MALLOC_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # beginnings of variables that choose an allocator


def prepare_process() -> None:
    """Set how OpenMP's threads wait and how malloc keeps memory. Call this before importing torch."""
    wait_with_few_spins()
    keep_freed_memory()


def wait_with_few_spins() -> None:
    """Let waiting OpenMP threads sleep after a short while, or at once if other processes use the machine.

    By default they spin for milliseconds: several times slower on a busy machine, on which the thread they wait for is
    not running, and in the way of this package's own threads on an idle one (docs/speed.md). A setting of the user's
    is kept.
    """
    if POLICY in os.environ or SPINS in os.environ:
        return
    if _others_compute():
        os.environ[POLICY] = "PASSIVE"
    else:
        os.environ[SPINS] = str(DEFAULT_SPINS)


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed memory for the next tensor; return whether it does.

    By default it returns each tensor of more than 32 MiB to the system at once, and the top of its heap soon. The pages
    of the next tensor then are zeroed anew, by one thread: a third of the small model's decoder's time (docs/speed.md).
    An allocator that the user has chosen or set is kept.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(MALLOC_SETTINGS) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc alone
    return mallopt is not None and all([mallopt(option, value) == 1 for option, value in MALLOC_OPTIONS.items()])


def _others_compute() -> bool:
    """Return whether the load of the last minute is too high for one thread per core."""
    try:
        return os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1)
    except OSError:
        return False

"""The wait policy of OpenMP. This module imports no torch: OpenMP reads its settings when torch is loaded."""

import os

POLICY = "OMP_WAIT_POLICY"


def wait_quietly_when_busy() -> bool:
    """Let waiting OpenMP threads sleep if other processes use the machine; return whether they do.

    Spinning threads are a quarter faster on an idle machine and several times slower on a busy one, on which the thread
    they wait for is not running (docs/speed.md). Call this before importing torch. A policy that is set is kept.
    """
    if POLICY not in os.environ and _others_compute():
        os.environ[POLICY] = "PASSIVE"
    return os.environ.get(POLICY, "").upper() == "PASSIVE"


def _others_compute() -> bool:
    """Return whether the load of the last minute is too high for one thread per core."""
    try:
        return os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1)
    except OSError:
        return False

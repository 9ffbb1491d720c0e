"""How OpenMP waits. This module imports no torch: OpenMP reads its settings when torch loads."""

import os

POLICY = "OMP_WAIT_POLICY"


def wait_quietly_when_busy() -> bool:
    """Let OpenMP's threads sleep while they wait, where other processes use the machine; return whether they do.

    Spinning threads are a quarter faster on an idle machine and several times slower on a busy one, where the thread
    that all wait for is not running (docs/speed.md). Call this before torch is imported. A policy that is set stays.
    """
    if POLICY not in os.environ and _others_compute():
        os.environ[POLICY] = "PASSIVE"
    return os.environ.get(POLICY, "").upper() == "PASSIVE"


def _others_compute() -> bool:
    """Return whether so many processes ran in the last minute that a thread for each core would have to share them."""
    try:
        return os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1)
    except OSError:
        return False

"""Run a command or a function in a fork of this process: what is imported and compiled here is not paid for again."""

import contextlib
import faulthandler
import fcntl
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

HANG_SECONDS = 300.0  # after which a fork is killed

# A fork gets its own lock for progress bars: a thread of its parent may hold tqdm's at that moment, which no thread
# of the fork would ever release; and a fork that is killed with the shared one would stop its parent.
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))


def collect_garbage() -> None:
    """Destroy what is garbage now, so that no fork does: a destructor may wait for a thread that forks lack."""
    gc.collect()
    gc.freeze()  # what is left is not looked at again


class Fork:
    """A process that runs a function in a folder, as the leader of its session; ``text`` is what it has said so far.

    The function's value is its exit code (None: 0); one that raises SystemExit ends as a program does, any other
    exception ends with a traceback and code 1.
    """

    def __init__(self, function: Callable[[], int | None], folder: Path):
        self.began = time.monotonic()
        self.text = b""
        # a pipe, to which no limit on files applies; large enough for all that a command says
        self.reading, writing = os.pipe()
        os.set_blocking(self.reading, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
        collect_garbage()
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                os.setsid()
                os.chdir(folder)
                os.dup2(writing, 1)
                os.dup2(writing, 2)
                if "torch" in sys.modules:
                    sys.modules["torch"].set_num_threads(1)  # the threads of its parent are not here
                faulthandler.dump_traceback_later(HANG_SECONDS - 20, file=2)
                sys.stdout, sys.stderr = (open(number, "w", 1, encoding="utf-8", closefd=False) for number in (1, 2))
                code = _run(function)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(writing)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, -N after signal N, None while it runs; take what it said meanwhile."""
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self._read()
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
                os.close(self.reading)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = HANG_SECONDS) -> int | None:
        """Return the exit code; None after so many seconds, when it is killed with its own processes."""
        limit = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > limit:
                self.kill()
                return None
            time.sleep(0.005)
        return self.returncode

    def kill(self) -> None:
        """Kill it and the processes that it started, if it runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.001)

    def said(self) -> str:
        """Return all that it has said so far."""
        return self.text.decode(errors="replace")

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.reading, 1 << 20):
                self.text += piece


def _run(function: Callable[[], int | None]) -> int:
    try:
        return function() or 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def command(words: list[str], folder: Path, before: Callable[[], object] = lambda: None) -> Fork:
    """Return a fork that runs ``fourdiffusion`` with some words in a folder, after ``before``."""

    def run() -> int:
        before()
        from fourdiffusion.cli import main

        return main(list(words))

    return Fork(run, folder)

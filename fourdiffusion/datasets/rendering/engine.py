"""Communicate with a rendering process: one JSON request per line on its input, one answer line on its output.

An answer starts with ``ANSWER``; other lines of the output (Blender prints many) are ignored. Requests, in this order:

* ``{"do": "hello"}`` -> ``{}``: the engine runs here
* ``{"do": "open", "path", ...}`` -> ``{"axes": "gltf" | "blender", "animations": [{"name", "start", "end"}]}``, seconds
* ``{"do": "measure", "animation", "times", "file"}`` -> ``{}``; writes an .npz with the world points f0, f1 ... [N, 3]
* ``{"do": "render", "animation", "times", "world", "cameras", "fovy_deg", "folder", ...}`` -> ``{}``; writes
  `rgba/v00_f00.png` (8-bit, straight alpha) and, if requested, `depth`, `normal` and `motion` as `.npy`

A failed request is answered by ``{"reason": WORD, "detail": TEXT}``. While it renders, an engine prints an answer
``{"progress": frames}`` after each frame: the timeout counts from the last of them and so does not depend on the number
of frames.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

ANSWER = "@fourdiffusion "
MAX_POINTS = 20000  # a frame, in a measurement
THREADS = {"LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # num_workers scales better


class EngineFailure(Exception):
    """A request that failed: ``reason`` is one word of the render log; ``fatal``: the process has ended."""

    def __init__(self, reason: str, detail: str, fatal: bool) -> None:
        super().__init__(detail)
        self.reason, self.fatal = reason, fatal


class Engine:
    """A rendering process. ``close`` ends it and its child processes."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env=os.environ | THREADS,
            )
        self.pending = b""

    def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and return its answer; EngineFailure: reason `crash`, `timeout` or the engine's."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it crashed: reading its output raises
        answer = self._answer(timeout_s)
        while "progress" in answer:
            answer = self._answer(timeout_s)
        if "reason" in answer:
            raise EngineFailure(answer["reason"], answer["detail"], fatal=False)
        return answer

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while True:
                line, newline, rest = self.pending.partition(b"\n")
                if newline:
                    self.pending = rest
                    text = line.decode(errors="replace")
                    if text.startswith(ANSWER):
                        return dict(json.loads(text[len(ANSWER) :]))
                    continue
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    self.close()
                    raise EngineFailure("timeout", f"no answer in {timeout_s:g} s", fatal=True)
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    raise EngineFailure("crash", self._last_words(), fatal=True)
                self.pending += data

    def _last_words(self) -> str:
        self.close()
        code = self.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{how}: {lines[-1][:200]}" if lines else how

    def close(self) -> None:
        """End the process group and wait for it."""
        if self.process.poll() is None:
            try:
                assert self.process.stdin is not None
                self.process.stdin.close()  # a worker exits at the end of its input
                self.process.wait(timeout=0.2 if self.pending else 1)
            except (OSError, subprocess.TimeoutExpired):
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

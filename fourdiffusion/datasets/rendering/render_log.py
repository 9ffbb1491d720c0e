"""`render_log.jsonl`: the result of every clip of a batch, one JSON object per line.

* `{"status": "done", "object", "uid", "asset", "seconds", "bytes"}`: a clip
* `{"status": "failed", "object", "uid", "asset", "reason", "detail", "seconds"}`: a clip, or with uid null an object
* `{"status": "complete", "object", "clips": [uid ...]}`: all clips of an object are done or failed

Reasons: unreadable, unsupported, missing_texture, empty, no_animation, static, leaves_frame, timeout, crash, error.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import require_own_file


class RenderLog:
    """The log of one output folder; its methods may be called from several threads."""

    def __init__(self, path: Path) -> None:
        self.path, self.guard = path, threading.Lock()
        self.done: dict[str, str] = {}  # object by uid
        self.failed: dict[tuple[str, str | None], dict[str, Any]] = {}  # by object and uid
        self.complete: dict[str, list[str]] = {}  # uids by object
        require_own_file(path)
        data = path.read_bytes() if path.exists() else b""
        if data and not data.endswith(b"\n"):  # a killed run may leave half a line
            data = data[: data.rfind(b"\n") + 1]
            path.write_bytes(data)
        for number, line in enumerate(data.splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}:{number}: not a line of a render log; delete the line") from error

    def _take(self, line: dict[str, Any]) -> None:
        name = line["object"]
        if line["status"] == "complete":
            self.complete[name] = line["clips"]
            self.failed.pop((name, None), None)
        elif line["status"] == "done":
            self.done[line["uid"]] = name
            self.failed.pop((name, line["uid"]), None)
        else:
            self.failed[name, line["uid"]] = line

    def add(self, **line: Any) -> None:
        """Append a line."""
        with self.guard:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._take(line)

    def foreign(self, name: str) -> set[str]:
        """Return the uids, in lower case, of objects other than ``name``."""
        with self.guard:
            owners = list(self.done.items()) + [(uid, other) for other, uid in self.failed if uid]
        return {uid.lower() for uid, owner in owners if owner != name}

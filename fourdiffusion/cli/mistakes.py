"""Errors that are no fault of the program: one line instead of a traceback."""

import errno
import os
import re
import select
import sys
from typing import Any

from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable

FULL = "the disk is full: free some space, then run the same command again"
REMEDIES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EROFS: "the file system is read-only: choose another output",
    errno.EACCES: "permission denied: choose another output, or change who may read and write it",
    errno.EPERM: "permission denied: choose another output, or change who may read and write it",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "it is a folder: give a file",
    errno.ENOTDIR: "a part of the path is a file and no folder: choose another path",
    errno.EEXIST: "it exists: choose another path, or delete it",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n), or take fewer num_workers",
}
NO_MEMORY = "out of memory: take fewer frames, views or workers, or smaller images"


def mistake(error: BaseException) -> str | None:
    """Return the one line to print in place of a traceback; None for a fault of the program."""
    text = str(error)
    if isinstance(error, UserError):
        return " ".join(text.split())
    # torch and safetensors, which are not imported here, have types of their own
    no_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if no_memory or "can't allocate memory" in text:
        first = text.splitlines()[0] if text else ""
        return f"{NO_MEMORY} ({first})" if first else NO_MEMORY
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"(?:os error|code:) (\d+)", text)):
        return REMEDIES.get(int(found[1])) or os.strerror(int(found[1]))  # its own errors of reading and writing
    if isinstance(error, OSError):
        reason = REMEDIES.get(error.errno or 0) or error.strerror or " ".join(text.split()) or type(error).__name__
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return f"{' -> '.join(names)}: {reason}" if names else reason
    return None


class SafeStream:
    """A text stream that shows what a terminal would obey as escapes: names of files can hold control characters.

    The carriage returns and upward moves of progress bars pass: they stand at an end of a text, or alone.
    """

    # all controls but tab and new line, marks of direction, separators of lines, halves of characters
    UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
    BAR = re.compile(r"(\r*)(.*?)(\r*)", re.DOTALL)
    UP = re.compile(r"\n*(\x1b\[A)*")

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, unsafe characters escaped."""
        if self.UNSAFE.search(text) and not self.UP.fullmatch(text):
            match = self.BAR.fullmatch(text)
            before, inside, after = match.groups() if match else ("", text, "")
            text = before + self.UNSAFE.sub(lambda found: printable(found[0]), inside) + after
        return int(self._stream.write(text) or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def safe_streams() -> None:
    """Make the standard streams write characters that they cannot encode, or that a terminal would obey, as escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        if stream is not None and not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))


def reader_is_gone() -> bool:
    """Return whether the reader of the standard output has closed it, as `head` does; then redirect it to /dev/null."""
    try:
        number = sys.stdout.fileno()
        sys.stdout.flush()
        poll = select.poll()
        poll.register(number, 0)
        gone = any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        gone = True
    except (OSError, ValueError, AttributeError):  # no file, closed, or a system without poll
        return False
    if gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return gone

"""Resolve paths given by users: a file of exactly that name first, then with ``~`` expanded."""

import os
import stat
from pathlib import Path

from fourdiffusion.errors import UserError

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def printable(text: object) -> str:
    """Return the text with control characters and lone surrogates escaped, safe for a terminal and on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def user_path(text: str, setting: str) -> Path:
    """Return the path that a user gave for a setting.

    A file or folder of exactly that name has priority, so that ``~t.mp4`` or ``a:b.mp4`` work; else ``~`` is expanded.
    UserError for an empty path, a NUL, and an address (``https://``, ``file://``).
    """
    if not text.strip():
        raise UserError(f"{setting} is empty: give a path")
    if "\0" in text or not _encodes(text):
        raise UserError(f"{setting}={printable(text)}: holds characters that no file name can hold: give a path")
    if _exists(Path(text)):
        return Path(text)
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() == "file":
        raise UserError(f"{setting}={printable(text)}: give the path alone, without file://: {printable(rest)}")
    if separator and scheme.isalnum():
        raise UserError(f"{setting}={printable(text)}: is an address: download it and give the file")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~name of an unknown user
        return Path(text)


def require_file(path: Path, remedy: str = "give another file") -> None:
    """Raise UserError unless the path is a readable regular file; a pipe or a device would block the reader."""
    name = printable(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"{name}: missing; {remedy}") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise UserError(f"{name}: is not a file name; {remedy}") from error
    if not stat.S_ISREG(mode):
        kind = next((words for test, words in KINDS if test(mode)), "no file")
        raise UserError(f"{name}: is {kind}, not a file; {remedy}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{name}: cannot be read (Permission denied); {remedy}")


def require_own_file(path: Path) -> None:
    """Raise UserError if a path for reading and rewriting exists but is not a readable regular file."""
    if os.path.lexists(path):
        require_file(path, "delete it, or choose another output")


def refuse_foreign_files(folder: Path, note: str, own: tuple[str, ...] = ()) -> None:
    """Raise UserError if a folder without the file ``note`` holds anything but hidden files, rests and ``own``.

    ``note`` is what a verb writes first into its output folder: without it the folder belongs to somebody else.
    """
    if (folder / note).exists():
        return
    found = sorted(entry.name for entry in folder.iterdir() if entry.name[0] != "." and entry.suffix != ".partial")
    if strange := [name for name in found if name not in own]:
        raise UserError(f"output={folder} holds {printable(strange[0])} and no {note}: give an empty or a new folder")


def _encodes(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False

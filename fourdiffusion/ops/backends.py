"""Choose the backend of an op, and the commands that install the optional libraries."""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from functools import cache

_log = logging.getLogger(__name__)

INSTALL = {
    "numba": "pip install numba",
    "tinycudann": (
        'pip install "setuptools<81" wheel; pip install --no-build-isolation '
        '"git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"'
    ),
    "nerfacc": "pip install -e '.[cuda]'",
}


@cache
def installed(library: str) -> bool:
    """Return whether a library is installed, without importing it."""
    return importlib.util.find_spec(library) is not None


def choose(setting: str, name: str, backends: Sequence[str], obstacle: Callable[[str], str | None]) -> str:
    """Return the backend ``name``; for "auto" the first applicable one of ``backends``; the last one must always apply.

    Args:
        setting: the caller's name of the setting, for the message.
        name: one of ``backends``, or "auto".
        backends: fastest first.
        obstacle: returns why a backend does not apply, None if it does.

    Raises:
        ValueError: no such backend, or it does not apply.
    """
    if name == "auto":
        return next(backend for backend in backends if obstacle(backend) is None)
    if name not in backends:
        raise ValueError(f"{setting}={name} is unknown: choose auto, {', '.join(backends)}")
    if reason := obstacle(name):
        raise ValueError(f"{setting}={name} {reason}")
    return name


def tell_step_down(
    setting: str, name: str, taken: str, native: str | None, obstacle: Callable[[str], str | None]
) -> None:
    """Log one line, with the reason, if "auto" did not choose the device's own backend."""
    if name == "auto" and native not in (None, taken):
        reason = obstacle(str(native))
        _log.warning("%s=auto takes %s, which is slower and needs more memory: %s %s", setting, taken, native, reason)


def append_flag(variable: str, flag: str) -> None:
    """Append a flag to an environment variable with several flags, if it is missing."""
    flags = os.environ.get(variable, "").split()
    if flag not in flags:
        os.environ[variable] = " ".join([*flags, flag])

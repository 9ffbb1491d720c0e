"""Which implementation of a hot operation runs: the choice, and the lines that install the optional libraries."""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from functools import cache

_log = logging.getLogger(__name__)

INSTALL = {
    "numba": "pip install numba",
    "tinycudann": (
        'pip install --no-build-isolation "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"'
    ),
    "nerfacc": "pip install -e '.[cuda]'",
}


@cache
def installed(library: str) -> bool:
    """Whether a library is there, without importing it."""
    return importlib.util.find_spec(library) is not None


def choose(setting: str, name: str, backends: Sequence[str], obstacle: Callable[[str], str | None]) -> str:
    """The backend called ``name``; for "auto" the first of ``backends`` that can, which the last one always must.

    Args:
        setting: what the caller calls the name, for the message.
        name: one of ``backends``, or "auto".
        backends: fastest first.
        obstacle: why a backend cannot serve, None where it can.

    Raises:
        ValueError: no such backend, or it cannot serve.
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
    """Log one line where "auto" did not take the backend that is made for the device, with the reason."""
    if name == "auto" and native not in (None, taken):
        reason = obstacle(str(native))
        _log.warning("%s=auto takes %s, which is slower and needs more memory: %s %s", setting, taken, native, reason)


def append_flag(variable: str, flag: str) -> None:
    """Append a flag to an environment variable that holds several, unless it is there."""
    flags = os.environ.get(variable, "").split()
    if flag not in flags:
        os.environ[variable] = " ".join([*flags, flag])

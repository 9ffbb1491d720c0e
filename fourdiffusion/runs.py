"""Run folders: resolved settings, a log and checkpoints.

<run>/config.yaml                 every setting of the run
<run>/log.jsonl                   one line for each logged step
<run>/checkpoint.safetensors      the newest state from which the run resumes
"""

import contextlib
import dataclasses
import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from torch import Tensor

from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.renames import current_name


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts what ``optimizer_tensors`` gave back; the groups' settings stay those of ``optimizer``."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def git_commit() -> str:
    """The commit of the source tree, "+" after it where files differ from it, "unknown" outside a repository."""
    root = Path(__file__).parent
    commands = (["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        commit, status = (
            subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if status else "")


def open_run(folder: Path, config: Any, free: set[str], facts: dict[str, Any] | None = None) -> None:
    """Makes a run folder, or makes sure that the run in it has the same settings.

    Args:
        folder: the run folder.
        config: a dataclass of settings, all with defaults.
        free: settings, or groups of them, that may differ when a run goes on (how long, how often to report).
            ``output`` may always: a run folder can be moved.
        facts: what else to note of this start beside the commit; a run may go on with others.

    Raises:
        UserError: the folder cannot be made, holds a run with other settings, or files that no run of ours wrote.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={folder} cannot be made ({error.strerror}): choose another output") from error
    settings = dataclasses.asdict(config)
    path = folder / "config.yaml"
    if path.is_file():
        # what the run's version did not know yet, it did as the defaults do
        name = type(config).__name__
        written = {current_name(name, key): value for key, value in _flat(_read_settings(path)).items()}
        old = _flat(dataclasses.asdict(type(config)())) | written
        for key, value in _flat(settings).items():
            before = old.get(key)
            if before != value and not any(f"{key}.".startswith(f"{name}.") for name in free | {"output"}):
                raise UserError(
                    f"{folder} holds a run with {key}={before}, this one has {key}={value}: "
                    "choose another output, or delete that folder"
                )
    elif any(entry.suffix != ".partial" for entry in folder.iterdir()):  # a start that was killed leaves one
        raise UserError(f"{folder} is not empty and holds no run of ours: choose another output")
    text = yaml.safe_dump({"commit": git_commit(), **(facts or {}), "settings": settings}, sort_keys=False)
    write_atomic(path, lambda partial: partial.write_text(text))


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings in a run's ``config.yaml``; UserError where it is damaged or no run of ours wrote it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    settings = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"{path} is damaged or not ours: choose another output, or delete that folder")
    return settings


@contextlib.contextmanager
def patient_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the end of a step: the block gets a function that says whether it was pressed.

    A second Ctrl-C stops at once. Outside the main thread nothing changes.
    """
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def append_log(folder: Path, line: dict[str, Any]) -> None:
    """One more line of ``log.jsonl``."""
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def trim_log(folder: Path, step: int) -> None:
    """Forgets the lines of steps after ``step``, which a resumed run makes again."""
    path = folder / "log.jsonl"
    if path.is_file():
        kept = [
            line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        write_atomic(path, lambda partial: partial.write_text("".join(line + "\n" for line in kept)))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat

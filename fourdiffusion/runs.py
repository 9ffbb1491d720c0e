"""Run folders: settings, digests of the inputs, a log, checkpoints; signals and a lock.

<run>/config.yaml                     all settings of the run, and the digests of its inputs
<run>/log.jsonl                       one line for each logged step
<run>/checkpoint.safetensors          the newest state from which the run resumes
<run>/checkpoint.previous.safetensors the one before, in case the newest is damaged
<run>/.lock                           held by the process that writes into the folder
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
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

from fourdiffusion.documents import read_yaml
from fourdiffusion.errors import Terminated, UserError
from fourdiffusion.files import first_non_finite, load_tensors, remove, save_tensors, write_atomic
from fourdiffusion.media.paths import require_own_file
from fourdiffusion.renames import current_name, current_value

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
LOCK = ".lock"
MAX_STEP = 10**9
# Files that a run writes before its first result: a folder with only these does not restrict the next run.
PREPARATIONS = {
    "config.yaml",
    "input.json",
    "input.safetensors",
    "matte.png",
    "tensorboard",
    "wandb",
    "wandb.txt",
    LOCK,
}
TERMINATING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


# ---- optimizer ------------------------------------------------------------------------------------------------------


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the state of ``optimizer_tensors``; the groups' settings stay those of ``optimizer``."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # a fused kernel needs the weights' layout
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


# ---- settings and content -------------------------------------------------------------------------------------------


def git_commit() -> str:
    """Return the commit of the source tree, with "+" if files differ; "unknown" outside its repository."""
    package = Path(__file__).resolve().parent
    commands = (
        ["git", "rev-parse", "--show-toplevel"],
        ["git", "rev-parse", "--short=12", "HEAD"],
        ["git", "status", "--porcelain", "--untracked-files=no"],
    )
    try:
        root, commit, status = (
            subprocess.run(command, cwd=package, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    if Path(root) != package.parent:  # installed inside a user's repository
        return "unknown"
    return commit + ("+" if status else "")


def tensor_digest(tensor: Tensor) -> str:
    """Return the sha256 of a CPU tensor's shape, dtype and values."""
    digest = hashlib.sha256(f"{list(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """Return the sha256 of the files in the direct subfolders of ``folder``, the parts of a model."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*")):
        if path.is_file():
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def open_run(
    folder: Path,
    config: Any,
    free: set[str],
    facts: dict[str, Any] | None = None,
    content: dict[str, str] | None = None,
    fixed: dict[str, str] | None = None,
) -> None:
    """Make a run folder, or check that the existing run has the same settings and inputs.

    A folder without a result yet (see PREPARATIONS) does not restrict the run.

    Args:
        folder: the run folder.
        config: a dataclass of settings, all with defaults.
        free: settings, or groups of them, that may differ when a run resumes: they do not change its result.
            ``output`` may always differ: a run folder can be moved.
        facts: further values to record besides the commit; they may differ when a run resumes.
        content: {setting that is a path: digest of its content}. The digest must be the same, the path may differ.
        fixed: facts that must be the same when a run resumes.

    Raises:
        UserError: the folder cannot be made, has another run, or files that are not from a run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"output={folder} cannot be made ({reason}): choose another output") from error
    content, fixed, path = content or {}, fixed or {}, folder / "config.yaml"
    entries = [entry for entry in folder.iterdir() if entry.suffix != ".partial"]  # left by a killed start
    results = [entry for entry in entries if entry.name not in PREPARATIONS]
    if path.is_file():
        record = _read_record(path)
        if results:
            _check_same(folder, record, config, {*free, "output"}, content, fixed)
    elif results:
        raise UserError(f"{folder} is not empty and holds no run: choose another output")
    record = {"commit": git_commit(), **(facts or {}), **fixed}
    record |= {"content": content} if content else {}
    text = yaml.safe_dump({**record, "settings": dataclasses.asdict(config)}, sort_keys=False)
    write_atomic(path, lambda partial: partial.write_text(text))


def _check_same(
    folder: Path, record: dict[str, Any], config: Any, free: set[str], content: dict[str, str], fixed: dict[str, str]
) -> None:
    """Raise UserError if a run's record differs from this start in a setting, a digest or a fixed fact."""
    remedy = "choose another output"
    known = record.get("content")
    known = known if isinstance(known, dict) else {}
    for key, digest in content.items():
        if key in known and known[key] != digest:
            raise UserError(
                f"{folder} holds a run with another {key} (its content is {str(known[key])[:12]}, that of this one "
                f"{digest[:12]}): {remedy}"
            )
    for key, value in fixed.items():
        if record.get(key, value) != value:
            raise UserError(f"{folder} holds a run with {key}={record[key]}, this one has {key}={value}: {remedy}")
    # settings newer than the run's version had the behavior of the defaults
    name = type(config).__name__
    written = {current_name(name, key): current_value(key, value) for key, value in _flat(record["settings"]).items()}
    before = _flat(dataclasses.asdict(type(config)())) | written
    compared = {key for key in content if key in known}
    for key, value in _flat(dataclasses.asdict(config)).items():
        if key in compared or any(f"{key}.".startswith(f"{each}.") for each in free):
            continue
        if before.get(key) != value:
            raise UserError(f"{folder} holds a run with {key}={before.get(key)}, this one has {key}={value}: {remedy}")


def _read_record(path: Path) -> dict[str, Any]:
    """Return the content of a run's ``config.yaml``; UserError if it is damaged or not from a run."""
    remedy = "choose another output, or restore a copy of the file"
    record = read_yaml(path, remedy)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise UserError(f"{path} is damaged or not from a run: {remedy}")
    return record


def run_record(folder: Path) -> dict[str, Any]:
    """Return the content of a run folder's ``config.yaml``: ``settings`` and facts. UserError if there is none."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no run: give a folder with config.yaml")
    return _read_record(folder / "config.yaml")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


# ---- lock and signals -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock_folder(folder: Path, keep: str = "config.yaml") -> Iterator[None]:
    """Hold the lock of an output folder, which is made if it is missing.

    The system releases the lock when the process ends in any way: the remaining file blocks nothing. On a file system
    without locks there is no lock. If the file ``keep`` is missing at the end, there is no run, and the lock file is
    removed. UserError if another process holds the lock, or the folder cannot be made.
    """
    made: list[Path] = []
    try:
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        require_own_file(folder / LOCK)
        is_new = not (folder / LOCK).exists()
        file = open(folder / LOCK, "a+", encoding="utf-8")
    except (OSError, ValueError) as error:
        _remove_empty(made)
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"output={folder} cannot be made ({reason}): choose another output") from error
    with file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                file.seek(0)
                holder = file.read(40).strip() or "unknown"
                raise UserError(
                    f"output={folder} is in use by another process ({holder}): wait for it, or choose another output"
                ) from error
            except OSError:
                pass  # no locks on this file system
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        mine = "*.partial" if (folder / keep).is_file() else f"*{keep}*.partial"  # others may have such files, too
        for left in folder.glob(mine):  # by a process that was killed
            remove(left)
        try:
            yield
        finally:
            if is_new and not (folder / keep).is_file():  # there is no run
                (folder / LOCK).unlink(missing_ok=True)
                _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Remove empty folders, inner ones first, up to the first that is not empty or does not exist."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None], numbers: list[int]) -> Iterator[None]:
    """Install a handler of some signals for the block, unless they are ignored (nohup ignores SIGHUP)."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _raise(number: int, frame: FrameType | None = None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM, SIGHUP and SIGUSR1 raise Terminated in the block, so that it ends as with Ctrl-C."""
    with _handlers(_raise, TERMINATING):
        yield


@dataclasses.dataclass
class Interruption:
    """The signal, if any, that arrived in a block of ``deferred_signals``."""

    signal_number: int | None = None

    def __call__(self) -> bool:
        """Return whether a signal arrived."""
        return self.signal_number is not None

    def leave(self) -> None:
        """Raise KeyboardInterrupt after Ctrl-C, Terminated after another signal; do nothing without a signal."""
        if self.signal_number is not None:
            _raise(self.signal_number)


@contextlib.contextmanager
def deferred_signals() -> Iterator[Interruption]:
    """Defer Ctrl-C, SIGTERM, SIGHUP and SIGUSR1: the block polls for them after each step, saves and leaves.

    A second signal raises at once. Outside the main thread nothing changes.
    """
    interruption = Interruption()

    def note(number: int, frame: FrameType | None) -> None:
        if interruption():
            _raise(number)
        interruption.signal_number = number

    with _handlers(note, [signal.SIGINT, *TERMINATING]):
        yield interruption


# ---- log ------------------------------------------------------------------------------------------------------------


def append_log(folder: Path, line: dict[str, Any]) -> None:
    """Append one line to ``log.jsonl``."""
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def trim_log(folder: Path, step: int) -> None:
    """Drop the lines of steps after ``step``, which a resumed run repeats, and invalid lines."""
    path = folder / "log.jsonl"
    require_own_file(path)
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if (number := _step_of(line)) is not None and number <= step]
        write_atomic(path, lambda partial: partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8"))


def _step_of(line: str) -> int | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = content.get("step") if isinstance(content, dict) else None
    return step if type(step) is int else None


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, verb: str, tensors: dict[str, Tensor], step: int) -> None:
    """Write the newest checkpoint and keep the previous one; at any time one of the two is complete."""
    path, following = folder / CHECKPOINT, folder / "checkpoint.next.safetensors"
    save_tensors(following, tensors, {"step": step, "verb": verb})
    if path.is_file():
        os.replace(path, folder / PREVIOUS)
    os.replace(following, path)


def load_checkpoint(
    folder: Path, verb: str, expected: dict[str, Tensor], tell: Callable[[str], object] = print
) -> tuple[dict[str, Tensor], int] | None:
    """Return the tensors and the step of the newest complete checkpoint; None if there is none.

    Args:
        folder: the run folder.
        verb: the verb that wrote it.
        expected: tensors with the names and shapes of the checkpoint.
        tell: gets one line if the newest checkpoint is damaged and the previous one is used.

    Raises:
        UserError: there are checkpoints, but none is usable.
    """
    reasons = []
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if path.exists():
            try:
                tensors, step = _read_checkpoint(path, verb, expected)
            except UserError as error:
                reasons.append(str(error))
                continue
            for reason in reasons:
                tell(f"{reason}: resuming from the previous one, of step {step}")
            return tensors, step
    if reasons:
        raise UserError(f"{reasons[0]}: restore a copy, or choose another output")
    return None


def _read_checkpoint(path: Path, verb: str, expected: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    try:
        tensors, metadata = load_tensors(path)
    except (UserError, OSError) as error:
        raise UserError(f"{path} is damaged") from error
    if metadata.get("verb", verb) != verb:
        raise UserError(f"{path} is a checkpoint of {metadata['verb']}, not of {verb}")
    step = metadata.get("step")
    if type(step) is not int or not 0 <= step <= MAX_STEP:
        raise UserError(f"{path} has no step that counts (step={step})")
    states: dict[str, set[str]] = {}  # names of each parameter's state
    for name in tensors:
        if name.startswith("optimizer."):
            if not re.fullmatch(r"optimizer\.\d+\.\w+", name):
                raise UserError(f"{path}: {name[:80]} is not an optimizer state")
            _, index, key = name.split(".")
            states.setdefault(index, set()).add(key)
    for index, keys in states.items():
        if keys & {"exp_avg", "exp_avg_sq"} and (lacking := sorted({"exp_avg", "exp_avg_sq", "step"} - keys)):  # Adam's
            raise UserError(f"{path} lacks the tensor optimizer.{index}.{lacking[0]}")
    for name, value in expected.items():
        if name not in tensors:
            raise UserError(f"{path} lacks the tensor {name}")
        if tensors[name].shape != value.shape:
            raise UserError(f"{path}: {name} is {list(tensors[name].shape)}, this run's is {list(value.shape)}")
    if culprit := first_non_finite(tensors):
        raise UserError(f"{path}: {culprit} is not finite")
    return tensors, step

"""Run bad commands of every verb and judge what each one ends in.

    python dev/bad_commands.py [--count 1200] [--seed 0] [--only TEXT] [--table FILE] [--keep FOLDER] [--seconds 30]

The commands come from ``bad_cases.py``, deterministically from the seed. This process imports the package and makes the
inputs once; each command is then a fork of it in a folder of its own. A right answer is exit code 2 with exactly one
line ``error: ...`` and nothing written or changed, or, where the input may pass, exit code 0 with whole, finite files.
Exit code 0 of this script: at least 99 percent are right, and none hung.
"""

import argparse
import collections
import ctypes
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "dev"), str(ROOT / "tests"), str(ROOT / "tests" / "datasets")]

import bad_cases  # noqa: E402
import forks  # noqa: E402
import tiny_commands  # noqa: E402

RIGHT = "right"
MEMORY = 2**34  # bytes of address space of one command
BAR = re.compile(r"\d+%\||\dit/s|\?it/s|s/it")  # of tqdm
GOAL = 0.99
NO_NAMESPACE = 97  # exit code where a network of its own is not allowed


@dataclass(frozen=True)
class Verdict:
    """What became of one command. ``outcome`` is "right" or says what is wrong."""

    name: str
    words: list[str]
    code: int | None
    outcome: str
    said: str
    seconds: float  # of the processor


def snapshot(folder: Path) -> dict[str, str]:
    """Return {path: what is there}: the digest of a file, else its kind. A lock may be taken, and stays."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            what = stat.filemode(mode)[0]
            if what == "-" and name != ".lock" and os.access(path, os.R_OK):
                with open(path, "rb") as file:
                    what = hashlib.file_digest(file, "sha256").hexdigest()
            found[os.path.relpath(path, folder)] = what
    return found


def drop_privileges() -> None:
    """Let permissions count for root, too: take CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH from this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) == 0:
        data[0] &= ~0b110
        libc.capset(header, data)


def without_network() -> bool:
    """Give this process a network of its own, which reaches nothing, as `unshare -n` does; False where it may not."""
    return ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0  # CLONE_NEWNET


def stand_in(place: Path) -> None:
    """Put a program ``gs`` into place/bin, which notes that it was called: Pillow would call Ghostscript for an EPS."""
    program = place / "bin" / "gs"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\ntouch executed-by-ghostscript\n")
    program.chmod(0o755)


def run_forked(case: "bad_cases.Case", folder: Path, seconds: float) -> tuple[int | None, str, str, float]:
    """Run one command in a fork with ``folder`` as its working directory.

    Return the exit code (None where it hung), stdout, stderr, and the seconds of processor time.
    """
    out, err = folder.parent / "stdout", folder.parent / "stderr"
    forks.collect_garbage()
    process = os.fork()
    if process == 0:
        code = 99
        try:
            os.setsid()
            os.chdir(folder)
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.environ["PATH"] = f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
            if case.offline and not without_network():
                os._exit(NO_NAMESPACE)
            if case.plain_user:
                drop_privileges()
            from fourdiffusion.cli import main

            try:
                code = main(list(case.words))
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 98
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    usage = wait(process, seconds)
    try:
        os.killpg(process, signal.SIGKILL)  # also workers that stayed behind
    except ProcessLookupError:
        pass
    if usage is None:
        usage = os.wait4(process, 0)
        status: int | None = None
    else:
        status = os.waitstatus_to_exitcode(usage[1])
    cpu = usage[2].ru_utime + usage[2].ru_stime
    return status, out.read_text(errors="replace"), err.read_text(errors="replace"), cpu


def wait(process: int, seconds: float) -> "tuple[int, int, resource.struct_rusage] | None":
    """Wait for a child; None where it computed for more than ``seconds``, or stood still for so long.

    Time is the processor's: beside other jobs a good command may take long.
    """
    spent, moved = 0.0, time.monotonic()
    while True:
        done = os.wait4(process, os.WNOHANG)
        if done[0]:
            return done
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            now = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError):
            now = spent
        if now > spent:
            spent, moved = now, time.monotonic()
        if spent > seconds or time.monotonic() - moved > seconds:
            return None
        time.sleep(0.005)


def judge(case: "bad_cases.Case", code: int | None, out: str, err: str, before: dict[str, str], folder: Path) -> str:
    """Return "right", or what is wrong with the outcome of a command."""
    if code is None:
        return "hang"
    if "Traceback (most recent call last)" in out + err:
        return "traceback"
    if code not in (0, 2):
        return f"exit {code}"
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", (out + err).replace("\x1b[A", "")):  # tqdm moves up a line
        return "control characters"
    after = snapshot(folder)
    if ran := [name for name in after if "executed-by" in name]:
        return ran[0]
    if left := [name for name in after if name.endswith(".partial") and name not in before]:
        return f"left behind: {left[0]}"
    if code == 0:
        if case.refused and not (case.told and case.told in out + err):
            return "silent"
        return _damaged(folder, before, after)
    lines = [line for line in re.split(r"[\r\n]+", err) if line.strip() and not BAR.search(line)]
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or lines[-1] != errors[0]:
        return "not one line"
    if strange := [line for line in lines if not line.startswith(("error: ", "warning: "))]:
        return f"further lines: {strange[0][:60]}"
    if case.named and case.named not in errors[0]:
        return f"does not name {case.named}"
    # a run that goes on records its start before it reads the rest of the folder
    free = ("config.yaml", "input.json", "matte.png") if re.search("resumed|again", case.name) else ()
    names = [name for name in before | after if not (free and name.endswith(free) and name in before and name in after)]
    if changed := [name for name in names if before.get(name) != after.get(name)]:
        return f"changed: {', '.join(changed[:3])}"
    return RIGHT


def _damaged(folder: Path, before: dict[str, str], after: dict[str, str]) -> str:
    """Return what is wrong with the files that a command wrote; "right" where nothing is."""
    from safetensors.torch import load_file

    for name in after:
        path = folder / name
        if before.get(name) == after[name] or not path.is_file() or path.is_symlink():
            continue
        if path.suffix == ".safetensors":
            for key, value in load_file(path).items():
                if not bool(value.isfinite().all()):
                    return f"not finite: {name} {key}"
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text(encoding="utf-8")
            for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
                if name.endswith("metrics.json"):  # missing figures may be null there, never NaN
                    json.loads(line, parse_constant=lambda constant: 1 / 0)
                elif re.search(r"\bNaN\b|\bInfinity\b", line):
                    return f"not finite: {name}"
        elif path.suffix in (".png", ".mp4", ".gif", ".glb") and path.stat().st_size == 0:
            return f"empty: {name}"
    return RIGHT


def try_case(case: "bad_cases.Case", base: Path, seed: int, seconds: float) -> Verdict:
    """Prepare a folder for one command, run it there, judge it, and remove the folder."""
    place = Path(tempfile.mkdtemp(prefix="bad-"))
    folder = place / "work"
    folder.mkdir()
    stand_in(place)
    try:
        for name in case.uses:
            source = base / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            else:
                shutil.copy2(source, folder / name)
        for change in case.changes:
            change(folder, Random(f"{seed} {case.name}"))
        before = snapshot(folder)
        code, out, err, cpu = run_forked(case, folder, seconds)
        outcome = judge(case, code, out, err, before, folder)
        return Verdict(case.name, case.words, code, outcome, (out[-600:] + err)[-1500:], cpu)
    finally:
        for path, folders, _ in os.walk(place):
            for name in folders:
                if not os.path.islink(os.path.join(path, name)):
                    os.chmod(os.path.join(path, name), 0o755)
        shutil.rmtree(place, ignore_errors=True)


def prepare(base: Path) -> None:
    """Make the inputs that are missing, and import and compile what every command needs."""
    tiny_commands.make_inputs(base)
    tiny_commands.import_everything()
    tiny_commands.warm_up(base)


def run_all(base: Path, cases: "list[bad_cases.Case]", seed: int, seconds: float = 30.0) -> list[str]:
    """Run some cases on the inputs of ``prepare``; return a line for each that is wrong."""
    verdicts = [try_case(case, base, seed, seconds) for case in cases]
    return [f"{v.outcome}: {v.name}: {v.said[-300:]}" for v in verdicts if v.outcome != RIGHT]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=("drawn", "payloads", "offline"), default="drawn")
    parser.add_argument("--only", default="", help="run the cases whose names match this regular expression")
    parser.add_argument("--table", type=Path, help="write a table of all outcomes here")
    parser.add_argument("--keep", type=Path, help="make the inputs here, and use them where they are there")
    parser.add_argument("--seconds", type=float, default=30.0, help="after which a command hangs")
    parser.add_argument("--verbose", action="store_true", help="show what every wrong command said")
    options = parser.parse_args()
    base = options.keep or Path(tempfile.mkdtemp(prefix="bad-base-"))
    prepare(base)
    chosen = {"drawn": lambda: bad_cases.choose(options.count, options.seed), "payloads": bad_cases.payloads,
              "offline": bad_cases.offline}[options.kind]()  # fmt: skip
    cases = [case for case in chosen if re.search(options.only, case.name)]
    verdicts, began = [], time.monotonic()
    for number, case in enumerate(cases):
        verdict = try_case(case, base, options.seed, options.seconds)
        verdicts.append(verdict)
        if verdict.outcome != RIGHT:
            last = (verdict.said.strip().splitlines() or [""])[-1]
            print(f"{verdict.outcome:28s} {case.name}  {last[:160]!r}  {' '.join(case.words)[:200]!r}", flush=True)
            if options.verbose:
                print(verdict.said, flush=True)
        if number % 100 == 99:
            print(f"... {number + 1} of {len(cases)}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if options.table:
        rows = [
            f"{v.outcome}\t{v.code}\t{v.seconds:.1f}\t{v.name}\t{' '.join(v.words)}\t{v.said.strip()[-300:]!r}"
            for v in verdicts
        ]
        options.table.write_text("\n".join(rows) + "\n", encoding="utf-8", errors="replace")
    if options.keep is None:
        shutil.rmtree(base)
    counts = collections.Counter(v.outcome.split(":")[0] for v in verdicts)
    share = counts[RIGHT] / max(len(verdicts), 1)
    refused = sum(v.code == 2 for v in verdicts)
    print(
        f"{len(verdicts)} commands, {refused} refused, {100 * share:.2f} % right, "
        f"{time.monotonic() - began:.0f} s: {dict(counts)}"
    )
    return int(share < GOAL or counts["hang"] > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Kill, fill, lock and race the verbs that write folders, and see that nothing is lost.

    python dev/kills.py [terminate | race | full | denied | vanish | workers | cut] [--moments 10] [--verbs fit]

Commands are forks of this process, which has imported the package and made tiny inputs (see ``tiny_commands.py``).

terminate  SIGTERM at random moments of fit, train and generate; the exit code is 143, the same command goes on and ends
           with the files of a run that nobody stopped, bit for bit.
race       two processes at once on one output: one ends well, the other says in one line that the folder is in use.
full       files may not grow beyond some bytes (RLIMIT_FSIZE), and the output lies on a file system of some kilobytes,
           where this process may mount one: one line, exit code 2; what was there stays whole; with more room the same
           command then ends as one that was never stopped.
denied     the output folder becomes read-only in the middle of a run, for a process without root's rights; likewise.
vanish     the output folder is moved away while a fit and a training run: one line.
workers    a process that draws, scores or loads clips is killed: one line, no step lost, the same command ends well.
cut        a fit is killed between generated/ and its pictures: the same command writes them.
"""

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "dev"), str(ROOT / "tests"), str(ROOT / "tests" / "datasets")]

import bad_commands  # noqa: E402
import forks  # noqa: E402
import tiny_commands  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402

from fourdiffusion.files import load_tensors  # noqa: E402

VERBS = {
    "fit": tiny_commands.command("fit", "max_steps=6", "checkpoint_minutes=0", "output=out"),
    "train": tiny_commands.command("train", "max_steps=6", "checkpoint_every=2", "log_every=1", "output=out"),
    "generate": tiny_commands.command("generate", "model.num_inference_steps=6", "output=out"),
}
OTHERS = {
    "fit views": tiny_commands.command("fit views", "max_steps=6", "checkpoint_minutes=0"),
    "data synth": tiny_commands.command("data synth", "num_clips=6"),
    "data curate": tiny_commands.command("data curate"),
    "data pack": tiny_commands.command("data pack"),
    "render": tiny_commands.command("render"),
    "export": tiny_commands.command("export"),
    "export images": tiny_commands.command("export images"),
    "convert": tiny_commands.command("convert"),
}
# what may differ: the time in a log, the commit, the name of the process that held the lock
VOLATILE = (".lock", "config.yaml", "log.jsonl", "checkpoint.previous.safetensors", "render.json")


class Child:
    """One command in a fork."""

    def __init__(self, words: list[str], folder: Path, before: Callable[[], object] = lambda: None):
        self.fork = forks.command(words, folder, before)
        self.pid, self.began = self.fork.pid, self.fork.began

    def end(self, seconds: float = forks.HANG_SECONDS) -> tuple[int, str]:
        """Return the exit code and the last line that it said, or its traceback; -9 and its end where it was killed."""
        code = self.fork.wait(seconds)
        text = self.fork.said()
        if code is None:
            return -9, f"hang: {text[-3000:]}"
        if "Traceback" in text:
            return code, "TRACEBACK " + text[-1500:]
        return code, (text.strip().splitlines() or [""])[-1].split("\r")[-1][:300]


def inputs(base: Path, place: Path) -> Path:
    """Return a fresh folder with links to the inputs, and a copy of the run, which verbs write into."""
    folder = Path(tempfile.mkdtemp(dir=place)) / "work"
    folder.mkdir()
    for name in tiny_commands.INPUTS:
        if name == "run":
            shutil.copytree(base / name, folder / name)
        else:
            os.symlink(base / name, folder / name)
    return folder


def content(folder: Path) -> dict[str, str]:
    """Return {file: digest} of an output folder, volatile files left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(_bytes(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in VOLATILE
    }


def _bytes(path: Path) -> bytes:
    """Return what a file holds; of tensors, which safetensors writes with its metadata in any order, in one order."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = sorted((file.metadata() or {}).items())
        tensors = [(name, file.get_tensor(name)) for name in sorted(file.keys())]
    shown = [
        (name, value.dtype, value.shape, value.view(-1).view(torch.uint8).numpy().tobytes()) for name, value in tensors
    ]
    return repr((metadata, shown)).encode()


def steps(run: Path) -> bool:
    """Return whether a run's checkpoint holds every step that its log tells of."""
    if not (run / "log.jsonl").is_file():
        return True
    lines = (run / "log.jsonl").read_text().splitlines()
    logged = max((json.loads(line)["step"] for line in lines), default=0)
    path = run / "checkpoint.safetensors"
    return logged == (load_tensors(path)[1]["step"] if path.is_file() else 0)


def told(ok: bool, what: str, said: str = "") -> bool:
    print(f"{'ok   ' if ok else 'WRONG'} {what}  {said[:200]!r}", flush=True)
    return ok


def whole(base: Path, place: Path, words: list[str]) -> tuple[dict[str, str], float]:
    """Return the content of a run that nobody stops, and how long it takes."""
    folder, began = inputs(base, place), time.monotonic()
    code, said = Child(words, folder).end()
    if code:
        raise SystemExit(f"{words[0]}: {said}")
    return outcome(folder, words), time.monotonic() - began


def outcome(folder: Path, words: list[str]) -> dict[str, str]:
    """Return {file: digest} of what a command wrote, a folder or one file; nothing where it wrote nothing."""
    path = folder / next(word for word in words if word.startswith("output=")).partition("=")[2]
    if path.is_file():
        return {path.name: hashlib.sha256(_bytes(path)).hexdigest()}
    return content(path) if path.is_dir() else {}


def terminate(base: Path, place: Path, moments: int, rng: Random, verbs: Iterable[str] = tuple(VERBS)) -> bool:
    good = True
    for verb, words in ((verb, VERBS[verb]) for verb in verbs):
        expected, seconds = whole(base, place, words)
        for number in range(moments):
            folder, moment = inputs(base, place), rng.uniform(0.02, 1.0) * seconds
            child = Child(words, folder)
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
            code, said = child.end()
            lost = "" if code != 143 or steps(folder / "out") else ", STEPS LOST"
            again, said_again = Child(words, folder).end()
            same = content(folder / "out") == expected
            ok = code in (0, 143, -15) and again == 0 and same and "TRACEBACK" not in said + said_again and not lost
            what = f"terminate {verb} {number} after {moment:.1f} of {seconds:.1f} s: {code}, then {again}"
            good &= told(
                ok, f"{what}, {'the same' if same else 'OTHER'} files{lost}", said if ok else said + said_again
            )
    return good


def race(base: Path, place: Path, moments: int, rng: Random, verbs: Iterable[str] = (*VERBS, *OTHERS)) -> bool:
    good = True
    for verb, words in ((verb, (VERBS | OTHERS)[verb]) for verb in verbs):
        for number in range(moments):
            folder = inputs(base, place)
            first = Child(words, folder)
            time.sleep(rng.uniform(0, 0.5) if number else 0)
            second = Child(words, folder)
            results = [first.end(), second.end()]
            codes = [code for code, _ in results]
            ok = 0 in codes and all(code in (0, 2) and "TRACEBACK" not in said for code, said in results)
            ok = ok and not list(folder.rglob("*.partial"))
            loser = next((said for code, said in results if code), "both ended well")
            good &= told(ok, f"race {verb} {number}: {codes}", loser)
    return good


def full(base: Path, place: Path, moments: int, rng: Random, verbs: Iterable[str] = (*VERBS, *OTHERS)) -> bool:
    good = True
    for verb, words in ((verb, (VERBS | OTHERS)[verb]) for verb in verbs):
        expected, _ = whole(base, place, words)
        for number in range(max(moments // 3, 2)):
            limit = rng.choice((100, 1000, 5000, 20_000, 60_000, 200_000))
            folder = inputs(base, place)
            disk = number % 2 == 1 and mount(folder, limit)
            code, said = Child(words, folder, (lambda: None) if disk else partial(cap, limit)).end()
            left = [str(path) for path in folder.rglob("*.partial") if base not in path.resolve().parents]
            if disk:
                subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
            again, said_again = Child(words, folder).end() if code else (0, "")  # not every verb writes once more
            same = outcome(folder, words) == expected
            if disk:
                subprocess.run(["umount", "--lazy", folder], check=True)
            ok = code in (0, 2) and again == 0 and same and "TRACEBACK" not in said + said_again and not left
            where = f"on a disk of {limit // 1024 + 4} KiB" if disk else f"at {limit} bytes a file"
            good &= told(ok, f"full {verb} {where}: {code}, then {again}, {'the same' if same else 'OTHER'} files",
                         said if ok else f"{left} {said} {said_again}")  # fmt: skip
    return good


def cap(limit: int) -> None:
    """Let no file of this process grow beyond some bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def mount(folder: Path, limit: int) -> bool:
    """Mount a file system with room for the inputs and some bytes more over a folder; False where it is forbidden."""
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept, symlinks=True)
    room = sum(path.lstat().st_size // 4096 + 1 for path in kept.rglob("*")) * 4 + limit // 1024 + 4
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", folder], capture_output=True)
    if done.returncode == 0:
        shutil.copytree(kept, folder, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(kept)
    return done.returncode == 0


def denied(base: Path, place: Path, moments: int, rng: Random, verbs: Iterable[str] = (*VERBS, "fit views")) -> bool:
    good = True
    for verb, words in ((verb, (VERBS | OTHERS)[verb]) for verb in verbs):
        expected, seconds = whole(base, place, words)
        for number in range(max(moments // 4, 1)):
            folder = inputs(base, place)
            child = Child(words, folder, bad_commands.drop_privileges)
            while not (folder / "out").is_dir() and time.monotonic() - child.began < 60:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.5 * seconds))
            closed = [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]
            for each in closed:
                each.chmod(0o555)
            code, said = child.end()
            for each in closed:
                each.chmod(0o755)
            again, said_again = Child(words, folder).end()
            same = content(folder / "out") == expected
            ok = code in (0, 2) and again == 0 and same and "TRACEBACK" not in said + said_again
            good &= told(ok, f"denied {verb} {number}: {code}, then {again}, {'the same' if same else 'OTHER'} files",
                         said if ok else said + said_again)  # fmt: skip
    return good


def vanish(base: Path, place: Path, moments: int, rng: Random, verbs: Iterable[str] = ("fit", "train")) -> bool:
    good = True
    for verb in verbs:
        words = [w for w in VERBS[verb] if "max_steps" not in w and "log_every" not in w] + [
            "max_steps=3000",
            "log_every=1",
        ]
        for number in range(max(moments // 4, 1)):
            folder = inputs(base, place)
            child = Child(words, folder)
            limit = time.monotonic() + 300
            while not (folder / "out" / "log.jsonl").exists() and time.monotonic() < limit:
                time.sleep(0.02)
            os.rename(folder / "out", folder / "elsewhere")  # at once: what is deleted file by file may be made again
            code, said = child.end(120)
            good &= told(code == 2 and "TRACEBACK" not in said, f"vanish {verb} {number}: {code}", said)
    return good


def children(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


WORKING = ("data synth", "data curate", "train")


def workers(base: Path, place: Path, moments: int, rng: Random, verbs: Iterable[str] = WORKING) -> bool:
    good = True
    tries = {
        "data synth": (tiny_commands.command("data synth", "num_clips=16", "num_workers=2"), "out/synthetic-*"),
        "data curate": (tiny_commands.command("data curate", "clips=many", "num_workers=2"), "out/thumbnails/*"),
        "train": ([*VERBS["train"], "num_workers=2"], "out/log.jsonl"),
    }
    for verb, (words, sign) in ((verb, tries[verb]) for verb in verbs):
        folder = inputs(base, place)
        for number in range(16 if verb == "data curate" else 0):
            shutil.copytree(base / "clips" / "clip-0", folder / "many" / f"clip-{number}")
        child = Child([w.replace("max_steps=6", "max_steps=4000") for w in words], folder)
        limit, killed = time.monotonic() + 120, None
        while killed is None and time.monotonic() < limit:
            time.sleep(0.02)
            found = [each for each in children(child.pid) if _is_worker(each)]
            if len(found) > 1 and any(folder.glob(sign)):
                killed = found[-1]
                os.kill(killed, signal.SIGKILL)
        code, said = child.end(120)
        saved = steps(folder / "out")
        good &= told(code == 2 and saved and "TRACEBACK" not in said,
                     f"killed worker of {verb}: {code}{'' if saved else ', STEPS LOST'}", said)  # fmt: skip
        if verb == "train":
            step = load_tensors(folder / "out" / "checkpoint.safetensors")[1]["step"]
            words = [word.replace("max_steps=6", f"max_steps={step + 2}") for word in words]
        words = [word for word in words if word != "num_workers=2"]  # the number of processes changes no file
        expected, _ = whole(base, place, words) if verb != "data curate" else ({}, 0)
        again, said = Child(words, folder).end(300)
        same = verb == "data curate" or content(folder / "out") == expected
        good &= told(again == 0 and same, f"killed worker of {verb}, again: {again}, {same}", said)
    return good


def _is_worker(process: int) -> bool:
    try:
        return b"resource_tracker" not in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def cut(base: Path, place: Path, moments: int, rng: Random, verbs: Iterable[str] = ("fit",)) -> bool:
    expected, _ = whole(base, place, VERBS["fit"])
    good = True
    for number in range(max(moments // 4, 1)):
        folder = inputs(base, place)
        child = Child(VERBS["fit"], folder)
        limit = time.monotonic() + 300
        while not (folder / "out" / "generated").is_dir() and time.monotonic() < limit:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child.pid, signal.SIGKILL)
        child.end()
        missing = not (folder / "out" / "generated" / "contact_sheet.png").exists()
        code, said = Child(VERBS["fit"], folder).end()
        same = content(folder / "out") == expected
        good &= told(
            code == 0 and same, f"cut {number}: {'without' if missing else 'with'} pictures, then {code}, {same}", said
        )
    return good


TRIES: dict[str, Callable[..., bool]] = {
    "terminate": terminate, "race": race, "full": full, "denied": denied, "vanish": vanish, "workers": workers,
    "cut": cut,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tries", nargs="*", choices=[[], *TRIES], default=[])
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="make the inputs here, and use them where they are there")
    parser.add_argument("--verbs", help="these alone, with commas between them")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="kills-"))
    base = (options.keep or place / "base").resolve()
    tiny_commands.make_inputs(base)
    tiny_commands.import_everything()
    tiny_commands.warm_up(base)
    chosen = {"verbs": options.verbs.split(",")} if options.verbs else {}
    results = [
        TRIES[name](base, place, options.moments, Random(options.seed), **chosen) for name in options.tries or TRIES
    ]
    shutil.rmtree(place)
    return not all(results)


if __name__ == "__main__":
    sys.exit(main())

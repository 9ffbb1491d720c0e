"""Kills a fit again and again at random moments, goes on each time, and compares the scene with an uninterrupted one.

    python scripts/benchmarks/kill_fit.py --kills 10 [KEY=VALUE of `fourdiffusion fit` ...]

Two fits of the sample with the same settings, one left alone, one killed (SIGKILL) `--kills` times: anywhere between
starting and ending, saving and sampling included. Ends with code 1 unless both scenes are equal to the last bit.
"""

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

import report
import torch
from held_out import SAMPLE
from safetensors.torch import load_file

from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors
from fourdiffusion.runs import git_commit


def main() -> None:
    """Fits twice and compares."""
    options = _options()
    words = [*SAMPLE, f"checkpoint_minutes={options.checkpoint_seconds / 60:.4f}", "trackers=[]", *options.words]
    whole, broken = options.run / "whole", options.run / "broken"
    if options.run.exists():
        raise UserError(f"{options.run} holds an earlier trial: delete it")
    began = time.monotonic()
    process = _start(whole, words)
    if process.wait():
        raise UserError(f"the fit in {whole} ended with code {process.returncode}, see above")
    length = time.monotonic() - began
    chance, kills = random.Random(options.seed), 0
    while True:
        process = _start(broken, words)
        try:
            process.wait(timeout=chance.uniform(0, 2 * length / options.kills) if kills < options.kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            print(f"kill {kills}: {_progress(broken)}", flush=True)
            continue
        if process.returncode:
            raise UserError(f"the fit in {broken} ended with code {process.returncode} after {kills} kills, see above")
        break
    tensors = [_scene(run) for run in (whole, broken)]
    same = tensors[0].keys() == tensors[1].keys() and all(
        torch.equal(value, tensors[1][name]) for name, value in tensors[0].items()
    )
    verdict = "equal to the last bit" if same else "DIFFERENT"
    print(f"{kills} kills, {length:.0f} s without: the scenes are {verdict}; commit {git_commit()}; {report.machine()}")
    sys.exit(not same or kills < options.kills)


def _start(run: Path, words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fourdiffusion", "fit", *words, f"output={run}"], stderr=subprocess.DEVNULL
    )


def _progress(run: Path) -> str:
    """What a killed fit left behind."""
    if not (run / "generated").is_dir():
        return "before the generated videos were there"
    path = run / "checkpoint.safetensors"
    if not path.is_file():
        return "before the first checkpoint"
    _, metadata = load_tensors(path)
    return f"with a checkpoint of step {metadata['step']}"


def _scene(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "scene").rglob("*.safetensors"))
    return {f"{path.name}: {name}": value for path in files for name, value in load_file(path).items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="KEY=VALUE of fourdiffusion fit")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--checkpoint-seconds", type=float, default=5.0)
    parser.add_argument("--run", type=Path, default=Path("runs/kill_fit"))
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    report.run(main)

"""Kill a training run again and again at random moments, resume it each time, and compare it with an uninterrupted one.

    python scripts/benchmarks/kill_train.py --kills 10 --stops 3 [KEY=VALUE of `fourdiffusion train` ...]

Motion stage of the shipped model on four synthetic clips. SIGKILL comes anywhere between starting and ending, saving
and validating included; SIGTERM, as a cluster sends it, at any moment after the first step of an attempt, which must
end with code 143. After each signal every checkpoint file must be whole. Before the last attempt the newest one is cut
short: the run must name it and go on from the one before. Ends with code 1 unless weights, optimizer and moving average
of both runs are equal to the last bit. Runs are forks of this process, which has imported what they need.
"""

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

import report
from overfit import WORDS
from safetensors.torch import load_file

from fourdiffusion import cli
from fourdiffusion.cli.config import shipped
from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors
from fourdiffusion.runs import CHECKPOINT, PREVIOUS, git_commit
from fourdiffusion.train import loop

OWN = [
    "data.num_views=1",
    "batch_size=2",
    "checkpoint_every=1",
    "validation_every=7",
    "validation_clips=1",
    "log_every=1",
]
OWN += ["validation_num_inference_steps=1", "checkpoint_minutes=0"]


def main() -> None:
    """Train twice and compare."""
    options = _options()
    if options.run.exists():
        raise UserError(f"{options.run} holds an earlier trial: delete it")
    clips, whole, broken = (options.run / name for name in ("clips", "whole", "broken"))
    words = ["num_clips=4", "num_views=2", "num_frames=8", "size=32", "rig=orbit", f"output={clips}"]
    if cli.main(["data", "synth", *words]):
        raise UserError("the clips could not be made, see above")
    words = ["train", *WORDS, *OWN, f"data.path={clips}", f"model.path={shipped('data/models/tiny')}"]
    words += [f"max_steps={options.steps}", *options.words]
    began = time.monotonic()
    if code := _wait(_start([*words, f"output={whole}"], options.run / "whole.log")):
        raise UserError(f"the run in {whole} ended with code {code}, see {options.run / 'whole.log'}")
    length, chance = time.monotonic() - began, random.Random(options.seed)
    signals = [signal.SIGKILL] * options.kills + [signal.SIGTERM] * options.stops
    chance.shuffle(signals)
    for number in signals:
        process = _start([*words, f"output={broken}"], options.run / "broken.log")
        longest = 2 * length / len(signals)
        if number == signal.SIGTERM:
            _wait_for_step(broken, process)
            longest = length / len(signals) / 2
        time.sleep(chance.uniform(0, longest))
        os.kill(process, number)
        code = _wait(process)
        print(f"{number.name}, code {code}: {_progress(broken)}", flush=True)
        if code != (128 + number if number == signal.SIGTERM else -number):
            raise UserError(f"{number.name} ended the run with code {code}; if the run was over: give more --steps")
    _cut(broken / CHECKPOINT)
    if code := _wait(_start([*words, f"output={broken}"], options.run / "broken.log")):
        raise UserError(f"the run in {broken} ended with code {code}, see {options.run / 'broken.log'}")
    if "is damaged: resuming from the previous one" not in (options.run / "broken.log").read_text(encoding="utf-8"):
        raise UserError(f"{options.run / 'broken.log'} does not say that the last checkpoint was damaged")
    states = [load_file(run / "model/motion/diffusion_pytorch_model.safetensors") for run in (whole, broken)]
    checkpoints = [load_tensors(run / CHECKPOINT)[0] for run in (whole, broken)]
    same = all(a.keys() == b.keys() and all(a[n].equal(b[n]) for n in a) for a, b in (states, checkpoints))
    verdict = "equal to the last bit" if same else "DIFFERENT"
    print(
        f"{len(signals)} signals, {length:.0f} s without: weights and checkpoints are {verdict}; commit {git_commit()}"
    )
    sys.exit(not same)


def _start(words: list[str], log: Path) -> int:
    """Run a command line in a fork; its number."""
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = 3
        try:
            code = cli.main(words)
        finally:
            os._exit(code)
    return process


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _wait_for_step(run: Path, process: int) -> None:
    """Return once the process has saved a step."""
    before = _written(run / CHECKPOINT)
    while _written(run / CHECKPOINT) in (0, before):
        if os.waitpid(process, os.WNOHANG)[0]:
            raise UserError(f"{run} ended before it was stopped: give more --steps")
        time.sleep(0.005)


def _written(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _cut(path: Path) -> None:
    """Take the second half of a file away."""
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _progress(run: Path) -> str:
    """What a stopped run left behind. UserError where a checkpoint is not whole."""
    steps = [load_tensors(path)[1]["step"] for path in (run / CHECKPOINT, run / PREVIOUS) if path.is_file()]
    return f"whole checkpoints of steps {steps}" if steps else "before the first checkpoint"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="KEY=VALUE of fourdiffusion train; they win")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--stops", type=int, default=3, help="by SIGTERM")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--run", type=Path, default=Path("runs/kill_train"))
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    assert loop.train is not None  # imported, so that the forks need not
    report.run(main)

"""Two processes that are told to stop together, as SLURM does it: one checkpoint, code 143, one curve."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import start_ranks
from test_train import base, clips, command, log_of, settings  # noqa: F401

from fourdiffusion.files import load_tensors
from fourdiffusion.runs import CHECKPOINT, PREVIOUS, Interruption
from fourdiffusion.train.loop import stop_together, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STEPS = 4000


def count_lines(path: Path) -> int:
    """Return how many lines of a file are whole; none where there is no file."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def stop(arguments: list[str], run: Path, told: tuple[int, ...]) -> int:
    """Start two processes, send SIGTERM to some once they have logged a step. Return the step that both ended at."""
    before = count_lines(run / "log.jsonl")
    ranks = start_ranks(2, arguments, run.parent)
    try:
        while count_lines(run / "log.jsonl") <= before:
            assert all(rank.poll() is None for rank in ranks), ranks[0].said()
            time.sleep(0.01)
        for number in told:
            ranks[number].send_signal(signal.SIGTERM)
        found = [rank.wait() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert found == [143, 143], "\n".join(rank.said() for rank in ranks)
    step = load_tensors(run / CHECKPOINT)[1]["step"]
    assert before < step < STEPS and log_of(run)[-1]["step"] == step
    return step


def test_sigterm_ends_both_processes_at_one_step(base: Path, clips: Path, tmp_path: Path) -> None:  # noqa: F811
    """A signal to both, then one to the second alone: each time one checkpoint; the curve is the uninterrupted one."""
    run = tmp_path / "run"
    words = ["batch_size=2", f"max_steps={STEPS}"]
    arguments = [word for word in command(base, clips, run, *words) if not word.startswith("checkpoint_every")]
    first = stop(arguments, run, (0, 1))
    assert sorted(path.name for path in run.glob("*.safetensors")) == [CHECKPOINT]
    last = stop(arguments, run, (1,))
    assert sorted(path.name for path in run.glob("*.safetensors")) == [PREVIOUS, CHECKPOINT]
    assert load_tensors(run / PREVIOUS)[1]["step"] == first

    train(settings("motion", base, clips, tmp_path / "whole", batch_size=2, max_steps=last, learning_rate=1e-4))
    lines = log_of(run)
    assert [line["step"] for line in lines] == list(range(1, last + 1))
    for line, other in zip(lines, log_of(tmp_path / "whole"), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5), line["step"]
    tensors, whole = (load_tensors(folder / CHECKPOINT)[0] for folder in (run, tmp_path / "whole"))
    for name, value in whole.items():
        torch.testing.assert_close(tensors[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_a_signal_that_comes_while_the_others_are_asked_counts_at_the_next_step() -> None:
    interruption = Interruption()

    def gather(number: torch.Tensor) -> torch.Tensor:
        interruption.signal_number = signal.SIGTERM  # arrives while this process waits; the other has none
        return torch.cat([number, torch.zeros(1)])

    accelerator: Any = SimpleNamespace(num_processes=2, device=torch.device("cpu"), gather=gather)
    assert [stop_together(accelerator, interruption) for _ in range(2)] == [False, True]

"""A few of the kills of dev/kills.py: signals, races, full disks and killed workers lose nothing."""

import sys
from pathlib import Path
from random import Random

import kills
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")]


def test_sigterm_at_a_random_moment_loses_no_step(base: Path, tmp_path: Path) -> None:
    assert kills.terminate(base, tmp_path, 1, Random(3), ["train"])


def test_a_kill_between_the_generated_clip_and_its_pictures(base: Path, tmp_path: Path) -> None:
    assert kills.cut(base, tmp_path, 1, Random(3))


def test_of_two_processes_one_is_told(base: Path, tmp_path: Path) -> None:
    assert kills.race(base, tmp_path, 1, Random(3), ["data synth", "generate"])


def test_a_full_disk(base: Path, tmp_path: Path) -> None:
    assert kills.full(base, tmp_path, 2, Random(3), ["export", "data synth"])


def test_a_folder_that_becomes_read_only(base: Path, tmp_path: Path) -> None:
    assert kills.denied(base, tmp_path, 1, Random(3), ["train"])


@pytest.mark.parametrize("verb", kills.WORKING)
def test_a_killed_worker(base: Path, tmp_path: Path, verb: str) -> None:
    assert kills.workers(base, tmp_path, 1, Random(3), [verb])

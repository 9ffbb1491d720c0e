"""Curves for TensorBoard and wandb: what is sent where, and what is said when it cannot be."""

import importlib.util
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fourdiffusion.errors import UserError
from fourdiffusion.tracking import check_trackers, trackers


def test_a_resumed_run_replaces_what_it_makes_again(tmp_path: Path) -> None:
    for start, values in ((0, [1.0, 2.0, 3.0]), (1, [5.0, 6.0])):
        with trackers(["tensorboard"], tmp_path, start, {}) as track:
            for step, value in enumerate(values, start=start + 1):
                track({"loss": value}, step)
    curve = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in curve] == [(1, 1.0), (2, 5.0), (3, 6.0)]


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    with trackers([], tmp_path, 0, {}) as track:
        track({"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_a_run_folder_is_one_run_on_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = []
    for start in (0, 1):
        with trackers(["wandb"], tmp_path, start, {"steps": 2}) as track:
            track({"loss": 1.0}, start + 1)
        names.append((tmp_path / "wandb.txt").read_text())
    assert names[0] == names[1]
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert runs and all(name.endswith(names[0]) for name in runs)


def test_what_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="abacus is not one of tensorboard, wandb"):
        check_trackers(["abacus"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed: pip install wandb, or rely on log.jsonl"):
        check_trackers(["wandb"])

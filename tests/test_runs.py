"""Run folders: whole files or none, settings that may not change, random streams."""

import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from fourdiffusion import files
from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors, save_tensors, write_atomic
from fourdiffusion.randomness import stream
from fourdiffusion.runs import (
    append_log,
    open_run,
    optimizer_tensors,
    patient_interrupt,
    restore_optimizer,
    trim_log,
)


@dataclass
class Part:
    rate: float = 1e-5
    sizes: list[int] = field(default_factory=lambda: [1, 2])


@dataclass
class Settings:
    steps: int = 10
    name: str | None = None
    part: Part = field(default_factory=Part)


# ---- tensors --------------------------------------------------------------------------------------------------------


def test_tensors_round_trip(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4, requires_grad=True),
        "b": torch.arange(5),
        "half": torch.randn(2, 3).to(torch.bfloat16).t(),
        "scalar": torch.tensor(2.5),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    metadata = {"step": 7, "names": ["x", "y"], "nothing": None}
    path = tmp_path / "deep" / "er" / "file.safetensors"
    save_tensors(path, tensors, metadata)
    loaded, found = load_tensors(path)
    assert found == metadata and loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype


@pytest.mark.parametrize("broken", ["write", "sync"])
def test_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "file.safetensors"
    save_tensors(path, {"a": torch.zeros(4)}, {"step": 1})

    def fail(*arguments: object, **_: object) -> None:
        if broken == "write":
            Path(str(arguments[1])).write_bytes(b"half of i")
        raise OSError(28, "No space left on device")

    where, name = (files, "save_file") if broken == "write" else (os, "fsync")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail)
        with pytest.raises(OSError):
            save_tensors(path, {"a": torch.ones(4)}, {"step": 2})
    loaded, metadata = load_tensors(path)
    assert metadata == {"step": 1} and not loaded["a"].any()
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_whole_before_it_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == path.parent

    write_atomic(path, write)
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "foreign"])
def test_damaged_tensors_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "file.safetensors"
    save_tensors(path, {"a": torch.randn(100)}, {"step": 1})
    content = path.read_bytes()
    path.write_bytes({"cut": content[:200], "text": b"hello, I am no tensor", "empty": b""}.get(damage, content))
    if damage == "foreign":
        save_file({"a": torch.randn(2)}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="file.safetensors is damaged or not ours"):
        load_tensors(path)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file .*none.safetensors"):
        load_tensors(tmp_path / "none.safetensors")


def test_optimizer_round_trip(tmp_path: Path) -> None:
    """An optimizer put back makes the same next step, to the last bit; rates stay the new one's."""

    def make(rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        model[0].requires_grad_(False)
        groups = [{"params": [model[2].weight], "lr": rate}, {"params": [model[2].bias], "lr": 10 * rate}]
        return model, torch.optim.AdamW(groups)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 2, 4, 4, generator=stream(0, 0, number))).square().sum().backward()
        optimizer.step()

    model, optimizer = make(0.01)
    assert optimizer_tensors(optimizer) == {}
    step(model, optimizer, 0)
    tensors = {f"weights.{k}": v for k, v in model.state_dict().items()} | optimizer_tensors(optimizer)
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    save_tensors(tmp_path / "file", tensors, {})
    step(model, optimizer, 1)

    other, restored = make(0.01)
    loaded = load_tensors(tmp_path / "file")[0]
    other.load_state_dict({k.removeprefix("weights."): v for k, v in loaded.items() if k.startswith("weights.")})
    restore_optimizer(restored, loaded)
    step(other, restored, 1)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    _, slower = make(0.001)
    restore_optimizer(slower, loaded)
    assert [group["lr"] for group in slower.param_groups] == [0.001, 0.01]


# ---- run folders ----------------------------------------------------------------------------------------------------


def test_open_run_notes_settings_and_commit(tmp_path: Path) -> None:
    open_run(tmp_path / "new" / "run", Settings(), free=set())
    content = yaml.safe_load((tmp_path / "new/run/config.yaml").read_text())
    assert content["settings"] == {"steps": 10, "name": None, "part": {"rate": 1e-5, "sizes": [1, 2]}}
    assert content["commit"] == "unknown" or len(content["commit"].rstrip("+")) == 12
    open_run(tmp_path / "new" / "run", Settings(), free=set())  # the same again


@pytest.mark.parametrize(
    "settings, message",
    [
        (Settings(name="b"), "holds a run with name=None, this one has name=b: choose another output, or delete"),
        (Settings(part=Part(rate=2e-5)), "with part.rate=1e-05, this one has part.rate=2e-05"),
        (Settings(part=Part(sizes=[1, 3])), r"with part.sizes=\[1, 2\], this one has part.sizes=\[1, 3\]"),
    ],
)
def test_open_run_refuses_other_settings(tmp_path: Path, settings: Settings, message: str) -> None:
    open_run(tmp_path, Settings(), free={"steps"})
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match=message):
        open_run(tmp_path, settings, free={"steps"})
    assert (tmp_path / "config.yaml").read_text() == before


def test_free_settings_may_change(tmp_path: Path) -> None:
    open_run(tmp_path, Settings(), free={"steps", "part"})
    open_run(tmp_path, Settings(steps=20, part=Part(rate=1.0)), free={"steps", "part"})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["settings"]["steps"] == 20


def test_one_setting_of_a_group_may_be_free_and_facts_are_noted_but_bind_nothing(tmp_path: Path) -> None:
    open_run(tmp_path, Settings(), {"part.rate"}, {"backend": "a"})
    open_run(tmp_path, Settings(part=Part(rate=1.0)), {"part.rate"}, {"backend": "b"})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["backend"] == "b"
    with pytest.raises(UserError, match="part.sizes"):
        open_run(tmp_path, Settings(part=Part(sizes=[3])), {"part.rate", "part.size"})


def test_open_run_refuses_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="is not empty and holds no run of ours"):
        open_run(tmp_path, Settings(), free=set())
    with pytest.raises(UserError, match="photo.png cannot be made"):
        open_run(tmp_path / "photo.png", Settings(), free=set())
    with pytest.raises(UserError, match="cannot be made"):
        open_run(tmp_path / "photo.png" / "run", Settings(), free=set())
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize("content", ["", "a: [", "- 1\n- 2\n", "defaults: x\n", "settings: 3\n", "\x00"])
def test_open_run_refuses_a_foreign_or_damaged_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match="config.yaml is damaged or not ours"):
        open_run(tmp_path, Settings(), free=set())
    assert (tmp_path / "config.yaml").read_text() == content


def test_open_run_after_a_start_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml.partial").write_text("commit: 12")
    open_run(tmp_path, Settings(), free=set())
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_log(tmp_path: Path) -> None:
    trim_log(tmp_path, 3)  # there is none yet
    for step in (2, 4, 6):
        append_log(tmp_path, {"step": step, "loss": 1 / step})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 0.1')  # killed while it wrote
    trim_log(tmp_path, 4)
    append_log(tmp_path, {"step": 6, "loss": 0.0})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6] and lines[-1]["loss"] == 0.0


# ---- random streams -------------------------------------------------------------------------------------------------


def first(seed: int, rank: int, step: int) -> tuple[float, ...]:
    return tuple(torch.rand(3, generator=stream(seed, rank, step)).tolist())


def test_streams_differ() -> None:
    """Over seeds (those that training derives stand side by side), ranks and steps."""
    keys = [(seed, rank, step) for seed in (0, 1, 2, 9) for rank in range(4) for step in (*range(60), 29_999, 10**6)]
    assert len({first(*key) for key in keys}) == len(keys)
    assert first(3, 1, 2) == first(3, 1, 2)


@pytest.mark.parametrize("seed", [-1, 2**31, 2**62, 10**18])
def test_any_seed_will_do(seed: int) -> None:
    assert first(seed, 0, 0) != first(seed, 0, 1) != first(seed, 1, 1)
    assert first(seed, 0, 0) != first(seed + 1, 0, 0)


def test_streams_do_not_fold() -> None:
    """torch's CPU generator reads 32 bits of its seed: the keys of long runs must differ in these."""
    keys = [(seed, rank, step) for seed in range(4) for rank in (0, 1, 63) for step in range(0, 30_000, 7)]
    assert len({stream(*key).initial_seed() % 2**32 for key in keys}) == len(keys)


def test_ctrl_c_waits_for_the_end_of_a_step_and_a_second_one_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with patient_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_folder_can_be_moved(tmp_path: Path) -> None:
    @dataclass
    class Placed:
        output: str = "runs"

    open_run(tmp_path, Placed("here"), free=set())
    open_run(tmp_path, Placed("there"), free=set())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["settings"] == {"output": "there"}


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """It knew fewer settings: those must have their defaults."""

    @dataclass
    class Older:
        steps: int = 10

    open_run(tmp_path, Older(), free=set())
    with pytest.raises(UserError, match="with name=None, this one has name=b"):
        open_run(tmp_path, Settings(name="b"), free=set())

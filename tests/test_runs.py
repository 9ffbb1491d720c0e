"""Run folders: whole files or none, settings that may not change, random streams."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from fourdiffusion import files
from fourdiffusion.errors import Terminated, UserError
from fourdiffusion.files import fill_folder, first_non_finite, load_tensors, save_tensors, write_atomic
from fourdiffusion.randomness import stream
from fourdiffusion.runs import (
    append_log,
    deferred_signals,
    folder_digest,
    git_commit,
    load_checkpoint,
    lock_folder,
    open_run,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    tensor_digest,
    terminable,
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


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    save_tensors(tmp_path / "file.safetensors", {"a": torch.zeros(4)}, {})
    fill_folder(tmp_path / "folder", lambda partial: save_file({"a": torch.zeros(4)}, partial / "file.safetensors"))
    for path in (tmp_path / "file.safetensors", tmp_path / "folder" / "file.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~files.UMASK


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Files of killed processes are removed, those of running ones are not; a full folder is replaced if requested."""
    dead, living = tmp_path / f"folder.{2**22 + 1}.partial", tmp_path / f"folder.{os.getppid()}.partial"
    dead.mkdir()
    (dead / "half").touch()
    living.mkdir()

    def broken(partial: Path) -> None:
        (partial / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_folder(tmp_path / "folder", broken)
    assert list(tmp_path.iterdir()) == [living]
    fill_folder(tmp_path / "folder", lambda partial: (partial / "one").touch())
    with pytest.raises(OSError):
        fill_folder(tmp_path / "folder", lambda partial: (partial / "two").touch())
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["one"]
    fill_folder(tmp_path / "folder", lambda partial: (partial / "two").touch(), replace=True)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["two"]


def test_a_lock_takes_back_the_folders_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reason"), lock_folder(tmp_path / "a" / "b" / "c"):
        raise UserError("reason")
    with lock_folder(tmp_path / "a" / "b", keep="synth.json"):
        (tmp_path / "a" / "b" / "synth.json").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "a", "b", "synth.json"]


def test_the_file_is_whole_before_it_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.name == f"file.{os.getpid()}.partial"

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
    with pytest.raises(UserError, match="file.safetensors is damaged or in another format"):
        load_tensors(path)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.safetensors: missing"):
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


def test_restored_moments_take_the_layout_of_their_weights() -> None:
    """A fused AdamW goes on as if it had not stopped, also where the weights have become channels-last meanwhile."""
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = (torch.randn(8, 4, 3, 3, generator=generator) for _ in range(4))

    def run(parameter: torch.nn.Parameter, tensors: dict[str, Tensor], those: list[Tensor]) -> dict[str, Tensor]:
        optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
        restore_optimizer(optimizer, tensors)
        for gradient in those:
            parameter.grad = gradient.to(memory_format=torch.channels_last)
            optimizer.step()
        return optimizer_tensors(optimizer)

    whole, part = (torch.nn.Parameter(weight.to(memory_format=torch.channels_last)) for _ in range(2))
    run(whole, {}, gradients)
    saved = {name: value.contiguous() for name, value in run(part, {}, gradients[:2]).items()}
    run(part, saved, gradients[2:])
    assert torch.equal(part, whole)


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
        (Settings(name="b"), "holds a run with name=None, this one has name=b: choose another output$"),
        (Settings(part=Part(rate=2e-5)), "with part.rate=1e-05, this one has part.rate=2e-05"),
        (Settings(part=Part(sizes=[1, 3])), r"with part.sizes=\[1, 2\], this one has part.sizes=\[1, 3\]"),
    ],
)
def test_open_run_refuses_other_settings(tmp_path: Path, settings: Settings, message: str) -> None:
    open_run(tmp_path, Settings(), free={"steps"})
    with_result(tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match=message):
        open_run(tmp_path, settings, free={"steps"})
    assert (tmp_path / "config.yaml").read_text() == before


def test_free_settings_may_change(tmp_path: Path) -> None:
    open_run(tmp_path, Settings(), free={"steps", "part"})
    with_result(tmp_path)
    open_run(tmp_path, Settings(steps=20, part=Part(rate=1.0)), free={"steps", "part"})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["settings"]["steps"] == 20


def test_one_setting_of_a_group_may_be_free_and_facts_are_noted_but_bind_nothing(tmp_path: Path) -> None:
    open_run(tmp_path, Settings(), {"part.rate"}, {"backend": "a"})
    with_result(tmp_path)
    open_run(tmp_path, Settings(part=Part(rate=1.0)), {"part.rate"}, {"backend": "b"})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["backend"] == "b"
    with pytest.raises(UserError, match="part.sizes"):
        open_run(tmp_path, Settings(part=Part(sizes=[3])), {"part.rate", "part.size"})


def test_open_run_refuses_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        open_run(tmp_path, Settings(), free=set())
    with pytest.raises(UserError, match="photo.png cannot be made"):
        open_run(tmp_path / "photo.png", Settings(), free=set())
    with pytest.raises(UserError, match="cannot be made"):
        open_run(tmp_path / "photo.png" / "run", Settings(), free=set())
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    "content", ["", "settings: {1: 2}\n- 3", "a: [", "- 1\n- 2\n", "defaults: x\n", "settings: 3\n", "\x00"]
)
def test_open_run_refuses_a_foreign_or_damaged_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match="config.yaml.*(damaged|cannot be read as YAML).*choose another output"):
        open_run(tmp_path, Settings(), free=set())
    assert (tmp_path / "config.yaml").read_text() == content


def with_result(folder: Path) -> None:
    (folder / "log.jsonl").touch()


def test_a_run_without_a_result_binds_nothing(tmp_path: Path) -> None:
    open_run(tmp_path, Settings(), set(), content={"name": "aa"})
    open_run(tmp_path, Settings(steps=3), set(), content={"name": "bb"})
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert content["settings"]["steps"] == 3 and content["content"] == {"name": "bb"}


def test_a_run_is_what_a_path_holds_not_its_spelling(tmp_path: Path) -> None:
    open_run(tmp_path, Settings(name="a/video"), set(), content={"name": "1234567890abcdef"})
    with_result(tmp_path)
    open_run(tmp_path, Settings(name="video"), set(), content={"name": "1234567890abcdef"})
    with pytest.raises(UserError, match="with another name .its content is 1234567890ab, that of this one fedc"):
        open_run(tmp_path, Settings(name="video"), set(), content={"name": "fedc"})


def test_a_run_that_has_no_digest_is_known_by_its_paths(tmp_path: Path) -> None:
    open_run(tmp_path, Settings(name="video"), set())
    with_result(tmp_path)
    with pytest.raises(UserError, match="name=video, this one has name=other"):
        open_run(tmp_path, Settings(name="other"), set(), content={"name": "aa"})
    open_run(tmp_path, Settings(name="video"), set(), content={"name": "aa"})


def test_a_fixed_fact_is_refused_with_its_name(tmp_path: Path) -> None:
    open_run(tmp_path, Settings(), set(), fixed={"perceptual": "a"})
    with_result(tmp_path)
    with pytest.raises(UserError, match="holds a run with perceptual=a, this one has perceptual=b"):
        open_run(tmp_path, Settings(), set(), fixed={"perceptual": "b"})


def test_digests_tell_contents_apart_and_not_places(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.uint8)
    assert tensor_digest(values) == tensor_digest(values.clone())
    assert len({tensor_digest(each) for each in (values, values.view(2, 3), values.flip(0), values.int())}) == 4
    for name in ("a", "b"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "weights").write_bytes(b"1")
        (tmp_path / name / "notes.md").write_text(name)
    before = folder_digest(tmp_path / "a")
    assert before == folder_digest(tmp_path / "b")
    (tmp_path / "a" / "unet" / "weights").write_bytes(b"2")
    assert folder_digest(tmp_path / "a") != before


def test_the_commit_is_that_of_this_project_alone(tmp_path: Path) -> None:
    """Installed inside a repository of the user's, the package knows no commit."""
    package = Path(__file__).resolve().parents[1] / "fourdiffusion"
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "lib").mkdir()
    code = f"import pathlib; from fourdiffusion import runs; runs.__file__ = {str(tmp_path / 'lib/x/runs.py')!r}; "
    code += "pathlib.Path(runs.__file__).parent.mkdir(); print(runs.git_commit())"
    done = subprocess.run([sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True)
    assert done.stdout == "unknown\n", done.stderr
    assert len(git_commit().rstrip("+")) in (7, 12)  # "unknown" in a wheel


def test_open_run_after_a_start_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml.123.partial").write_text("commit: 12")
    with lock_folder(tmp_path):
        open_run(tmp_path, Settings(), free=set())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.yaml"]


# ---- lock and signals -----------------------------------------------------------------------------------------------


def test_one_process_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    """The second run gets a one-line error; the lock of a killed process does not block."""
    code = "import sys, time; from pathlib import Path; from fourdiffusion.runs import lock_folder\n"
    code += "with lock_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"run is in use by another process .pid {holder.pid}."),
            lock_folder(folder),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()  # type: ignore[union-attr]
    with lock_folder(folder):
        (folder / "config.yaml").touch()
    assert folder.is_dir()


def test_a_lock_leaves_nothing_where_no_run_came_about(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "new", tmp_path / "mine"):
        with pytest.raises(UserError, match="reason"), lock_folder(folder):
            raise UserError("reason")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and not any((tmp_path / "mine").iterdir())
    (tmp_path / "mine" / ".lock").touch()  # of a run whose settings are lost
    with pytest.raises(UserError, match="reason"), lock_folder(tmp_path / "mine"):
        raise UserError("reason")
    assert (tmp_path / "mine" / ".lock").exists()
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "run", Path("a\0b")):
        with pytest.raises(UserError, match="cannot be made"), lock_folder(output):
            pass


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_waits_for_the_end_of_a_step_and_a_second_one_does_not(
    name: str, request: pytest.FixtureRequest
) -> None:
    number = getattr(signal, name)
    error = KeyboardInterrupt if name == "SIGINT" else Terminated
    found = signal.signal(number, signal.SIG_DFL)  # a job in the background ignores SIGINT, one under nohup SIGHUP
    request.addfinalizer(lambda: signal.signal(number, found))
    before = signal.getsignal(number)
    with deferred_signals() as interrupted:
        assert not interrupted()
        interrupted.leave()
        signal.raise_signal(number)
        assert interrupted()
        with pytest.raises(error) as left:
            interrupted.leave()
        with pytest.raises(error):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
    if name != "SIGINT":
        assert isinstance(left.value, SystemExit) and left.value.code == 128 + number and name in str(left.value)
        with terminable(), pytest.raises(Terminated):
            signal.raise_signal(number)


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable(), deferred_signals() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- checkpoints ----------------------------------------------------------------------------------------------------

STATE = {"scene.a": torch.arange(3.0), "optimizer.0.step": torch.ones(())}
STATE |= {f"optimizer.0.{name}": torch.ones(2) for name in ("exp_avg", "exp_avg_sq")}


def told(folder: Path, verb: str = "fit") -> tuple[int | None, list[str]]:
    lines: list[str] = []
    found = load_checkpoint(folder, verb, STATE, lines.append)
    return found and found[1], lines


def test_the_newest_whole_checkpoint_is_loaded(tmp_path: Path) -> None:
    assert told(tmp_path) == (None, [])
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, "fit", STATE, step)
    assert told(tmp_path) == (6, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.previous.safetensors",
        "checkpoint.safetensors",
    ]
    (tmp_path / "checkpoint.safetensors").unlink()  # killed between the two renames
    assert told(tmp_path) == (4, [])


@pytest.mark.parametrize(
    ("change", "step", "verb", "words"),
    [
        ({}, 6, "train", "is a checkpoint of train, not of fit"),
        ({}, -1, "fit", "has no step that counts .step=-1"),
        ({}, "6", "fit", "has no step that counts"),
        ({}, 10**30, "fit", "has no step that counts"),
        ({"scene.a": None}, 6, "fit", "lacks the tensor scene.a"),
        ({"optimizer.1.exp_avg_sq": torch.ones(2)}, 6, "fit", "lacks the tensor optimizer.1.exp_avg"),
        ({"optimizer.0.exp_avg": torch.ones(1)}, 6, "fit", r"optimizer.0.exp_avg is \[1\], this run's is \[2\]"),
        ({"scene.a": torch.tensor([0, float("nan"), 0])}, 6, "fit", "scene.a is not finite"),
        (None, 6, "fit", "checkpoint.safetensors is damaged"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_or_replaced_by_the_one_before(
    tmp_path: Path, change: dict[str, torch.Tensor | None] | None, step: int, verb: str, words: str
) -> None:
    tensors = {name: value for name, value in (STATE | (change or {})).items() if value is not None}
    save_checkpoint(tmp_path, verb, tensors, step)
    if change is None:
        os.truncate(tmp_path / "checkpoint.safetensors", 30)
    with pytest.raises(UserError, match=f"{words}.*: restore a copy, or choose another output"):
        told(tmp_path)
    save_checkpoint(tmp_path / "two", "fit", STATE, 4)
    os.replace(tmp_path / "two/checkpoint.safetensors", tmp_path / "checkpoint.previous.safetensors")
    found, lines = told(tmp_path)
    assert found == 4 and len(lines) == 1 and lines[0].endswith("resuming from the previous one, of step 4")


def test_log(tmp_path: Path) -> None:
    trim_log(tmp_path, 3)  # there is none yet
    for step in (2, 4, 6):
        append_log(tmp_path, {"step": step, "loss": 1 / step})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write("\n3\n[]\n{}\n{'step': 1}\n\xff\n" + '{"step": "1"}\n' + "[" * 5000 + "\n")  # edited by hand
        file.write('{"step": 8, "loss": 0.1')  # killed while it wrote
    trim_log(tmp_path, 4)
    append_log(tmp_path, {"step": 6, "loss": 0.0})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6] and lines[-1]["loss"] == 0.0


# ---- random streams -------------------------------------------------------------------------------------------------


def first(seed: int, rank: int, step: int) -> tuple[float, ...]:
    return tuple(torch.rand(3, generator=stream(seed, rank, step)).tolist())


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
@pytest.mark.parametrize("name", ["log.jsonl", ".lock"])
def test_what_is_written_again_is_a_file(tmp_path: Path, name: str, make: Callable[[Path], object]) -> None:
    """A pipe in its place would block the run, a device would swallow it."""
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: is a (pipe|device|folder), not a file; delete it"):
        if name == "log.jsonl":
            trim_log(tmp_path, 3)
        else:
            with lock_folder(tmp_path):
                pass


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


def test_a_run_folder_can_be_moved(tmp_path: Path) -> None:
    @dataclass
    class Placed:
        output: str = "runs"

    open_run(tmp_path, Placed("here"), free=set())
    with_result(tmp_path)
    open_run(tmp_path, Placed("there"), free=set())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["settings"] == {"output": "there"}


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """It knew fewer settings: those must have their defaults."""

    @dataclass
    class Older:
        steps: int = 10

    open_run(tmp_path, Older(), free=set())
    with_result(tmp_path)
    with pytest.raises(UserError, match="with name=None, this one has name=b"):
        open_run(tmp_path, Settings(name="b"), free=set())


def test_a_lock_removes_no_partial_files_of_others(tmp_path: Path) -> None:
    theirs, rest = tmp_path / "film.mp4.partial", tmp_path / "config.yaml.7.partial"
    for path in (theirs, rest):
        path.write_text("half")
    with lock_folder(tmp_path):
        assert theirs.exists() and not rest.exists()
    (tmp_path / "config.yaml").write_text("{}")
    with lock_folder(tmp_path):
        assert not theirs.exists()  # in a run's folder only a run writes


def test_what_is_not_finite_is_named_and_a_sum_that_overflows_is_no_fault() -> None:
    inf = float("inf")
    fine = {"empty": torch.zeros(0), "half": torch.full((9,), 6e4, dtype=torch.float16), "huge": torch.full((4,), 2e38)}
    assert first_non_finite(fine | {"whole": torch.tensor([1, 2]), "flag": torch.tensor([True])}) is None
    for bad in ([1.0, float("nan")], [inf, 1.0], [inf, -inf]):
        assert first_non_finite(fine | {"bad": torch.tensor(bad), "last": torch.tensor([inf])}) == "bad"

"""A sample of the bad commands of dev/bad_commands.py, each in a fork: one line and exit code 2, or a right result."""

import sys
from pathlib import Path

import bad_cases
import bad_commands
import pytest

from fourdiffusion.cli.config import from_values
from fourdiffusion.cli.schema import load_settings_class, settings
from fourdiffusion.cli.verbs import VERBS
from fourdiffusion.renames import current_name
from fourdiffusion.train.settings import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")]

COUNT, SEED = 60, 7


def test_60_bad_commands_end_right(base: Path) -> None:
    assert bad_commands.run_all(base, bad_cases.choose(COUNT, SEED), SEED) == []


def test_every_path_goes_through_the_one_rule() -> None:
    """Empty text, addresses, ``~`` and names that no file can have: what is tried here is known as a path there."""
    programs_and_names = {"blender", "path"}  # render's path is a name or a file
    for name, given in bad_cases.PATHS.items():
        verb = next(verb for verb in VERBS if bad_cases.ALL[name][0].startswith(verb.words))
        schema = load_settings_class(verb.settings)
        known = {setting.key for setting in settings(schema) if setting.is_path}
        assert {current_name(schema.__name__, key) for key in given} - programs_and_names <= known, name


def test_an_address_of_shards_is_taken_as_it_is() -> None:
    values: dict[str, object] = {
        "data": {"path": "s3://bucket/shards"},
        "validation_data": "https://example.org/shards",
    }
    config: TrainConfig = from_values("train", TrainConfig, values)
    assert (config.data.path, config.validation_data) == ("s3://bucket/shards", "https://example.org/shards")


def test_no_input_runs_a_program(base: Path) -> None:
    """Pickles, YAML tags, Hydra's _target_, an EPS under another name: a tenth of them, drawn."""
    assert bad_commands.run_all(base, bad_cases.payloads()[SEED::10], SEED) == []


@pytest.mark.parametrize("case", bad_cases.offline(), ids=lambda case: case.name)
def test_every_verb_works_without_a_network(base: Path, case: bad_cases.Case) -> None:
    verdict = bad_commands.try_case(case, base, SEED, 60)
    if verdict.code == bad_commands.NO_NAMESPACE:
        pytest.skip("this machine allows no network namespace")
    if "moderngl" in verdict.said or "no OpenGL" in verdict.said:
        pytest.skip("no OpenGL here")
    assert (verdict.code, verdict.outcome) == (0, "right"), verdict.said


@pytest.mark.parametrize(
    ("code", "out", "err", "refused", "wrong"),
    [
        (2, "", "error: in=x: give y\n", True, "right"),
        (2, "", "warning: a is now b\nerror: in=x: give y\n", True, "right"),
        (2, "", "error: in=x\nerror: y\n", True, "not one line"),
        (2, "", "Some library says hello\nerror: in=x\n", True, "further lines: Some library says hello"),
        (2, "", "error: in=\x1b[31mx\n", True, "control characters"),
        (2, "", "", True, "not one line"),
        (1, "", "Traceback (most recent call last)\n", True, "traceback"),
        (1, "", "error: x\n", True, "exit 1"),
        (0, "done", "", True, "silent"),
        (0, "done", "", False, "right"),
        (None, "", "", True, "hang"),
    ],
)
def test_the_judge(tmp_path: Path, code: int | None, out: str, err: str, refused: bool, wrong: str) -> None:
    case = bad_cases.Case("name", ["fit"], refused=refused)
    assert bad_commands.judge(case, code, out, err, bad_commands.snapshot(tmp_path), tmp_path) == wrong


def test_the_judge_sees_what_was_left_or_changed(tmp_path: Path) -> None:
    case = bad_cases.Case("name", ["fit"])
    (tmp_path / "old").write_text("a")
    before = bad_commands.snapshot(tmp_path)
    (tmp_path / "old").write_text("b")
    assert bad_commands.judge(case, 2, "", "error: x\n", before, tmp_path) == "changed: old"
    (tmp_path / "x.1.partial").touch()
    assert bad_commands.judge(case, 2, "", "error: x\n", before, tmp_path) == "left behind: x.1.partial"

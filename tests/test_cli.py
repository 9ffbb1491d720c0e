"""The command line: composing settings, help, and mistakes that answer with one line."""

import dataclasses
import errno
import importlib
import os
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fourdiffusion import cli, config
from fourdiffusion.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

TOY_PACKAGE = {
    "fourdiffusion/toy.py": '''
"""A verb that writes down what it was called with."""

from __future__ import annotations

import colorsys
import json
from dataclasses import asdict, dataclass, field
from typing import Optional

from fourdiffusion.errors import UserError
from fourdiffusion.toy_model import ModelConfig

SHADES = colorsys.rgb_to_hsv(0.5, 0.5, 0.5)
LIMIT = 7


@dataclass
class ToyConfig:
    """Settings."""

    video: str  # a file,
    # never read
    steps: int = 3 * LIMIT  # how long
    model: ModelConfig = field(default_factory=ModelConfig)
    # the learning rate, with a # in it
    # and two lines
    rate: float = 1e-3
    colour: str = "#fff"
    seed: int | None = None
    caption: Optional[str] = "a toy"
    scene: str = ""
    views: list[float] = field(default_factory=lambda: [0.0, 90.0])
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.steps == 13:
            raise UserError("steps=13: bad luck, choose another number")


def toy(config: ToyConfig) -> None:
    """Writes down what it was called with.

    Nothing else.
    """
    print(json.dumps(asdict(config)))
''',
    "fourdiffusion/toy_model.py": """
from dataclasses import dataclass


@dataclass
class ModelConfig:
    width: int = 8  # of every layer
    folder: str = ""
""",
    "configs/toy.yaml": """
defaults:
  - toy_schema
  - model: small
  - _self_
  - experiment: null

rate: 0.5
""",
    "configs/model/small.yaml": "# eight wide\nfolder: ${shipped:data/small}\n",
    "configs/scene/small.yaml": "field: 1\n",
    "configs/model/large.yaml": "# a thousand wide\nwidth: 1000\n",
    "configs/experiment/toy/paper.yaml": """
# @package _global_
# as in the paper
defaults:
  - override /model: large

steps: 1000
rate: 0.25
""",
    "configs/experiment/toy/broken.yaml": "# @package _global_\nmodel:\n  widht: 1000\n",
    "configs/experiment/train/another_verbs.yaml": "# @package _global_\nlimit: 3\n",
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cli.Verb:
    """A package folder with one small verb; the working directory is an empty folder."""
    for name, text in TOY_PACKAGE.items():
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"))
    verb = cli.Verb(
        "toy box",
        "fourdiffusion.toy",
        "toy",
        "fourdiffusion.toy:ToyConfig",
        "play",
        ("fourdiffusion toy box video=a.mp4",),
    )
    package = tmp_path / "home" / "fourdiffusion"
    monkeypatch.setattr(cli, "VERBS", (*cli.VERBS, verb))
    monkeypatch.setattr(config, "PACKAGE", package)
    monkeypatch.setattr("fourdiffusion.__path__", [str(package)])
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield verb
    assert list((tmp_path / "cwd").iterdir()) == []  # composing leaves no folder and no log behind
    for module in ("fourdiffusion.toy", "fourdiffusion.toy_model"):
        sys.modules.pop(module, None)


@pytest.fixture
def run(toy: cli.Verb, capsys: pytest.CaptureFixture[str]) -> typing.Callable[..., dict[str, typing.Any]]:
    """Run the toy verb and return the settings that it saw."""

    def run(*words: str) -> dict[str, typing.Any]:
        assert cli.main(["toy", "box", *words]) == 0, capsys.readouterr().err
        return OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))

    return run


def test_schema_group_root_experiment_and_words_lie_over_each_other_in_this_order(run) -> None:
    plain = run("video=a.mp4")
    assert plain["steps"] == 21 and plain["views"] == [0.0, 90.0] and plain["seed"] is None  # from the dataclass
    assert plain["model"] == {"width": 8, "folder": str(config.PACKAGE.parent / "data/small")}  # from the group
    assert plain["rate"] == 0.5  # from the root
    paper = run("video=a.mp4", "experiment=paper", "steps=5")
    assert paper["rate"] == 0.25 and paper["model"]["width"] == 1000  # the experiment, over root and group choice
    assert paper["steps"] == 5  # the words, over the experiment
    assert run("video=a.mp4", "experiment=paper", "model=small")["model"]["width"] == 8


def test_values_arrive_with_their_types(run) -> None:
    seen = run("video=a", "steps=7", "rate=1e-4", "seed=3", "views=[1, 2.5]", "verbose=yes", "model.width=9")
    assert (seen["steps"], seen["rate"], seen["seed"], seen["views"]) == (7, 1e-4, 3, [1.0, 2.5])
    assert seen["verbose"] is True and seen["model"]["width"] == 9
    assert run("video=a", "caption=null", "seed=null")["caption"] is None


@pytest.mark.parametrize(
    "text",
    ["a (1), final.mp4", "frames/*.png", "it's a \\", "[a, b]", "a=b", "007", "1e3", "null", "", "~/x", "a: b", "ü"],
)
def test_text_is_taken_as_it_stands(run, text: str) -> None:
    assert run(f"video={text}")["video"] == text
    assert run(f"video='{text}'")["video"] == text


def test_a_setting_may_have_the_name_of_a_folder_of_configs(run) -> None:
    assert run("video=a", "scene=runs/a")["scene"] == "runs/a"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a.mp4", "'a.mp4' is not a setting: write KEY=VALUE, for example video=a.mp4"),
        ("--steps=3", "'--steps=3' is not a setting: write KEY=VALUE, for example steps=3"),
        ("--steps 3", "'--steps' is not a setting: write KEY=VALUE, for example steps=..."),
        ("video=a step=3", "there is no setting 'step': did you mean steps?"),
        ("video=a width=3", "there is no setting 'width': did you mean model.width?"),
        ("video=a model.widht=3", "there is no setting 'model.widht': did you mean model.width?"),
        ("video=a quux=3", "there is no setting 'quux': --help lists them all"),
        ("video=a +steps=3", "there is no setting '+steps': did you mean steps?"),
        ("video=a steps=abc", "steps=abc: expected a whole number"),
        ("video=a steps=1.5", "steps=1.5: expected a whole number"),
        ("video=a steps=", "steps=: expected a whole number"),
        ("video=a steps=1,2", "steps=1,2: one value is expected; a list is written [a,b] in quotes"),
        ("video=a seed=x", "seed=x: expected a whole number or null"),
        ("video=a${b}", "Interpolation key 'b' not found"),
        ("video=a rate=fast", "rate=fast: expected a number"),
        ("video=a verbose=maybe", "verbose=maybe: expected true or false"),
        ("video=a views=[1,b]", "views=[1,b]: expected list[float]"),
        ("video=a views=[1", "views=[1: expected list[float]"),
        ("video=a model=huge", "model=huge: there is no such option, the options are large, small"),
        ("video=a experiment=another_verbs", "there is no such option, the options are broken, paper"),
        ("video=a experiment=broken", "In 'experiment/toy/broken': "),
        ("video=a experiment=broken", "Key 'widht' not in 'ModelConfig'"),
        ("steps=3", "a value is missing: add video=..."),
        ("video=a steps=13", "steps=13: bad luck, choose another number"),
    ],
)
def test_a_mistake_gives_one_line_and_code_2(toy, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert cli.main(["toy", "box", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and message in err


def test_a_section_is_no_setting(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = config.load_settings_class("fourdiffusion.toy:ToyConfig")
    monkeypatch.setattr(config, "groups", lambda name: [])
    with pytest.raises(UserError, match="it is a section, set one of model.width, model.folder"):
        config.compose("toy", schema, ["model=3"])


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UserError("video=a: there is\nno such file"), 2, "error: video=a: there is no such file\n"),
        (KeyboardInterrupt(), 130, "interrupted: "),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a"), 2, "error: the disk is full for runs/a: free"),
    ],
)
def test_what_stops_a_verb_is_one_line(toy, monkeypatch, capsys, raised, code: int, message: str) -> None:
    def stop(settings: object) -> None:
        raise raised

    monkeypatch.setattr(importlib.import_module("fourdiffusion.toy"), "toy", stop)
    assert cli.main(["toy", "box", "video=a"]) == code
    err = capsys.readouterr().err
    assert err.startswith(message) and err.count("\n") == 1


def test_other_errors_keep_their_traceback(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(settings: object) -> None:
        raise OSError(errno.EACCES, "denied")

    monkeypatch.setattr(importlib.import_module("fourdiffusion.toy"), "toy", stop)
    with pytest.raises(OSError, match="denied"):
        cli.main(["toy", "box", "video=a"])


def test_help_and_mistakes_answer_without_the_verb(toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "box", "--help"]) == 0
    assert cli.main(["toy", "box", "steps=x"]) == 2
    assert capsys.readouterr().out.startswith("fourdiffusion toy box: play")


def test_help_explains_the_verb(toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "box", "experiment=paper", "-h"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for expected in [
        "fourdiffusion toy box video=a.mp4",
        "model=large a thousand wide",
        "model=small eight wide (default)",
        "experiment=paper as in the paper",
        "video=(required) a file, (str)",
        "steps=1000 how long (int)",  # after the words before --help
        "model.width=1000 of every layer (int)",
        "rate=0.25 the learning rate, with a # in it and two lines (float)",
        "colour=#fff (str)",
        "seed=null (int | None)",
        "views=[0.0,90.0] (list[float])",
        "verbose=false (bool)",
    ]:
        assert expected in lines, expected


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_alone_the_command_explains_itself(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb.words} " in out and verb.examples[0] in out for verb in cli.VERBS)


def test_the_beginning_of_a_verb_lists_what_goes_on_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data"]) == 0
    out = capsys.readouterr().out
    assert "data synth" in out and "evaluate" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluat run=a", "there is no verb 'evaluat': did you mean evaluate?"),
        ("data sinth", "there is no verb 'data sinth': did you mean data synth?"),
        ("quux", "there is no verb 'quux': use data synth, train, "),
        ("video=a.mp4", "there is no verb 'video=a.mp4': use data synth, train, "),
    ],
)
def test_an_unknown_verb_is_named(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_the_command_starts_in_a_process_of_its_own(tmp_path: Path) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fourdiffusion", *words],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip

    good, bad = command("data", "synth", "--help"), command("data", "synth", "num_clips=many")
    assert good.returncode == 0 and good.stdout.startswith("fourdiffusion data synth") and not good.stderr
    assert bad.returncode == 2 and bad.stderr == "error: num_clips=many: expected a whole number\n"


# ---- the real verbs -------------------------------------------------------------------------------------------------

VERB_NAMES = {verb.function for verb in cli.VERBS}
real = pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.words)


@real
def test_every_option_of_every_group_fits(verb: cli.Verb) -> None:
    schema = config.load_settings_class(verb.settings)
    names = config.compose(verb.function, schema, []).keys()
    for group in config.groups(verb.function):
        for option in group.options():
            assert config.compose(verb.function, schema, [f"{group.name}={option}"]).keys() == names


def test_every_experiment_lies_with_its_verb() -> None:
    strays = [path for path in (ROOT / "configs/experiment").rglob("*.yaml") if path.parent.name not in VERB_NAMES]
    assert not strays, f"experiments stand in configs/experiment/<verb>/: {strays}"


@real
def test_the_examples_in_the_help_are_well_formed(verb: cli.Verb) -> None:
    schema = config.load_settings_class(verb.settings)
    for example in verb.examples:
        words = shlex.split(example.split("fourdiffusion ", 1)[1])
        found, rest = cli._find(words)
        assert found is verb
        assert not OmegaConf.missing_keys(config.compose(verb.function, schema, rest)), example


def test_the_presets_are_the_papers_numbers_and_the_releases_where_they_differ() -> None:
    from fourdiffusion.fit.settings import FitConfig

    def settings(*words: str) -> dict[str, object]:
        schema = config.load_settings_class("fourdiffusion.fit.settings:FitConfig")
        return flat(dataclasses.asdict(config.build(config.compose("fit", schema, ["video=x", *words]), FitConfig)))

    def flat(tree: dict, prefix: str = "") -> dict[str, object]:
        parts = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in tree.items()]
        return {key: value for part in parts for key, value in part.items()}

    def differences(a: dict[str, object], b: dict[str, object]) -> set[str]:
        return {key for key in a if a[key] != b[key]}

    default, paper = flat(dataclasses.asdict(FitConfig(video="x"))), settings("experiment=paper")
    assert differences(paper, default) == {"sds.ray_chunk", "sds.image_chunk"}  # these change the memory only
    released = settings("experiment=released")
    assert differences(paper, released) == {"loss.opacity_start_step", "loss.sparsity_start_step"}

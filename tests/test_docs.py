"""Docs say what the code is called, use the field's words, and hold only commands and examples that run."""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fourdiffusion import cli
from fourdiffusion.cli import config, verbs
from fourdiffusion.cli.main import find
from fourdiffusion.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

DIALECT = (  # phrases of an earlier edition; the standard term stands in docs/glossary.md
    "so manieth",
    "for want of",
    "what is said about",
    "take no turns",
    "its sisters",
    "towers lie",
    "lie in this",
    "speaks of",
    "speak of",
    "nothing is left to see",
    "patient_interrupt",
    "teaching.",
    "Teacher",
    "number of ours",
    "run of ours",
    "file of ours",
    "not ours (",
    "nobody was shown",
    "goes on from where",
    "says nothing of",
    "the last word",
    "was taken for the object",
    "where it is none",
    "young, thin",
    "hold matter",
    "holds matter",
    "travel with",
    "travels with",
    "torch twin",
    "keep list",
    "a person decide",
    "what the frozen networks make",
    "worked off",
    "where need be",
    "fetch it again",
)


def test_every_function_in_method_exists() -> None:
    names = re.findall(r"`(fourdiffusion(?:\.\w+)+)`", (ROOT / "docs/method.md").read_text(encoding="utf-8"))
    assert len(names) > 20
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_equation_of_the_paper_that_is_implemented_is_in_method() -> None:
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    for equation in ("Eq. 7", "Eq. 10", "Eq. 11"):
        assert equation in text


def test_the_dialect_is_gone() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = []
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix not in {".py", ".md", ".yaml", ".toml", ".sh"} or path == Path(__file__) or "faults" in name:
            continue
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        found += [f"{name}: {phrase}" for phrase in DIALECT if phrase in text]
    assert not found, "\n".join(found)


def test_the_glossary_names_each_term_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    terms = [row.strip() for row in rows if row.strip() not in ("term", "---")]
    assert len(terms) >= 60 and len(set(terms)) == len(terms)


# ---- commands -------------------------------------------------------------------------------------------------------

NEEDS = ("assets", "browser", "cluster", "docker", "extras", "gpu", "minutes", "network", "weights")
SHELL = ("bash", "sh", "shell", "console", "")
COMMANDS = ("fourdiffusion", "pip", "git", "make", "python", "torchrun", "accelerate", "docker", "hf", "bash", "curl")
# What each verb adds to a command of the docs, so that it runs here in a second.
SMALL = {
    "data synth": "num_clips=1 num_views=4 num_frames=2 size=16 num_workers=1",
    "generate": "model.path=data/models/small num_frames=4 crop=frame device=cpu",
    "fit": "model.path=data/models/small",
    "render": "size=16 orbit_pictures=2 num_azimuths=2 seconds=0.1 device=cpu",
    "export": "resolution=16 device=cpu",
    "view": "size=32 device=cpu",
    "evaluate": "device=cpu",
    "doctor": "",
}
# Verbs whose commands are composed here, and run on small inputs by other tests.
ELSEWHERE = {
    "train": "tests/train/test_train.py",
    "convert": "tests/test_convert.py",
    "data render": "tests/datasets/test_rendering_gltf.py",
    "data curate": "tests/datasets/test_curation.py",
    "data objaverse": "tests/datasets/test_curation_lists.py",
    "data pack": "tests/datasets/test_pack.py",
    "fit views": "tests/fit_views/test_fit_views.py",
    "app": "tests/test_app.py",
}


@dataclass
class Block:
    """A fenced code block of a page."""

    page: str
    line: int
    language: str
    text: str
    commands: list[tuple[str, str]] = field(default_factory=list)  # (command, what it needs or "")

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def fenced_blocks(page: str, text: str) -> list[Block]:
    """Return the fenced code blocks of a page; of shell blocks with their commands."""
    found: list[Block] = []
    opened: tuple[str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*(```+|~~~+)\s*([\w-]*)", line)
        if fence and opened is None:
            opened, lines = (fence[2].lower(), number), []
        elif fence and opened is not None and not fence[2]:
            block = Block(page, opened[1], opened[0], textwrap.dedent("\n".join(lines)))
            block.commands = shell_commands(block.text, bool(block.language)) if block.language in SHELL else []
            found.append(block)
            opened = None
        elif opened is not None:
            lines.append(line)
    return found


def shell_commands(text: str, is_shell: bool) -> list[tuple[str, str]]:
    """Return the commands of a block, each with what its mark says that it needs.

    In a block without a language only lines that begin with a known command count: it may be a tree or an output.
    """
    found = []
    of_block = ""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = re.sub(r"^\s*(\$ )?", "", line)
        mark = re.search(r"#\s*needs:\s*(.+)$", line)
        command = re.split(r"\s#\s", f" {line}", maxsplit=1)[0].strip()
        if not command or command.startswith("#"):
            of_block = mark[1] if mark else of_block
            continue
        for part in re.split(r"\s(?:&&|\|\||;)\s", command):
            part = re.sub(r"^(?:\w+=\S*\s+)+", "", part.split(" | ")[0])  # variables before it, a pipe behind it
            if is_shell or part.split()[0] in COMMANDS:
                found.append((part, mark[1] if mark else of_block))
    return found


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    block for path in PAGES for block in fenced_blocks(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
]
REMEDY = f"correct it, or mark it or its block with '# needs: WHAT' ({', '.join(NEEDS)}), see CONTRIBUTING.md"


def verb_words(command: str) -> list[str] | None:
    """Return the words behind `fourdiffusion`, also where torchrun or accelerate starts it; None for other commands."""
    words = shlex.split(command)
    if words[0] == "fourdiffusion":
        return words[1:]
    for number, word in enumerate(words[:-1]):
        if word == "-m" and words[number + 1] == "fourdiffusion":
            return words[number + 2 :]
    return None


def compose(words: list[str], whole: bool = True) -> None:
    """Compose the config of a command. UserError where it is wrong, or where it is ``whole`` and lacks a value."""
    verb, rest = find(words)
    assert verb is not None, f"{words} name no verb"
    flags = {"-m", "--multirun", "-h", "--help", "--cfg", "job", "all"}
    places = [n + 1 for n, word in enumerate(rest) if word in ("--config-dir", "--config-path", "-cd", "-cp")]
    plain = [word for n, word in enumerate(rest) if word not in flags and n not in places and n + 1 not in places]
    if places:  # a user's own folder, which may hold other options and settings
        plain = [word for word in plain if not word.startswith("experiment=")]
    swept = bool({"-m", "--multirun"} & set(rest))
    if swept:
        plain = [re.sub(r"=([^'\[]*?),.*", r"=\1", word) for word in plain if not word.startswith("hydra/")]
    composed = config.compose(verb.function, config.load_settings_class(verb.settings), plain)
    if whole and not places and "--help" not in rest:
        config.check_complete(composed)


def check_other(command: str) -> str | None:
    """Return the error of a command of another program; None if it is known to run."""
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"the Makefile has no target {unknown}" if unknown else None
    if "pip" in words[:3] and "install" in words:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        for word in words:
            if match := re.fullmatch(r"(?:\.|fourdiffusion)\[([\w,]+)\]", word):
                unknown = sorted(set(match[1].split(",")) - known.keys())
                return f"pyproject.toml has no extra {unknown}" if unknown else None
    if words[0].startswith("python") and len(words) > 1 and (ROOT / words[1]).is_file():
        return f"no test runs {words[1]} this way"
    return "no test runs it"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.commands], ids=lambda block: block.place)
def test_commands_in_the_docs_are_well_formed(block: Block) -> None:
    for command, needs in block.commands:
        unknown = set(re.split(r"[,\s]+", needs)) - {*NEEDS, ""}
        assert not unknown, f"{block.place}: '# needs: {needs}': use {', '.join(NEEDS)}"
        words = verb_words(command)
        if words is None:
            reason = None if needs else check_other(command)
        else:
            try:
                compose(words)
                reason = None
            except UserError as error:
                reason = str(error)
        assert reason is None, f"{block.place}: `{command}`: {reason}; {REMEDY}"


def test_commands_in_the_text_are_well_formed() -> None:
    """`fourdiffusion VERB KEY=VALUE` between backticks; what is no whole command may lack values."""
    for path in PAGES:
        text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
        for command in re.findall(r"`(fourdiffusion [a-z][^`]*)`", text):
            words = verb_words(" ".join(command.split())) or []
            if "VERB" in command or "..." in command or find(words)[0] is None:
                continue
            try:
                compose(words, whole=False)
            except UserError as error:
                raise AssertionError(f"{path.name}: `{command}`: {error}") from error


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("fourdiffusion fit video=a.mp4   # a fit\n# needs: gpu\nbash run.sh", ["", "gpu"]),
        ("$ make test && make lint  # needs: minutes", ["minutes", "minutes"]),
        ("A=1 python a.py \\\n  b | head", [""]),
        ("# needs: weights\n\nhf download a", ["weights"]),
    ],
)
def test_commands_and_marks_are_found(text: str, found: list[str]) -> None:
    (block,) = fenced_blocks("a.md", f"text\n\n```bash\n{text}\n```\n")
    assert [needs for _, needs in block.commands] == found and block.line == 3
    assert not any("#" in command or "$" in command or "=1 " in command for command, _ in block.commands)


@pytest.mark.parametrize(
    "command", ["make tset", "pip install '.[fast]'", "rm -rf runs", "python nowhere.py", "git clone x"]
)
def test_other_commands_need_a_mark(command: str) -> None:
    assert check_other(command) is not None


@pytest.mark.parametrize(
    "words",
    ["fit video=a quux=1", "fit", "render scene=a pth=still", "evaluate prediction=a protocol=mine", "quux video=a"],
)
def test_a_wrong_command_is_seen(words: str) -> None:
    with pytest.raises((UserError, AssertionError)):
        compose(words.split())


# ---- run ------------------------------------------------------------------------------------------------------------


def runnable(block: Block) -> list[tuple[verbs.Verb, list[str]]]:
    """Return the commands of a block that run here, with the words that make them small."""
    found = []
    for command, needs in block.commands:
        words = verb_words(command)
        if words is None or needs or not shlex.split(command)[0].startswith("fourdiffusion"):
            continue
        verb, rest = find(words)
        serves = verb is not None and verb.words == "view" and "html=true" not in rest
        if verb is None or verb.words in ELSEWHERE or serves:  # a server: tests/test_view.py
            continue
        recipe = [] if any(word.startswith("experiment=") for word in rest) else ["experiment=my_recipe"]
        if verb.words == "fit":
            rest = [*rest, *recipe, "--config-dir", "mine", "num_frames=4", "max_steps=1"]
        # the last value counts
        small = shlex.split(SMALL[verb.words])
        keys = {word.partition("=")[0] for word in small}
        rest = [word for word in rest if word.partition("=")[0] not in keys] + small
        if "protocol=" in " ".join(rest):
            rest.append("protocol.size=32")
        found.append((verb, rest))
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_verbs import write_everything, write_recipe

    folder = tmp_path_factory.mktemp("docs") / "inputs"
    folder.mkdir()
    write_recipe(folder / "mine")
    return write_everything(folder)


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of the inputs."""
    shutil.copytree(inputs, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in BLOCKS if runnable(block)], ids=lambda block: block.place)
def test_commands_in_the_docs_run(block: Block, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, words in runnable(block):
        output = next((word.partition("=")[2] for word in words if word.startswith("output=")), None)
        if output is not None and verb.words in ("fit", "generate", "data synth"):
            shutil.rmtree(place / output, ignore_errors=True)
        code = cli.main([*verb.words.split(), *words])
        error = capsys.readouterr().err.strip().splitlines()[-1:]
        assert code == 0, f"{block.place}: fourdiffusion {verb.words} {shlex.join(words)}: {error}; {REMEDY}"
        assert output is None or (place / output).exists(), output


PYTHON = [block for block in BLOCKS if block.language in ("python", "py") and "# needs:" not in block.text]


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_examples_in_the_docs_run(block: Block, place: Path) -> None:
    """A fit runs with the settings of a tiny fit instead of 500 steps."""
    from tiny_verbs import tiny_fit

    text = block.text.replace("max_steps=500", "**TINY")
    names: dict[str, Any] = {"TINY": tiny_fit("data/models/small")}
    exec(compile(text, block.place, "exec"), names)


def test_the_api_page_has_its_examples_and_names() -> None:
    text = (ROOT / "docs/api.md").read_text("utf-8")
    assert sum(block.page == "docs/api.md" for block in PYTHON) >= 2 and "max_steps=500" in text
    import fourdiffusion

    rows = re.findall(r"^\| `(\w+)", text, re.MULTILINE)
    assert {"fit_scene", "evaluate_prediction", "Scene", "generate_views", "render_views"} <= set(rows)
    assert set(rows) <= set(dir(fourdiffusion))

"""The command `fourdiffusion VERB KEY=VALUE ...`: finds the verb, composes its settings, calls it, reports mistakes."""

import difflib
import errno
import importlib
import inspect
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fourdiffusion import __version__, config
from fourdiffusion.errors import UserError


@dataclass(frozen=True)
class Verb:
    """A function of one settings dataclass (``settings`` is module:Class). configs/<function>.yaml is its root file."""

    words: str
    module: str
    function: str
    settings: str
    summary: str
    examples: tuple[str, ...]


VERBS = (
    Verb(
        "data synth",
        "fourdiffusion.prepare.synth",
        "synth",
        "fourdiffusion.prepare.settings:SynthConfig",
        "make clips of animated creatures with known geometry, seen from several cameras at once",
        ("fourdiffusion data synth output=cache/clips",),
    ),
    Verb(
        "train",
        "fourdiffusion.train.loop",
        "train",
        "fourdiffusion.train.settings:TrainConfig",
        "train the multi-view video model, one stage after the other: vae, clip, base (images), motion (videos)",
        (
            "fourdiffusion train stage=motion data.path=cache/clips model.path=data/models/tiny",
            "fourdiffusion train stage=base data.path=cache/clips output=runs/base",
            "accelerate launch -m fourdiffusion train stage=motion data.path=cache/clips model.path=runs/base/model",
            "torchrun --nproc_per_node 2 -m fourdiffusion train stage=motion data.path=cache/clips",
        ),
    ),
    Verb(
        "convert",
        "fourdiffusion.convert",
        "convert",
        "fourdiffusion.settings:ConvertConfig",
        "make a model folder of released checkpoints, or a checkpoint of trained motion layers",
        (
            "fourdiffusion convert imagedream=sd-v2.1-base-4view-ipmv.pt motion=4dm.ckpt output=models/4dm",
            "fourdiffusion convert imagedream=sd-v2.1-base-4view-ipmv.pt output=models/imagedream dtype=bfloat16",
            "fourdiffusion convert model.path=runs/motion/model output=motion.ckpt",
        ),
    ),
    Verb(
        "generate",
        "fourdiffusion.generate",
        "generate",
        "fourdiffusion.settings:GenerateConfig",
        "turn a video into videos of the same motion seen from four sides",
        ("fourdiffusion generate video=clip.mp4",),
    ),
    Verb(
        "fit",
        "fourdiffusion.fit.loop",
        "fit",
        "fourdiffusion.fit.settings:FitConfig",
        "turn a video into a 4-D scene",
        ("fourdiffusion fit video=clip.mp4", "fourdiffusion fit video='frames/*.png'"),
    ),
    Verb(
        "render",
        "fourdiffusion.render",
        "render",
        "fourdiffusion.settings:RenderConfig",
        "draw a fitted scene from any camera at any time",
        ("fourdiffusion render scene=runs/clip",),
    ),
    Verb(
        "export",
        "fourdiffusion.export",
        "export",
        "fourdiffusion.settings:ExportConfig",
        "write a fitted scene as animated GLB, meshes, splats, an HTML page, images or a dataset",
        (
            "fourdiffusion export scene=runs/clip",
            "fourdiffusion export scene=runs/clip format=html output=clip.html",
        ),
    ),
    Verb(
        "view",
        "fourdiffusion.view",
        "view",
        "fourdiffusion.settings:ViewConfig",
        "turn a scene and its time in the browser, also while it is being fitted",
        ("fourdiffusion view scene=runs/clip", "fourdiffusion view scene=runs/clip html=true output=clip.html"),
    ),
    Verb(
        "evaluate",
        "fourdiffusion.evaluate",
        "evaluate",
        "fourdiffusion.settings:EvaluateConfig",
        "measure a run against ground truth",
        ("fourdiffusion evaluate prediction=runs/clip truth=data/sample/truth",),
    ),
    Verb(
        "doctor",
        "fourdiffusion.doctor",
        "doctor",
        "fourdiffusion.settings:DoctorConfig",
        "say what is installed, what is missing, and the line that installs it",
        ("fourdiffusion doctor",),
    ),
)


HELP = {"-h", "--help"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for a mistake of the user's, 130 when interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        _run(words)
    except UserError as error:
        return _report(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _report("interrupted: where a run was begun, the same command goes on from its last checkpoint", 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" for {error.filename}" if error.filename else ""
        return _report(f"error: the disk is full{place}: free some space, then run the same command again", 2)
    return 0


def _report(text: str, code: int) -> int:
    print(" ".join(text.splitlines()), file=sys.stderr)
    return code


def _run(words: list[str]) -> None:
    if not words or words[0] in HELP:
        print(overview(VERBS))
        return
    if words[0] == "--version":
        print(f"fourdiffusion {__version__}")
        return
    verb, rest = _find(words)
    if verb is None:
        print(overview(tuple(each for each in VERBS if each.words.startswith(f"{words[0]} "))))
        return
    schema = config.load_settings_class(verb.settings)
    if HELP & set(rest):
        print(explain(verb, schema, [word for word in rest if word not in HELP]))
        return
    composed = config.compose(verb.function, schema, rest)
    built: Any = config.build(composed, schema)
    getattr(importlib.import_module(verb.module), verb.function)(built)


def _find(words: list[str]) -> tuple[Verb | None, list[str]]:
    """The verb and the words after it; None where the words are the beginning of several verbs."""
    for verb in VERBS:
        length = len(verb.words.split())
        if words[:length] == verb.words.split():
            return verb, words[length:]
    begun = [verb.words for verb in VERBS if verb.words.startswith(f"{words[0]} ")]
    if begun and (len(words) == 1 or words[1] in HELP):
        return None, []
    said = " ".join(words[:2]) if begun else words[0]
    known = [verb.words for verb in VERBS]
    alike = difflib.get_close_matches(said, known, n=1) or difflib.get_close_matches(" ".join(words[:2]), known, n=1)
    raise UserError(f"there is no verb '{said}': {f'did you mean {alike[0]}?' if alike else 'use ' + ', '.join(known)}")


# ---- help -----------------------------------------------------------------------------------------------------------


def overview(verbs: tuple[Verb, ...]) -> str:
    """What the command can do: one line and one example a verb."""
    return "\n".join(
        [
            "fourdiffusion: video in, 4-D out",
            "",
            "usage:",
            "  fourdiffusion VERB KEY=VALUE ...   do it",
            "  fourdiffusion VERB --help          its settings, their defaults, the config groups, examples",
            "",
            "verbs:",
            *_table([(verb.words, verb.summary) for verb in verbs]),
            "",
            "examples:",
            *(f"  {verb.examples[0]}" for verb in verbs),
        ]
    )


def explain(verb: Verb, schema: type, words: list[str]) -> str:
    """All there is to say about one verb; the settings show the values that they have after the words."""
    from omegaconf import OmegaConf

    composed = config.compose(verb.function, schema, words)
    missing = OmegaConf.missing_keys(composed)
    rows = []
    for setting in config.settings(schema):
        value = "(required)" if setting.key in missing else _written(OmegaConf.select(composed, setting.key))
        rows.append((f"{setting.key}={value}", f"{setting.doc} ({setting.type})".lstrip()))
    choices = []
    for group in config.groups(verb.function):
        for option, description in group.options().items():
            choices.append((f"{group.name}={option}", description + " (default)" * (option == group.default)))
    blocks = [
        [f"fourdiffusion {verb.words}: {verb.summary}"],
        (inspect.getdoc(schema) or "").splitlines(),
        ["examples:", *(f"  {example}" for example in verb.examples)],
        ["config groups, each fills many settings at once:", *_table(choices)] if choices else [],
        ["settings and their defaults; with other words before --help, the values after those:", *_table(rows)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _written(value: object) -> str:
    """A value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(_written(entry) for entry in value)}]"
    return str(value) or "''"


def _table(rows: list[tuple[str, str]]) -> list[str]:
    """Two columns, the second one wrapped to the terminal; a long first column gets a line of its own."""
    left = min(max(len(name) for name, _ in rows), 32)
    room = max(shutil.get_terminal_size((110, 24)).columns - left - 6, 30)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, room) or [""]
        first = f"  {name:<{left}}  {wrapped.pop(0)}" if len(name) <= left else f"  {name}"
        lines += [first.rstrip(), *(" " * (left + 4) + line for line in wrapped)]
    return lines

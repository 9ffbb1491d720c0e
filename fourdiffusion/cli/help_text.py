"""What --help prints."""

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fourdiffusion.cli.schema import groups, load_settings_class, settings

if TYPE_CHECKING:
    from fourdiffusion.cli.verbs import Verb

WRITING = (
    ("prompt='a red bird'", "text: quotes keep the shell from splitting it; names of files are taken as they stand"),
    ("'sds.resolutions=[32,64]'", "a list, in quotes; true and false; null for no value"),
    (
        "'output=runs/${seed}'",
        "${...} is replaced where ... is a setting of this verb or a resolver (${oc.env:HOME}), else it is text",
    ),
    ("-m seed=0,1 size=64,128", "every combination, each with its own output; hydra/launcher=joblib: in parallel"),
    (
        "--cfg job   -cd DIR   -cp RUN",
        "print the config; experiments in DIR/experiment/; begin with the settings in RUN/config.yaml",
    ),
)

WORDS = {  # of settings that are the same in every verb
    "output": "folder of the results; the same command goes on with a run that was stopped",
    "seed": "of all random numbers",
    "num_frames": "frames of the video",
    "num_views": "views, evenly around the object",
    "num_clips": "clips to make",
    "num_inference_steps": "sampling steps",
    "max_steps": "optimization steps",
    "width": "of the pictures in pixels",
    "height": "of the pictures in pixels",
    "size": "side of the pictures in pixels",
    "learning_rate": "of AdamW",
    "device": "auto | cpu | cuda",
}


def overview(verbs: Sequence["Verb"]) -> str:
    """Return what the command can do: one line and one example a verb."""
    return "\n".join(
        [
            "fourdiffusion: video in, 4-D out",
            "",
            "usage:",
            "  fourdiffusion VIDEO                4-D scene, turntable, GLB, HTML page; --explain: only the plan",
            "  fourdiffusion demo                 the same with the sample that ships",
            "  fourdiffusion VERB KEY=VALUE ...   do it",
            "  fourdiffusion VERB --help          the settings that people use; --help all: every setting",
            "",
            "verbs:",
            *_table([(verb.words, verb.summary) for verb in verbs]),
            "",
            "examples:",
            *(f"  {verb.examples[0]}" for verb in verbs),
        ]
    )


def explain(verb: "Verb", words: list[str], in_full: bool) -> str:
    """Return the help of one verb; the settings show the values that they have after the words.

    Without ``in_full`` only its basic settings. Sizes of networks are shown where the verb makes a model.
    """
    from omegaconf import OmegaConf

    from fourdiffusion.cli import config, launch

    flags = launch.parse_flags(words)
    schema = load_settings_class(verb.settings)
    source = launch.source_of(verb.function, schema, flags)
    composed = config.compose(verb.function, schema, flags.overrides, source.config_dir)
    missing = config.missing_keys(composed)
    hidden = set() if verb.makes_model else network_sizes(schema)
    shown = [each for each in settings(schema) if each.key not in hidden]
    chosen = shown if in_full else [each for key in verb.basic for each in shown if each.key == key]
    rows = []
    for setting in chosen:
        with config.one_line_errors():
            value = "(required)" if setting.key in missing else _written(OmegaConf.select(composed, setting.key))
        words_for_it = setting.doc or WORDS.get(setting.key.rpartition(".")[2], "")
        rows.append((f"{setting.key}={value}", f"{words_for_it} ({setting.kind})".lstrip()))
    choices = []
    for group in groups(verb.function, source.config_dir):
        for option, description in group.options().items():
            choices.append((f"{group.name}={option}", description + " (default)" * (option == group.default)))
    title = "settings and their defaults; with other words before --help, the values after those:"
    left = len(shown) - len(chosen)
    blocks = [
        [f"fourdiffusion {verb.words}: {verb.summary}"],
        (inspect.getdoc(schema) or "").splitlines(),
        ["examples:", *(f"  {example}" for example in verb.examples)],
        ["config groups, each fills many settings at once:", *_table(choices)] if choices else [],
        [title, *_table(rows)],
        ["writing them:", *_table(list(WRITING))],
        [f"{left} more settings: fourdiffusion {verb.words} --help all"] if left else [],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def network_sizes(schema: type) -> set[str]:
    """Return the keys that a loaded model brings along: the last fields of its ModelConfig, from ``channels`` on."""
    from fourdiffusion.diffusion.settings import ModelConfig

    names = [field.name for field in dataclasses.fields(ModelConfig)]
    sizes = set(names[names.index("channels") :])
    return {each.key for each in settings(schema) if each.owner is ModelConfig and each.key.rpartition(".")[2] in sizes}


def _written(value: object) -> str:
    """Return a value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(_written(entry) for entry in value)}]"
    return str(value) or "''"


def _table(rows: list[tuple[str, str]]) -> list[str]:
    """Return rows as two columns, the second one wrapped to the terminal; a long first entry gets its own line."""
    left = min(max(len(name) for name, _ in rows), 32)
    room = max(shutil.get_terminal_size((110, 24)).columns - left - 6, 30)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, room) or [""]
        first = f"  {name:<{left}}  {wrapped.pop(0)}" if len(name) <= left else f"  {name}"
        lines += [first.rstrip(), *(" " * (left + 4) + line for line in wrapped)]
    return lines

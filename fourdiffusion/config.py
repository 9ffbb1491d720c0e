"""From `KEY=VALUE` words to one typed dataclass: with cli.py the only home of Hydra.

A verb's settings are a dataclass in a module that imports no torch: the schema. configs/<verb>.yaml and the files of
its groups hold differences from it, and the words of the command line come last.

A settings dataclass holds fields of types that OmegaConf knows (str, int, float, bool, None, lists and dicts of them,
nested dataclasses), with "???" where the user must give a value. The comment behind a field, or else above it,
documents it.
"""

import dataclasses
import difflib
import importlib
import inspect
import re
import tokenize
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fourdiffusion.errors import UserError
from fourdiffusion.renames import current_name

if TYPE_CHECKING:
    from omegaconf import DictConfig

PACKAGE = Path(__file__).resolve().parent
EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false"}
Settings = TypeVar("Settings")


def shipped(path: str) -> Path:
    """Where `configs/...` or `data/...` lies: inside the package in a wheel, beside it in a clone."""
    inside = PACKAGE / "shipped" / path
    return inside if inside.exists() else PACKAGE.parent / path


# ---- the schema -----------------------------------------------------------------------------------------------------


def load_settings_class(path: str) -> type:
    """Import the settings dataclass at ``module:Class``; such modules import no torch, so that help answers at once."""
    module, _, name = path.partition(":")
    schema = getattr(importlib.import_module(module), name)
    if not dataclasses.is_dataclass(schema):
        raise ValueError(f"{path} is not a dataclass")
    assert isinstance(schema, type)
    return schema


@cache
def field_comments(schema: type) -> dict[str, str]:
    """Return {field: comment} of a dataclass: the comment behind each field in its source, or else above it."""
    lines = inspect.getsource(schema).splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(iter(lines).__next__))
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for name in (field.name for field in dataclasses.fields(schema)):
        number = next((n for n, line in enumerate(lines, 1) if re.match(rf"\s+{name}\s*:", line)), None)
        if number is None:  # inherited
            found[name] = next((field_comments(base).get(name, "") for base in schema.__mro__[1:-1]), "")
            continue
        above = number - 1
        while lines[above - 1].lstrip().startswith("#"):
            above -= 1
        found[name] = comments.get(number) or " ".join(comments[n] for n in range(above + 1, number))
    return found


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of a schema."""

    key: str  # dotted, as the command line writes it
    type: str
    doc: str


def settings(schema: type, prefix: str = "") -> Iterator[Setting]:
    """The leaves of a schema in the order of its source, nested dataclasses opened."""
    types = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, of = prefix + field.name, types[field.name]
        if isinstance(of, type) and dataclasses.is_dataclass(of):
            yield from settings(of, f"{key}.")
        else:
            kind = of.__name__ if type(of) is type else str(of)
            yield Setting(
                key, re.sub(r"typing.Optional\[(.*)\]", r"\1 | None", kind), field_comments(schema)[field.name]
            )


# ---- groups ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Group:
    """A config group: one of several files to start from, chosen with NAME=OPTION."""

    name: str
    folder: Path
    default: str | None

    def options(self) -> dict[str, str]:
        """Each option with its description: the first comment of its file, the line about the package aside."""
        found = {}
        for path in sorted(self.folder.glob("*.yaml")):
            lines = path.read_text(encoding="utf-8").splitlines()
            comments = [line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line]
            found[path.stem] = comments[0] if comments else ""
        return found


def groups(name: str) -> list[Group]:
    """The groups that configs/<name>.yaml names in its defaults list.

    Experiments are the verb's own: configs/experiment/<name>/. There a file says <name>/OPTION, a user just OPTION.
    """
    from omegaconf import OmegaConf

    configs = shipped("configs")
    root = OmegaConf.to_container(OmegaConf.load(configs / f"{name}.yaml"))
    assert isinstance(root, dict)
    chosen = [next(iter(entry.items())) for entry in root["defaults"] if isinstance(entry, dict)]
    return [
        Group(key, configs / key / (name if key == "experiment" else ""), option and Path(option).name)
        for key, option in chosen
    ]


# ---- composing ------------------------------------------------------------------------------------------------------


def compose(name: str, schema: type, words: Iterable[str]) -> "DictConfig":
    """Schema, groups, configs/<name>.yaml, experiment, then the words, each over the ones before.

    Values that the user must give may still be missing (see `build`). Raises UserError for a word that is not
    KEY=VALUE, an unknown key or option, a value of the wrong type, and a YAML file that does not fit the schema.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_new_resolver("shipped", lambda path: str(shipped(path)), replace=True)
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    sections = {group.name: group for group in groups(name)}
    leaves = {setting.key: setting for setting in settings(schema)}
    pairs = [_pair(word, leaves, sections, schema.__name__) for word in words]
    options = [f"{key}={_option(sections[key], value)}" for key, value in pairs if key in sections]
    try:
        with hydra.initialize_config_dir(str(shipped("configs")), version_base="1.3"):
            config = hydra.compose(name, options)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_sentence(error)) from error
    for key, value in pairs:
        if key not in sections:
            # Not through Hydra's own overrides: to it `scene=runs/a` is always a choice in the folder configs/scene.
            _assign(config, leaves[key], value)
    return config


def build(config: "DictConfig", settings_class: type[Settings]) -> Settings:
    """The composed settings as the verb's own dataclass. Raises UserError where a value is missing."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"a value is missing: add {' '.join(f'{key}=...' for key in missing)}")
        plain = OmegaConf.to_container(config, resolve=True)
        settings_object = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings_class), plain))
    except OmegaConfBaseException as error:
        raise UserError(_sentence(error)) from error
    assert isinstance(settings_object, settings_class)
    return settings_object


def _sentence(error: Exception) -> str:
    """The message of Hydra or OmegaConf in one line, without what only we need to know."""
    return " ".join(re.split("full_key:|Config search path:", str(error))[0].split())


def _pair(word: str, leaves: dict[str, Setting], sections: dict[str, Group], schema: str) -> tuple[str, str]:
    """Key and value of one word of the command line; the key is one of the two tables'."""
    key, equals, value = word.partition("=")
    key = current_name(schema, key)
    if not equals or key.startswith("-"):
        example = f"{key.lstrip('-')}={value or '...'}" if key.startswith("-") else f"{next(iter(leaves))}={word}"
        raise UserError(f"'{word}' is not a setting: write KEY=VALUE, for example {example}")
    if key not in sections and key not in leaves:
        raise UserError(f"there is no setting '{key}': {_remedy(key, [*leaves, *sections])}")
    return key, value


def _remedy(key: str, known: list[str]) -> str:
    inside = [each for each in known if each.startswith(f"{key}.")]
    if inside:
        return f"it is a section, set one of {', '.join(inside)}"
    alike = difflib.get_close_matches(key, known, n=1) or [each for each in known if each.endswith(f".{key}")]
    return f"did you mean {' or '.join(alike)}?" if alike else "--help lists them all"


def _option(group: Group, option: str) -> str:
    """The option as Hydra knows it: relative to the folder of the group's name."""
    options = group.options()
    if option == "null":
        return option
    if option in options:
        return f"{group.folder.name}/{option}" if group.folder.name != group.name else option
    known = f"the options are {', '.join(options)}" if options else "it has no options yet"
    raise UserError(f"{group.name}={option}: there is no such option, {known}")


def _assign(config: "DictConfig", setting: Setting, text: str) -> None:
    """Set one leaf. Text is taken as it stands, as file names hold commas and brackets; the rest is Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import ValidationError

    plain = setting.type.removesuffix(" | None")
    nullable = plain != setting.type
    if plain == "str" and not (nullable and text == "null"):
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        OmegaConf.update(config, setting.key, text[1:-1] if quoted else text)
        return
    try:
        override = OverridesParser.create().parse_override(f"{setting.key}={text}")
        if override.is_sweep_override():
            raise UserError(f"{setting.key}={text}: one value is expected; a list is written [a,b] in quotes")
        OmegaConf.update(config, setting.key, override.value(), merge=False)
    except (HydraException, ValidationError) as error:
        expected = EXPECTED.get(plain, plain) + (" or null" if nullable else "")
        raise UserError(f"{setting.key}={text}: expected {expected}") from error

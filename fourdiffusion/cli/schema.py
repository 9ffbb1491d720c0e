"""A verb's settings: the schema, its ranges and documentation, and the config groups over it.

A verb's settings are a dataclass in a module that imports no torch: the schema. configs/<verb>.yaml and the files of
its groups hold differences from it, and the words of the command line come last (overrides.py). Hydra composes them
(config.py) and runs the verb (launch.py).

A settings dataclass holds fields of types that OmegaConf knows (str, int, float, bool, None, lists and dicts of them,
nested dataclasses), with "???" where the user must give a value. The comment behind a field, or else above it,
documents it.
"""

import dataclasses
import importlib
import inspect
import math
import re
import tokenize
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fourdiffusion.errors import UserError, check_ranges
from fourdiffusion.media.paths import user_path
from fourdiffusion.ranges import ADDRESSES, CHOICES, PATHS, RANGES

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(path: str) -> Path:
    """Return the path of `configs/...` or `data/...`: inside the package in a wheel, beside it in a clone."""
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
    kind: str  # its type, as the source writes it
    doc: str
    owner: Any  # the dataclass that holds the field

    @property
    def is_text(self) -> bool:
        return self.kind in ("str", "str | None")

    @property
    def is_nullable(self) -> bool:
        return self.kind.endswith(" | None")

    @property
    def is_number(self) -> bool:
        """Return whether the value is a number or a list of numbers."""
        return re.fullmatch(r"(int|float|list\[(int|float)\])( \| None)?", self.kind) is not None

    @property
    def is_path(self) -> bool:
        """Whether the value is a path or a list of paths."""
        return self._is_named_in(PATHS)

    def _is_named_in(self, fields: dict[str, set[str]]) -> bool:
        """Return whether a table {class: its fields} has the field that this setting is."""
        return any(self.key.rpartition(".")[2] in fields.get(c.__name__, ()) for c in self.owner.__mro__)

    def expanded(self, value: Any) -> Any:
        """Return a path, or a list of them, with ``~`` expanded; UserError for what is none. Other values stay.

        A path that may be left out is empty by default, and may be empty.
        """
        if isinstance(value, list):
            return [self.expanded(each) for each in value]
        if (
            not self.is_path
            or not isinstance(value, str)
            or value == getattr(self.owner, self.key.rpartition(".")[2], None)
        ):
            return value
        scheme, separator, _ = value.partition("://")
        if separator and scheme.isalnum() and scheme.lower() != "file" and self._is_named_in(ADDRESSES):
            return value
        path = user_path(value, self.key)
        if not value.startswith("~"):
            return value
        return str(path.absolute())  # so that nobody expands it again

    @property
    def range(self) -> tuple[float, float] | None:
        """Return the least and the greatest value, from the table of the class that defines the field; None without."""
        field = self.key.rpartition(".")[2]
        return next(
            (RANGES[c.__name__][field] for c in self.owner.__mro__ if field in RANGES.get(c.__name__, {})), None
        )

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the words of which the value must be one; empty where any text may be given."""
        field = self.key.rpartition(".")[2]
        return next(
            (CHOICES[c.__name__][field] for c in self.owner.__mro__ if field in CHOICES.get(c.__name__, {})), ()
        )

    def check_flag(self, value: object) -> None:
        """Raise UserError for a number in place of true or false, which OmegaConf would convert."""
        if self.kind.removesuffix(" | None") in ("bool", "list[bool]"):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, int | float) and not isinstance(each, bool):
                    raise UserError(f"{self.key}={each}: expected true or false")

    def check(self, value: object) -> None:
        """Raise UserError for a number outside the setting's range, and a word that is none of its choices.

        NaN and infinities lie outside every range.
        """
        if self.choices and value is not None and value not in self.choices:
            raise UserError(f"{self.key}={value} is none of {', '.join(self.choices)}")
        if not self.is_number:
            return
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and self.range is not None:
                check_ranges({self.key: (number, *self.range)})
            elif isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{self.key}={number}: expected a finite number")


def settings(schema: type, prefix: str = "") -> Iterator[Setting]:
    """Yield the leaves of a schema in the order of its source, those of nested dataclasses among them."""
    types = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, of = prefix + field.name, types[field.name]
        if isinstance(of, type) and dataclasses.is_dataclass(of):
            yield from settings(of, f"{key}.")
        else:
            kind = of.__name__ if type(of) is type else str(of)
            kind = re.sub(r"typing.Optional\[(.*)\]", r"\1 | None", kind)
            yield Setting(key, kind, field_comments(schema)[field.name], schema)


# ---- groups ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Group:
    """A config group: one of several files to start from, chosen with NAME=OPTION."""

    name: str
    files: dict[str, Path]  # {option as users write it: its file}
    names: dict[str, str]  # {option as users write it: as Hydra finds it, relative to the folder NAME}
    default: str | None

    def options(self) -> dict[str, str]:
        """Return {option: description}: the first comment of its file, the line about the package aside."""
        found = {}
        for option, path in self.files.items():
            lines = path.read_text(encoding="utf-8").splitlines()
            comments = [line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line]
            found[option] = comments[0] if comments else ""
        return found


def groups(name: str, config_dir: Path | None = None) -> list[Group]:
    """Return the groups that configs/<name>.yaml names in its defaults list.

    Experiments are the verb's own: configs/experiment/<name>/OPTION.yaml, in a user's folder also
    experiment/OPTION.yaml. A file of the user's that Hydra would not see beside a shipped one is a UserError.
    """
    found = []
    for entry in root(name)["defaults"]:
        if not isinstance(entry, dict):
            continue
        key, default = next(iter(entry.items()))
        if key == "hydra":
            continue
        files: dict[str, Path] = {}
        names: dict[str, str] = {}
        places = [(shipped("configs"), f"{name}/" if key == "experiment" else "")]
        if config_dir is not None:
            places.append((config_dir, places[0][1]))
            if key == "experiment":
                places.append((config_dir, ""))
        for folder, prefix in places:
            for path in sorted((folder / key / prefix).glob("*.yaml")):
                if path.stem in files:
                    raise UserError(f"{path}: there is {files[path.stem]}, too: give it another name")
                files[path.stem], names[path.stem] = path, prefix + path.stem
        found.append(Group(key, files, names, default and Path(default).name))
    return found


def root(name: str) -> dict[str, Any]:
    """Return the content of configs/<name>.yaml, its defaults list included."""
    content = yaml.safe_load((shipped("configs") / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content

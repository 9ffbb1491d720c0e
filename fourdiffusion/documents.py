"""Read untrusted JSON and YAML files: bounded in size, depth and time. This module imports no torch."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable, require_file

MAX_JSON_BYTES = 2**26
MAX_YAML_BYTES = 2**22
MAX_YAML_ENTRIES = 100_000


def read_json(path: Path, remedy: str) -> Any:
    """Return the content of a JSON file of bounded size; otherwise raise UserError, which ends with ``remedy``.

    Pipes and devices are errors: they would block.
    """
    name = printable(path)
    require_file(path, remedy)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{name}: has {path.stat().st_size} bytes, at most {MAX_JSON_BYTES} are read; {remedy}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise UserError(f"{name}: is nested too deeply; {remedy}") from error
    except ValueError as error:  # of JSON, of UTF-8, and of integers with thousands of digits
        raise UserError(f"{name}: not valid JSON ({printable(error)[:200]}); {remedy}") from error


def first_non_finite(content: Any) -> str | None:
    """Return the dotted key of the first number in a JSON value that is NaN or infinite; None if all are finite."""
    open_ends: list[tuple[str, Any]] = [("", content)]
    while open_ends:
        key, value = open_ends.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return key
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        open_ends += [(f"{key}.{name}" if key else str(name), each) for name, each in inner]
    return None


def read_yaml(path: Path, remedy: str) -> Any:
    """Return the content of a YAML file of bounded size without code tags; otherwise raise UserError with ``remedy``.

    Aliases may expand a small file or refer to themselves: too many entries are an error.
    """
    name = printable(path)
    require_file(path, remedy)
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"{name}: has {path.stat().st_size} bytes, at most {MAX_YAML_BYTES} are read; {remedy}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise UserError(f"{name}: cannot be read as YAML ({reason}); {remedy}") from error
    open_ends, count = [content], 0
    while open_ends:
        value = open_ends.pop()
        count += 1
        if count > MAX_YAML_ENTRIES:
            raise UserError(f"{name}: holds more than {MAX_YAML_ENTRIES} entries; {remedy}")
        if not isinstance(value, (dict, list, str, int, float, bool, type(None))):  # a date, a set, bytes
            raise UserError(f"{name}: holds a {type(value).__name__}, {printable(value)[:40]}: quote it; {remedy}")
        open_ends += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return content

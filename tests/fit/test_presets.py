"""The presets are what docs/method.md says of them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fourdiffusion.cli.config import build, compose
from fourdiffusion.fit.settings import FitConfig

ROOT = Path(__file__).parents[2]
PRESETS = ("paper", "released", "fast")


def composed(*words: str) -> FitConfig:
    return build(compose("fit", FitConfig, ["video=x", *words]), FitConfig)


def value_of(config: FitConfig, key: str) -> Any:
    value: Any = dataclasses.asdict(config)
    for part in key.split("."):
        value = value[part]
    return value


def rows() -> list[list[str]]:
    """Return the cells of the table of presets in docs/method.md, without its head."""
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8").partition("## Paper, release and this project")[2]
    lines = [line for line in text.splitlines() if re.match(r"\| `[\w.]+` \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("number, preset", list(enumerate(PRESETS)))
def test_each_line_of_the_table_is_the_composed_setting(number: int, preset: str) -> None:
    config = composed(f"experiment={preset}")
    table = rows()
    assert len(table) > 35
    for cells in table:
        assert len(cells) == 7 and all(cells), cells
        key = cells[0].strip("`")
        assert value_of(config, key) == yaml.safe_load(cells[4 + number]), key


def test_the_table_has_every_setting_in_which_the_faithful_presets_differ() -> None:
    paper, released = (dataclasses.asdict(composed(f"experiment={preset}")) for preset in PRESETS[:2])
    keys = {cells[0].strip("`") for cells in rows()}

    def differing(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for key, value in a.items():
            if isinstance(value, dict):
                found |= differing(value, b[key], f"{prefix}{key}.")
            elif value != b[key]:
                found.add(prefix + key)
        return found

    assert differing(paper, released) == {"loss.opacity_start_step", "loss.sparsity_start_step"} <= keys

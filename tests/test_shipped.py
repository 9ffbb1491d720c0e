"""The shipped small models are those that their cards describe."""

import re
from pathlib import Path

import pytest
from conftest import ROOT
from export_small_model import sha256


@pytest.fixture(params=["small", "tiny"])
def model(request: pytest.FixtureRequest) -> Path:
    return ROOT / "data/models" / str(request.param)


def test_the_card_names_every_file_of_weights_by_its_hash(model: Path) -> None:
    listed = dict(re.findall(r"- `(\S+\.safetensors)`: `([0-9a-f]{64})`", (model / "README.md").read_text()))
    found = {str(path.relative_to(model)): sha256(path) for path in model.rglob("*.safetensors")}
    assert listed == found and len(found) == 5


def test_it_is_small(model: Path) -> None:
    assert sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) < 40e6

"""The shipped small model is the one that its card describes."""

import re

from conftest import ROOT
from export_small_model import sha256

MODEL = ROOT / "data/models/tiny"


def test_the_card_names_every_file_of_weights_by_its_hash() -> None:
    listed = dict(re.findall(r"- `(\S+\.safetensors)`: `([0-9a-f]{64})`", (MODEL / "README.md").read_text()))
    found = {str(path.relative_to(MODEL)): sha256(path) for path in MODEL.rglob("*.safetensors")}
    assert listed == found and len(found) == 5


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) < 40e6

"""The script that writes a small model as it ships: the same bytes twice, hashes and every asset in the card."""

import json
from pathlib import Path

import export_small_model
import pytest
import torch
from safetensors.torch import load_file
from tiny_model import write_model

from fourdiffusion.cli.schema import shipped
from fourdiffusion.errors import UserError

pytestmark = pytest.mark.slow


def test_the_same_model_gives_the_same_bytes_and_a_card_of_its_assets(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    for name, author in (("cat-walk", "Ann"), ("cat-run", "Ann"), ("dog-run", "Bob")):
        folder = tmp_path / "clips" / name
        folder.mkdir(parents=True)
        record = {"object": name[:3], "author": author, "license": "MIT", "source": "github:a/b"}
        (folder / "transforms.json").write_text(json.dumps(record))
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        export_small_model.export(model, folder, tmp_path / "clips", 7)
    first, second = ({path.relative_to(f): path.read_bytes() for path in f.rglob("*.*")} for f in folders)
    assert first == second
    assert json.loads(first[Path("generation_config.json")])["num_inference_steps"] == 7
    card = first[Path("README.md")].decode()
    assert "3 clips of 2 animated assets" in card and "| dog | Bob | MIT | github:a/b |" in card
    for path in folders[0].rglob("*.safetensors"):
        assert export_small_model.sha256(path) in card
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}, path


def test_the_shipped_card_is_what_the_script_writes() -> None:
    card = (shipped("data/models/tiny") / "README.md").read_text(encoding="utf-8")
    head, parts, tail = export_small_model.SYNTHETIC.partition("{parts}")
    assert card.startswith(export_small_model.HEAD + head) and tail in card and parts
    assert export_small_model.TAIL.partition("{hashes}")[0] in card


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no clips"):
        export_small_model.objects_of(tmp_path)

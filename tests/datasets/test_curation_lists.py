"""uid lists, test sets, captions, and Objaverse from a local stand-in of its folder."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fourdiffusion.cameras import orbit
from fourdiffusion.datasets.clips import Clip, write_clip
from fourdiffusion.datasets.curation import objaverse_assets
from fourdiffusion.datasets.curation.captions import add_captions, load_captioner, read_caption_table
from fourdiffusion.datasets.curation.id_lists import join_lists, read_ids
from fourdiffusion.datasets.curation.settings import ObjaverseConfig
from fourdiffusion.datasets.curation.test_sets import check_contamination, contamination, ids_in, shipped_ids
from fourdiffusion.datasets.curation.test_sets import test_sets_of as sets_of
from fourdiffusion.datasets.rendering.plan import list_assets
from fourdiffusion.datasets.rendering.settings import RenderAssetsConfig
from fourdiffusion.datasets.sampling import ClipSamples
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.errors import UserError
from fourdiffusion.prepare.objaverse import objaverse

CLEAN, TEST = "0123456789abcdef0123456789abcdef", shipped_ids("motion80")[0]


def tiny_clip(folder: Path, source: str = "", caption: str = "") -> Path:
    rgba = torch.full((4, 2, 4, 8, 8), 255, dtype=torch.uint8)
    views = orbit(torch.arange(4) * 90.0)
    write_clip(folder, Clip(folder.name, rgba, views, 45.0, torch.tensor([0.0, 1.0]), caption, "MIT", source))
    return folder


def test_the_papers_list_holds_19_test_objects() -> None:
    ids = read_ids("paper926")
    found = contamination(ids)
    assert len(ids) == 926
    assert {name: len(uids) for name, uids in found.items()} == {"consistent4d": 1, "objaversedy": 2, "motion80": 16}
    assert len(set(ids) - {uid for uids in found.values() for uid in uids}) == 907
    assert [len(shipped_ids(name)) for name in ("consistent4d", "objaversedy", "motion80")] == [7, 20, 80]


def test_ids_are_found_in_names_and_sources() -> None:
    assert ids_in(f"glbs-000-{CLEAN}-walk", f"https://sketchfab.com/3d-models/{TEST.upper()}", TEST) == [CLEAN, TEST]
    assert ids_in("0" + CLEAN, "synthetic-0000001") == []  # 33 digits are no uid
    assert sets_of(f"{TEST}-run") == ["motion80"] and sets_of(CLEAN) == []
    check_contamination([CLEAN, f"{TEST}-run"], ["motion80"], "x")
    with pytest.raises(UserError, match=rf"^{TEST}-run is an object of the test set motion80: .* x=\[motion80\]"):
        check_contamination([CLEAN, f"{TEST}-run"], ["consistent4d"], "x")


@pytest.mark.parametrize("where", ["name", "source"])
def test_training_refuses_test_objects(where: str, tmp_path: Path) -> None:
    name, source = (f"{TEST}-walk", "") if where == "name" else ("clip", f"https://sketchfab.com/models/{TEST}")
    tiny_clip(tmp_path / name, source)
    with pytest.raises(UserError, match="motion80"):
        _ = ClipSamples(DataConfig(str(tmp_path), num_frames=2), 2, 0)[0, 0]
    sample = ClipSamples(DataConfig(str(tmp_path), num_frames=2, allow_test_sets=["motion80"]), 2, 0)[0, 0]
    assert sample.target.shape == (2, 4, 3, 8, 8)
    with pytest.raises(UserError, match="allow_test_sets=motion is unknown"):
        ClipSamples(DataConfig(str(tmp_path), allow_test_sets=["motion"]), 2, 0)


def test_lists_of_each_kind_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# which\nx\n\ny # why\nx\n")
    (tmp_path / "b.json").write_text(json.dumps({"y": {"name": "z"}, "z.glb": {}}))
    np.save(tmp_path / "c.npy", np.array(["z", "w"]))
    np.save(tmp_path / "d.npy", np.array([b"w", b"y"]))
    a, b, c, d = (str(tmp_path / name) for name in ("a.txt", "b.json", "c.npy", "d.npy"))
    assert [read_ids(each) for each in (a, b, c, d)] == [["x", "y"], ["y", "z"], ["z", "w"], ["w", "y"]]
    assert join_lists([a, b, c]) == ["x", "y", "z", "w"]
    assert join_lists([a, b, c, d], 2) == ["y", "z", "w"] and join_lists([a, b, c, d], 3) == ["y"]
    with pytest.raises(UserError, match="at_least=3 of 2"):
        join_lists([a, b], 3)


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("gone.txt", lambda path: None, "no such file"),
        ("empty.txt", lambda path: path.write_text("# nothing\n"), "empty"),
        ("numbers.json", lambda path: path.write_text("[1, 2]"), "not a list of ids"),
        ("broken.json", lambda path: path.write_text("[1, "), "not valid JSON"),
        ("bytes.txt", lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        ("objects.npy", pickled, "allow_pickle=False|np.save"),
        ("numbers.npy", lambda path: np.save(path, np.arange(3)), "not a list of ids"),
        ("none.npy", lambda path: path.write_bytes(b""), "cannot be read"),
    ],
)
def test_what_is_no_list_is_named(name: str, write: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        read_ids(str(tmp_path / name))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_captions_come_from_the_table_by_uid(tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    table.write_text(f'{CLEAN},"A dog, running"\nclip,a cat\n')
    assert read_caption_table(table) == {CLEAN: "A dog, running", "clip": "a cat"}
    lines = [
        {"uid": f"{CLEAN}-run", "caption": "x"},
        {"uid": "clip", "caption": ""},
        {"uid": "other", "caption": "own"},
    ]
    found = add_captions(lines, read_caption_table(table), "")
    assert [line["caption"] for line in found] == ["A dog, running", "a cat", "own"]
    table.write_text("a,b,c\n")
    with pytest.raises(UserError, match="captions.csv:1: has 3 columns"):
        read_caption_table(table)
    with pytest.raises(UserError, match="no such file"):
        read_caption_table(tmp_path / "gone.csv")


@pytest.mark.slow
def test_a_captioner_describes_what_has_no_caption(tmp_path: Path) -> None:
    """A BLIP of random weights, saved as transformers saves the published ones."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "dog", "runs"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(words), "encoder_hidden_size": 16, "bos_token_id": 5, "sep_token_id": 3,
                    "pad_token_id": 0, "eos_token_id": 3}  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "blip")
    processor = BlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}), BertTokenizerFast(str(tmp_path / "vocab.txt"))
    )
    processor.save_pretrained(tmp_path / "blip")
    folder = tiny_clip(tmp_path / "clip")
    lines = [{"uid": "clip", "caption": "", "folder": str(folder)}, {"uid": "b", "caption": "own", "folder": "none"}]
    found = add_captions(lines, {}, str(tmp_path / "blip"))
    assert found[1]["caption"] == "own" and set(found[0]["caption"].split()) <= set(words)
    with pytest.raises(UserError, match="is not a BLIP model"):
        load_captioner(tmp_path)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the package keeps it, with two objects, one of them of a test set."""
    package = pytest.importorskip("objaverse")
    root = tmp_path / "hf-objaverse-v1"
    paths = {CLEAN: f"glbs/000-023/{CLEAN}.glb", TEST: f"glbs/000-023/{TEST}.glb"}
    for path in paths.values():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"glTF")
    (root / "metadata").mkdir()
    notes = {
        uid: {
            "name": f"Dog\n{uid[:2]}",
            "license": "by-nc",
            "user": {"username": "ada"},
            "viewerUrl": f"https://s/{uid}",
        }
        for uid in paths
    }
    for name, content in (("object-paths.json.gz", paths), ("metadata/000-023.json.gz", notes)):
        with gzip.open(root / name, "wt") as file:
            json.dump(content, file)
    monkeypatch.setattr(package, "_VERSIONED_PATH", str(root))
    return root


def test_objaverse_objects_become_assets(stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ids.txt").write_text(f"{CLEAN}\n{TEST}\n{'f' * 32}\n")
    config = ObjaverseConfig(lists=[str(tmp_path / "ids.txt")], output=str(tmp_path / "assets"))
    for _ in range(2):  # the second run finds its own links
        objaverse(config)
    printed = capsys.readouterr().out
    assert "1 objects, 1 test objects left out, 1 unknown" in printed and "1 motion80" in printed
    entries = list_assets(RenderAssetsConfig(assets=str(tmp_path / "assets" / "assets.txt"), output="x"))
    assert [(e.object, e.caption, e.license, e.author, e.source) for e in entries] == [
        (CLEAN, "Dog 01", "CC-BY-NC-4.0", "ada", f"https://s/{CLEAN}")
    ]
    assert entries[0].path.read_bytes() == b"glTF"
    (tmp_path / "captions.csv").write_text(f"{CLEAN},a brown dog\n")
    config.captions, config.allow_test_sets = str(tmp_path / "captions.csv"), ["motion80"]
    objaverse(config)
    entries = list_assets(RenderAssetsConfig(assets=str(tmp_path / "assets" / "assets.txt"), output="x"))
    assert {e.object: e.caption for e in entries} == {CLEAN: "a brown dog", TEST: f"Dog {TEST[:2]}"}


def test_objaverse_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="lists is empty"):
        objaverse(ObjaverseConfig(output=str(tmp_path)))
    monkeypatch.setattr(objaverse_assets.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"fourdiffusion\[objaverse\]"):
        objaverse(ObjaverseConfig(lists=["paper926"], output=str(tmp_path)))

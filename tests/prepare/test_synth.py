"""``data synth``: what a folder of clips holds, faults included, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from fourdiffusion.datasets.clips import list_clips, read_clip
from fourdiffusion.datasets.synthetic import TEST_SEED_START, make_creature
from fourdiffusion.datasets.synthetic.body_plans import PLANS, UNSEEN_PLANS
from fourdiffusion.errors import UserError
from fourdiffusion.prepare.settings import FAULTS, SynthConfig
from fourdiffusion.prepare.synth import fault, make_clip, synth

pytestmark = pytest.mark.slow


def config(output: Path, **changes: object) -> SynthConfig:
    return SynthConfig(str(output), **{"num_views": 4, "num_frames": 3, "size": 24, **changes})  # type: ignore[arg-type]


def test_a_folder_grows_and_its_clips_stay(tmp_path: Path) -> None:
    synth(config(tmp_path, num_clips=1))
    before = read_clip(tmp_path / "synthetic-0000000").rgba
    synth(config(tmp_path, num_clips=2, num_faulty=1))
    assert [folder.name for folder in list_clips(tmp_path)] == [
        "faulty-0000002", "synthetic-0000000", "synthetic-0000001"
    ]  # fmt: skip
    assert torch.equal(read_clip(tmp_path / "synthetic-0000000").rgba, before)
    with pytest.raises(UserError, match="holds clips made with size=24; use that or another folder"):
        synth(config(tmp_path, num_clips=2, size=16))


def test_a_folder_of_before_there_were_unseen_plans_goes_on(tmp_path: Path) -> None:
    synth(config(tmp_path, num_clips=1))
    note = tmp_path / "synth.json"
    content = json.loads(note.read_text())
    assert content.pop("plans") == "seen"
    note.write_text(json.dumps(content))
    synth(config(tmp_path, num_clips=2))
    with pytest.raises(UserError, match="split=train, plans=seen"):
        synth(config(tmp_path, num_clips=2, split="test", plans="unseen"))


def test_unseen_plans_are_no_plans_of_training() -> None:
    creatures = [make_creature(TEST_SEED_START + number, unseen=True) for number in range(12)]
    assert {creature.plan for creature in creatures} == set(UNSEEN_PLANS)
    assert not set(UNSEEN_PLANS) & set(PLANS)
    for creature in creatures:
        assert creature.plan in creature.caption


def clip(seed: int, faulty: bool, frames: int = 5) -> torch.Tensor:
    """Alpha-weighted pictures [V, F, 4, H, W] in [0, 1]."""
    return make_clip(SynthConfig("", num_views=4, num_frames=frames, size=32), seed, faulty).rgba.float() / 255


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_what_it_is_called(kind: str) -> None:
    seed = 40 + FAULTS.index(kind)
    pictures = clip(seed, faulty=True)
    seen = pictures[:, :, 3].mean(dim=(2, 3))  # [V, F] share of the picture
    if kind == "static":
        assert torch.equal(pictures, pictures[:, :1].expand_as(pictures)) and float(seen.min()) > 0.02
    elif kind == "turning":  # the object itself is still: its azimuth alone changes
        shown, turn, shift = fault(seed, torch.linspace(0, 1, 5))
        assert len(shown.unique()) == 1 and not shift.any()
        assert 120 <= float(turn[-1].abs()) <= 360 and float(turn[0]) == 0
        assert float((pictures[:, 0] - pictures[:, 2]).abs().mean()) > 0.01
    elif kind == "leaving":
        assert float(seen[:, -1].mean()) < 0.8 * float(seen[:, 0].mean())
    else:
        shown, turn, _ = fault(seed, torch.linspace(0, 1, 5))
        assert bool((shown.diff() < 0).any()) and float(turn.diff().abs().max()) > 20
    assert not torch.equal(pictures, clip(seed, faulty=False))


def test_the_clip_says_that_it_is_faulty_and_its_cameras_do_not(tmp_path: Path) -> None:
    good, bad = (make_clip(config(tmp_path), 42, faulty) for faulty in (False, True))
    assert bad.source.endswith("fault leaving") and "fault" not in good.source
    assert torch.equal(good.c2w, bad.c2w) and torch.equal(good.times, bad.times)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"plans": "unseen"}, "plans=unseen is what no training clip shows: set split=test"),
        ({"plans": "odd"}, "plans=odd is unknown; choose one of seen, unseen"),
        ({"num_faulty": -1}, "num_faulty=-1 is negative"),
        ({"first_seed": TEST_SEED_START - 2, "num_clips": 1, "num_faulty": 2}, "reaches the test seeds"),
    ],
)
def test_what_it_refuses(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        synth(config(tmp_path / "clips", **changes))
    assert not (tmp_path / "clips").exists()


def test_clips_are_not_written_among_the_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds letter.txt and no synth.json: give an empty or a new folder"):
        synth(config(tmp_path, num_clips=1))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]

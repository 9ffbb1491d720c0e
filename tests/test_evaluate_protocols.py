"""`evaluate` on anybody's frames: protocols by name, and the mistakes that they must not pass over in silence."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_folder import distort, picture, write_benchmark
from PIL import Image

from fourdiffusion.errors import UserError
from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.collection import find_videos, view_name
from fourdiffusion.evaluate.settings import EvaluateConfig, ProtocolConfig, load_protocol, protocol_hash, read_protocol
from fourdiffusion.evaluate.tables import table_rows
from fourdiffusion.media.write import write_video

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs" / "protocol").glob("*.yaml"))
SIZE, VIEWS, FRAMES = 48, 4, 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_benchmark(folder, 2, VIEWS, FRAMES, SIZE, {"mild": 0.1, "strong": 0.5})
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A prediction that a test may spoil."""
    return Path(shutil.copytree(made / "mild", tmp_path / "pred"))


def small(name: str, **changes: Any) -> ProtocolConfig:
    """A shipped protocol at the size of the pictures here and without networks."""
    protocol = load_protocol(name)
    metrics = [metric for metric in ("psnr", "ssim", "temporal_error") if metric in protocol.metrics] or ["psnr"]
    return dataclasses.replace(protocol, **({"size": None, "metrics": metrics, "fvd": ""} | changes))


def run(prediction: Path, reference: Path, output: Path, protocol: ProtocolConfig, **settings: Any) -> dict[str, Any]:
    evaluate(EvaluateConfig(str(prediction), str(reference), str(output), protocol=protocol, **settings))
    report: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return report


# ---- protocols ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_protocol_names_its_source(name: str) -> None:
    import yaml

    protocol = load_protocol(name)
    written = yaml.safe_load((ROOT / "configs" / "protocol" / f"{name}.yaml").read_text())
    assert protocol.name == name and protocol.description
    assert set(written) - {"name", "description", "sources"} <= set(protocol.sources)
    for setting, source in protocol.sources.items():
        known = source.startswith("ours") or any(sign in source for sign in ("@", "#", "arXiv", "the paper's"))
        assert known or setting == "repository", f"{setting}: {source}"


def test_the_protocols_asked_for_are_there() -> None:
    assert set(NAMES) >= {
        "consistent4d", "consistent4d_honest", "stag4d", "diffusion2", "v2m4", "motion324", "sv4d", "fourdgen",
        "paper_table1", "paper_table2", "synthetic",
    }  # fmt: skip
    assert load_protocol("consistent4d").fvd == "consistent4d" and load_protocol("v2m4").lpips_spatial
    assert load_protocol("stag4d").frames == 30 and load_protocol("diffusion2").frames == 25
    assert load_protocol("sv4d").fvd_axes == ["frames", "views", "diagonal", "raster"]
    assert dataclasses.replace(load_protocol("synthetic"), description="", sources={}, weights={}) == ProtocolConfig()


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: x\nframe: 3", "no setting 'frame'"),
        ("size: large", "size is 'large'"),
        ("views: [0, 1]", "views is"),
        ("alpha: white", "protocol.alpha='white': give 'composite'"),
        ("metrics: [psnr, fid]", "holds 'fid'"),
        ("metrics: [fvd]", "no formula"),
        ("- 3", "holds no settings"),
        ("a: [", "cannot be read|can be read"),
    ],
)
def test_a_protocol_file_is_checked(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_protocol(tmp_path / "own.yaml")


def test_the_hash_is_of_what_a_protocol_does() -> None:
    protocol = load_protocol("consistent4d")
    assert protocol_hash(dataclasses.replace(protocol, description="other")) == protocol_hash(protocol)
    assert protocol_hash(dataclasses.replace(protocol, size=256)) != protocol_hash(protocol)
    with pytest.raises(UserError, match="no protocol 'c4d'"):
        load_protocol("c4d")


# ---- what is measured -----------------------------------------------------------------------------------------------


def test_distortions_are_ordered_and_two_runs_are_equal_byte_for_byte(made: Path, tmp_path: Path) -> None:
    mild = run(made / "mild", made / "gt", tmp_path / "a", small("consistent4d"))
    strong = run(made / "strong", made / "gt", tmp_path / "b", small("consistent4d"))
    same = run(made / "gt", made / "gt", tmp_path / "c", small("consistent4d"))
    for metric in ("psnr", "ssim"):
        assert strong["mean"][metric] < mild["mean"][metric] < same["mean"][metric]
    assert same["mean"] == {"psnr": 100.0, "ssim": 1.0}
    run(made / "mild", made / "gt", tmp_path / "again", small("consistent4d"))
    assert (tmp_path / "again" / "metrics.json").read_bytes() == (tmp_path / "a" / "metrics.json").read_bytes()
    assert mild["protocol"]["sha256"] == protocol_hash(small("consistent4d")) and "torch" in mild["versions"]
    assert "lpips_vgg" not in mild["mean"]


def test_averages_and_ranges_are_those_of_the_script(made: Path, tmp_path: Path) -> None:
    """By hand: the true picture's extent is the range, frames then views then objects."""
    report = run(made / "mild", made / "gt", tmp_path, small("consistent4d"))
    objects = []
    for number in range(2):
        views = []
        for view in range(VIEWS):
            values = []
            for frame in range(FRAMES):
                true = picture(number, view, frame, SIZE).astype(float)
                path = made / "mild" / f"object{number}" / f"eval_{view}" / f"{frame}.png"
                error = ((np.asarray(Image.open(path)).astype(float) - true) ** 2).mean()
                values.append(10 * math.log10((true.max() - true.min()) ** 2 / error))
            views.append(np.mean(values))
        objects.append(np.mean(views))
        entry = report["objects"][f"object{number}"]
        assert entry["views"]["2"]["mean"]["psnr"] == pytest.approx(views[2], abs=1e-4)
    assert report["mean"]["psnr"] == pytest.approx(np.mean(objects), abs=1e-4)
    fixed = run(made / "mild", made / "gt", tmp_path, small("consistent4d", data_range="fixed"))
    assert fixed["mean"]["psnr"] > report["mean"]["psnr"]


def test_a_missing_network_is_reported_with_its_line(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    protocol = small("stag4d", metrics=["psnr", "lpips_vgg", "fvd", "clip_i", "fid_vid"], fvd="consistent4d")
    protocol = dataclasses.replace(protocol, clip_encoder="nobody/no-encoder")
    report = run(made / "mild", made / "gt", tmp_path / "out", protocol)
    assert list(report["mean"]) == ["psnr"]
    said = "\n".join(report["missing"])
    for name in ("lpips_vgg", "fvd", "clip [no-encoder]", "fid_vid"):
        assert f"{name}: missing" in said and f"{name}: missing" in capsys.readouterr().out + said


def test_tables_put_published_rows_apart_and_pair_methods(made: Path, tmp_path: Path) -> None:
    run(made / "strong", made / "gt", tmp_path / "strong", small("consistent4d"))
    report = run(
        made / "mild", made / "gt", tmp_path / "mild", small("consistent4d"), compare=[str(tmp_path / "strong")]
    )
    table = json.loads((tmp_path / "mild" / "table.json").read_text())
    assert [row["published"] for row in table["rows"]] == [False, False, True]
    assert table["rows"][2]["values"] == {"psnr": 17.25}
    paired = next(each for each in table["paired"] if each["metric"] == "psnr")
    other = json.loads((tmp_path / "strong" / "metrics.json").read_text())
    assert paired["mean"] == pytest.approx(report["mean"]["psnr"] - other["mean"]["psnr"], abs=1e-6)
    assert paired["num_objects"] == 2 and paired["standard_error"] > 0
    assert "Consistent4D (published)" in (tmp_path / "mild" / "table.md").read_text()
    assert r"$^\dagger$" in (tmp_path / "mild" / "table.tex").read_text()
    with pytest.raises(UserError, match="other settings than now"):
        run(made / "mild", made / "gt", tmp_path, small("synthetic"), compare=[str(tmp_path / "strong")])


def test_a_published_value_stands_only_under_its_own_network() -> None:
    report = {"prediction": "mine", "objects": {}, "protocol": {"changed": []}}
    columns = {"lpips_vgg": 0.2, "lpips_squeeze": 0.1, "clip_i [ViT-bigG]": 0.8}
    benchmark = table_rows(report | {"mean": columns}, {}, load_protocol("consistent4d"))
    assert benchmark["rows"][-1]["values"] == {"lpips_vgg": 0.1316}
    paper = table_rows(report | {"mean": columns}, {}, load_protocol("paper_table1"))
    assert set(paper["rows"][-1]["values"]) == {"clip_i [ViT-bigG]"}  # which LPIPS is not published, and here are two
    one = table_rows(report | {"mean": {"lpips_vgg": 0.2}}, {}, load_protocol("paper_table1"))
    assert one["rows"][-1] == {"method": "4Diffusion", "published": True, "values": {"lpips_vgg": 0.1199}}


def test_the_page_is_one_file_with_every_video(made: Path, tmp_path: Path) -> None:
    run(made / "mild", made / "gt", tmp_path, small("consistent4d"), page=True)
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:video/mp4;base64,") == 2 * VIEWS and text.count("<polyline") == 4 * VIEWS
    assert "http" not in text.replace("http://www.w3.org", "")


def test_the_command_line_takes_a_protocol_by_its_name(made: Path, tmp_path: Path) -> None:
    from fourdiffusion.cli import main
    from fourdiffusion.cli.config import build, compose

    given = ["prediction=a", "reference=b", "protocol=v2m4"]
    composed = build(compose("evaluate", EvaluateConfig, given), EvaluateConfig)
    assert composed.protocol == load_protocol("v2m4") and composed.reference == "b"
    words = [f"prediction={made / 'mild'}", f"truth={made / 'gt'}", f"output={tmp_path}", "protocol=consistent4d"]
    assert main(["evaluate", *words, "protocol.metrics=[psnr]", "protocol.size=null"]) == 0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["protocol"]["name"] == "consistent4d" and "size=None" in report["protocol"]["changed"]
    assert "size=None" in report["notes"][0]
    assert main(["evaluate", *words, "protocol.alpha=white"]) == 2


# ---- traps ----------------------------------------------------------------------------------------------------------


def test_fewer_frames_than_the_truth(copy: Path, made: Path, tmp_path: Path) -> None:
    for path in copy.glob("*/*/[345].png"):
        path.unlink()
    report = run(copy, made / "gt", tmp_path / "a", small("consistent4d"))
    assert any("3 predicted frames against 6: the first 3" in note for note in report["notes"])
    with pytest.raises(UserError, match="object0, view 0: 3 frames against 6, number 3, 4, 5 only on one side"):
        run(copy, made / "gt", tmp_path / "b", small("consistent4d_honest"))
    assert not (tmp_path / "b").exists()


def test_every_other_frame_is_not_the_first_half(copy: Path, made: Path, tmp_path: Path) -> None:
    """The same content under numbers 0, 2, 4: by number it fits, by order it does not, and that is said."""
    for path in copy.glob("*/*/[135].png"):
        path.unlink()
    by_order = run(copy, made / "gt", tmp_path / "a", small("consistent4d"))
    assert any("paired by order, their numbers differ" in note for note in by_order["notes"])
    by_number = run(copy, made / "gt", tmp_path / "b", small("consistent4d_honest", frame_mismatch="first"))
    assert by_number["mean"]["psnr"] > by_order["mean"]["psnr"] + 1


def test_renamed_and_missing_objects(copy: Path, made: Path, tmp_path: Path) -> None:
    (copy / "object1").rename(copy / "objekt1")
    with pytest.raises(UserError, match="lacks object object1; .* lacks object objekt1: rename"):
        run(copy, made / "gt", tmp_path / "out", small("consistent4d"))
    report = run(copy, made / "gt", tmp_path / "out", small("consistent4d", object_mismatch="shared"))
    assert list(report["objects"]) == ["object0"] and sum("left out" in note for note in report["notes"]) == 2


def test_another_order_of_views(copy: Path, made: Path, tmp_path: Path) -> None:
    for place in copy.iterdir():
        (place / "eval_0").rename(place / "swap")
        (place / "eval_2").rename(place / "eval_0")
        (place / "swap").rename(place / "eval_2")
    with pytest.raises(UserError, match="views look exchanged .* 0 is 2, 1 is 1, 2 is 0"):
        run(copy, made / "gt", tmp_path / "out", small("consistent4d"))
    run(copy, made / "gt", tmp_path / "out", small("consistent4d", check_pairing=False))
    shutil.rmtree(copy / "object0" / "eval_3")
    with pytest.raises(UserError, match="compares views 0, 1, 2, 3, 3 missing"):
        run(copy, made / "gt", tmp_path / "out", small("consistent4d"))


def test_blue_and_red_exchanged(copy: Path, made: Path, tmp_path: Path) -> None:
    for path in copy.glob("*/*/*.png"):
        Image.fromarray(np.asarray(Image.open(path))[..., ::-1].copy()).save(path)
    with pytest.raises(UserError, match="red and blue look exchanged"):
        run(copy, made / "gt", tmp_path / "out", small("consistent4d"))


def test_transparent_against_white(made: Path, tmp_path: Path) -> None:
    reference = tmp_path / "gt"
    for number in range(2):
        for view in range(VIEWS):
            place = reference / f"object{number}" / f"eval_{view}"
            place.mkdir(parents=True)
            for frame in range(FRAMES):
                Image.fromarray(picture(number, view, frame, SIZE, alpha=True)).save(place / f"{frame}.png")
    white = run(made / "gt", reference, tmp_path / "a", small("consistent4d"))
    assert white["mean"]["psnr"] == 100 and any("only the reference has transparent" in n for n in white["notes"])
    dropped = run(made / "gt", reference, tmp_path / "b", small("consistent4d", alpha="drop"))
    assert dropped["mean"]["psnr"] < 20 and any("hidden colors count" in note for note in dropped["notes"])
    with pytest.raises(UserError, match="transparent pixels"):
        run(made / "gt", reference, tmp_path / "c", small("consistent4d", alpha="refuse"))


def test_wrong_size(copy: Path, made: Path, tmp_path: Path) -> None:
    first = copy / "object0" / "eval_0" / "0.png"
    Image.fromarray(np.zeros((SIZE, SIZE + 2, 3), np.uint8)).save(first)
    with pytest.raises(UserError, match="all frames of a view must have one size"):
        run(copy, made / "gt", tmp_path / "out", small("consistent4d"))
    shutil.rmtree(copy)
    write_benchmark(tmp_path, 2, VIEWS, FRAMES, 40, {"pred": 0.0})
    with pytest.raises(UserError, match="40 x 40 pixels, the reference 48 x 48: name one size"):
        run(tmp_path / "pred", made / "gt", tmp_path / "out", small("consistent4d"))
    report = run(tmp_path / "pred", made / "gt", tmp_path / "out", small("consistent4d", size=32))
    assert report["mean"]["psnr"] > 20


def test_a_reversed_tail_pads_as_motion324_does_and_v2m4_drops(made: Path, tmp_path: Path) -> None:
    padded = run(made / "mild", made / "gt", tmp_path, small("motion324", clip_length=8))
    assert len(padded["objects"]["object0"]["views"]["0"]["per_frame"]["psnr"]) == 8
    values = padded["objects"]["object0"]["views"]["0"]["per_frame"]["psnr"]
    assert values[6:] == [values[5], values[4]]
    assert any("6 frames are padded to 8 by their reversed tail" in note for note in padded["notes"])
    with pytest.raises(UserError, match="cannot be padded to 16"):
        run(made / "mild", made / "gt", tmp_path, small("motion324", clip_length=16))
    with pytest.raises(UserError, match="nothing is left .* fewer than 8: the video is left out"):
        run(made / "mild", made / "gt", tmp_path, small("v2m4", clip_length=8))
    cut = run(made / "mild", made / "gt", tmp_path, small("v2m4", clip_length=4))
    assert any("the last 2 are left out" in note for note in cut["notes"])


# ---- layouts --------------------------------------------------------------------------------------------------------


def test_videos_frames_and_names_of_views(made: Path, tmp_path: Path) -> None:
    assert [view_name(name) for name in ("eval_2", "view_02", "2", "front")] == ["2", "2", "2", "front"]
    frames = torch.stack([torch.from_numpy(picture(0, 0, f, 64)).permute(2, 0, 1) / 255 for f in range(4)])
    (tmp_path / "a" / "one").mkdir(parents=True)
    write_video(tmp_path / "a" / "one" / "view_0.mp4", frames, min_side=1)
    write_video(tmp_path / "b" / "one.mp4", frames, min_side=1)
    for number, frame in enumerate(frames):
        place = tmp_path / "c" / "one" / "view_0"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((frame.permute(1, 2, 0) * 255).round().byte().numpy()).save(
            place / f"frame_{number + 1:03d}.png"
        )
    for folder in "abc":
        found = find_videos(tmp_path / folder)
        assert {name: list(views) for name, views in found.objects.items()} == {"one": ["0"]}
        assert found.objects["one"]["0"].read().shape == (4, 64, 64, 4)
    report = run(tmp_path / "a", tmp_path / "c", tmp_path / "out", small("consistent4d", views=[]))
    assert report["mean"]["psnr"] > 30  # H.264 alone
    with pytest.raises(UserError, match="number 4 only on one side|only on one side"):
        run(tmp_path / "a", tmp_path / "c", tmp_path / "out", small("synthetic"))
    with pytest.raises(UserError, match="holds no videos"):
        find_videos(tmp_path / "out")
    (tmp_path / "c" / "one" / "view_0" / "cover.png").write_bytes(b"")
    with pytest.raises(UserError, match="holds no number"):
        find_videos(tmp_path / "c")


def test_distortion_helper_is_repeatable() -> None:
    pixels = picture(0, 1, 2, SIZE)
    assert np.array_equal(distort(pixels, 0.3, 5), distort(pixels, 0.3, 5))

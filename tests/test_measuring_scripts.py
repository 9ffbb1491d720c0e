"""The scripts that measure: sections of the page, means, views, and one small table and one sheet from start to end."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import ablation
import against_first_edition
import forks
import held_out
import presets
import pytest
import quality_time
import report
import sample_sheets
import small_tables
import torch
import training_curve
import yaml
from omegaconf import OmegaConf
from PIL import Image
from tiny_model import FRAMES, SIZE, balls, picture, tiny_pipeline

from fourdiffusion import cameras
from fourdiffusion.cli import config
from fourdiffusion.datasets.clips import Clip, opaque_clip, write_clip
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.diffusion.loading import load_pipeline, open_pipeline
from fourdiffusion.errors import UserError
from fourdiffusion.files import save_tensors
from fourdiffusion.fit.settings import FitConfig
from fourdiffusion.ops.settings import HashGridConfig
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene, render_views, save_scene
from fourdiffusion.scene.settings import FieldConfig, RendererConfig
from fourdiffusion.train.loop import train
from fourdiffusion.train.settings import TrainConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_pipeline(moving=True).save_whole(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two objects, eight views of each, those of the input not the first."""
    folder = tmp_path_factory.mktemp("clips")
    c2w = cameras.orbit(cameras.orthogonal_azimuths(8).roll(3))
    times = torch.linspace(0, 1, FRAMES)
    for index in range(2):
        rgba = picture(c2w[:, None].expand(-1, FRAMES, 4, 4), balls(index, times).expand(8, FRAMES, 3, 3))
        pixels = (rgba * 255).round().to(torch.uint8)
        clip = Clip(f"clip-{index}", pixels, c2w, cameras.FOVY_DEG, times, "balls, three", "Apache-2.0", "a test")
        write_clip(folder / clip.uid, clip)
    return folder


def call(monkeypatch: pytest.MonkeyPatch, script: object, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", *map(str, words)])
    script.main()  # type: ignore[attr-defined]


def test_a_section_is_replaced_and_the_others_stay() -> None:
    page = report.replace_section("# Results\n", "one", "first")
    page = report.replace_section(page, "two", "second")
    assert page.startswith("# Results\n\n<!-- one: begin -->\nfirst\n<!-- one: end -->\n\n<!-- two: begin -->")
    again = report.replace_section(page, "one", "changed\nin lines\n")
    assert again == page.replace("first", "changed\nin lines")
    assert report.replace_section(again, "one", "first") == page
    with pytest.raises(UserError, match="no '<!-- one: end -->'"):
        report.replace_section(page.replace("<!-- one: end -->", ""), "one", "x")


def test_spread_is_over_objects_not_over_seeds() -> None:
    lines = [{"row": "a", "object": name, "psnr": value} for name, value in [("x", 8.0), ("x", 12.0), ("y", 14.0)]]
    lines += [{"row": "b", "object": "x", "psnr": 1.0, "seconds": None}]
    assert report.over_objects(lines, "a", "psnr") == [10.0, 14.0]
    text = report.table(lines, ["a", "b"], ["psnr", "seconds"])
    assert text.splitlines()[2:] == ["| a | 12.00 ± 2.83 | - |", "| b | 1.00 | - |"]


def test_views_are_found_by_their_cameras() -> None:
    c2w = cameras.orbit(torch.tensor([45.0, 270.0, 0.0, 90.0, 180.0]))
    assert held_out.choose_views(c2w, 4) == [2, 3, 4, 1]
    assert held_out.choose_views(c2w, 1) == [2]
    for views, azimuth in ((6, 60), (8, 135)):
        with pytest.raises(UserError, match=f"no camera at azimuth {azimuth}:"):
            held_out.choose_views(c2w, views)
    with pytest.raises(UserError, match="azimuth 0:"):
        held_out.choose_views(cameras.orbit(torch.tensor([0.0]), 30.0), 1)


def test_without_motion_a_sample_is_made_frame_by_frame(model: Path, clips: Path) -> None:
    """The first frame's sample hears of the others with motion layers, and only then."""
    words = ["model.num_inference_steps=1", f"model.image_size={SIZE}"]
    settings = held_out.sampling_settings(clips, str(model), FRAMES, 4, words)
    example = held_out.read_example(clips / "clip-0", settings)
    other = held_out.Example(example.caption, torch.cat([example.truth[:, :1], 1 - example.truth[:, 1:]], dim=1))
    pipeline = load_pipeline(model)
    for use_motion in (True, False):
        a, b = (held_out.sample(pipeline, settings, x, 0, use_motion)[:, 0] for x in (example, other))
        assert torch.allclose(a, b, atol=1e-5) != use_motion


def test_a_table_from_clips_to_page(model: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two objects, two seeds, five rows of a model; the second call, cut off in a line, makes only that again."""
    run, page, other = tmp_path / "run", tmp_path / "results.md", tmp_path / "other"
    shutil.copytree(model, other)
    own = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps(own | {"image_size": SIZE // 2}))
    words = [clips, "--model", model, "--uncurated", model / "motion", "--objects", 2, "--seeds", 2, "--frames", FRAMES]
    words += ["--against", other]
    words += ["--run", run, "--output", page, "model.num_inference_steps=1", f"model.image_size={SIZE}", "device=cpu"]
    call(monkeypatch, small_tables, *words)
    text, log = page.read_text(), (run / "log.jsonl").read_text()
    assert len(log.splitlines()) == 2 * (5 * 2 + 1)
    reports = {path: json.loads(path.read_text()) for path in run.glob("samples/*/metrics_*/metrics.json")}
    assert len(reports) == 5 * 2 + 1 and all(each["protocol"]["name"] == "synthetic" for each in reports.values())
    values = {
        (path, name): each["objects"][name]["mean"]["psnr"]
        for path, each in reports.items()
        for name in each["objects"]
    }
    assert len(set(values.values())) == 2 * (4 * 2 + 1)  # "uncurated" is the same model here, all others differ
    assert "stand 90, 180, 270 degrees" in text and "left out" not in text and "2 test objects" in text
    for name, slug in (
        (small_tables.MOTION, "4DM-"),
        (small_tables.NO_CAPTION, "4DM_captions_absent-"),
        (small_tables.COPIED, "copied_input-"),
        (small_tables.OTHER, "another_model_at_its_own_size-"),
    ):
        means = [
            sum(those) / len(those)
            for each in ("clip-0", "clip-1")
            if (those := [value for (path, which), value in values.items() if which == each and slug in str(path)])
        ]
        assert f"| {name} | {report.cell(means, 2)} |" in text
    difference = f"| {small_tables.UNCURATED} | +0.000 ± 0.000 |"
    assert difference in text  # 4DM minus itself

    (run / "log.jsonl").write_text(log[:-20])
    call(monkeypatch, small_tables, *words)
    assert page.read_text() == text
    assert (run / "log.jsonl").read_text() == log
    with pytest.raises(UserError, match="holds a run with model.num_inference_steps=1"):
        call(monkeypatch, small_tables, *words, "model.num_inference_steps=2")
    with pytest.raises(UserError, match="has 4 frames: give --frames 4"):
        call(monkeypatch, small_tables, *words, "--frames", 8)


def test_paired_differences_are_over_objects() -> None:
    lines = [{"row": "a", "object": name, "psnr": value} for name, value in [("x", 8.0), ("x", 12.0), ("y", 14.0)]]
    lines += [{"row": "b", "object": name, "psnr": value} for name, value in [("x", 9.0), ("y", 11.0)]]
    text = report.paired_table(lines, "a", ["b"])
    assert text.splitlines()[-1] == "| b | +2.000 ± 1.000 |"


def test_a_training_curve_measures_the_moving_averages(
    model: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 0 is the base model frame by frame, the last step what the run exported; a second call measures nothing."""
    data = DataConfig(str(clips), num_views=4, num_frames=FRAMES)
    config = TrainConfig(
        "motion", str(tmp_path), max_steps=4, batch_size=1, learning_rate=1e-2, data=data, keep_every=2
    )
    config.model.path, config.validation_every, config.trackers, config.cpu = str(model), 0, [], True
    train(config)
    words = [clips, tmp_path, "--objects", 2, "--frames", FRAMES]
    words += ["model.num_inference_steps=1", f"model.image_size={SIZE}", "device=cpu"]
    call(monkeypatch, training_curve, *words)
    log = (tmp_path / "curve/log.jsonl").read_text()
    points = training_curve.means([json.loads(line) for line in log.splitlines()], {"clip-0", "clip-1"}, 1)
    assert list(points) == [0, 2, 4]

    for step, folder, use_motion in ((0, model, False), (4, tmp_path / "model", True)):
        settings = held_out.sampling_settings(clips, str(folder), FRAMES, 4, words[6:])
        pipeline = open_pipeline(settings.model, torch.device("cpu"))
        row = small_tables.Row("", pipeline, use_motion, "", range(0))
        both = [small_tables.measure(settings, clips / f"clip-{index}", row, 0)["psnr"] for index in range(2)]
        assert points[step]["psnr"] == pytest.approx(sum(both) / 2, abs=1e-6)
    assert len({point["psnr"] for point in points.values()}) == 3
    call(monkeypatch, training_curve, *words)
    assert (tmp_path / "curve/log.jsonl").read_text() == log
    with pytest.raises(UserError, match="train with keep_every=STEPS"):
        (tmp_path / "kept").rename(tmp_path / "gone")
        call(monkeypatch, training_curve, *words)


def test_a_sheet_has_two_rows_an_object(
    model: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", model, "--frames", FRAMES, "model.num_inference_steps=1", f"model.image_size={SIZE}"]
    call(monkeypatch, sample_sheets, clips, tmp_path / "sheet.png", "--objects", 2, *words)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height // 64 == 4 and sheet.width // 64 >= 12
    with pytest.raises(UserError, match="holds 2 clips, give 1 to 2"):
        call(monkeypatch, sample_sheets, clips, tmp_path / "more.png", "--objects", 3, *words)


def small_scene() -> Scene:
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4)
    renderer = RendererConfig(num_samples=16, occupancy_resolution=8)
    field = DynamicField(FieldConfig(space=grid, spacetime=grid, hidden_width=8), backend="torch")
    with torch.no_grad():
        field.space.params.normal_(generator=torch.Generator().manual_seed(2))
    return Scene(field, OccupancyGrid(renderer), renderer)


def test_the_ablations_words_are_settings_of_fit() -> None:
    schema = config.load_settings_class("fourdiffusion.fit.settings:FitConfig")
    for words in ablation.VARIANTS.values():
        settings = config.compose("fit", schema, words)
        for key, value in (word.split("=") for word in words):
            assert OmegaConf.select(settings, key) in (yaml.safe_load(value), value)


def test_the_ablation_fits_each_object_with_each_seed_and_pairs_the_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, clips: Path
) -> None:
    """Scores rise with seed and object; "full" is 2 dB above "without SDS" on each object."""
    gain = {"full": 2.0, "without_4D-SDS": 1.0, "without_anchor": 0.5, "without_SDS": 0.0}
    done: list[tuple[str, str, str]] = []

    def fit(run: Path, words: list[str], weights: str) -> dict[str, object]:
        name, _, seed = run.name.rpartition("_")
        assert f"seed={seed}" in words and f"model.path={model}" in words
        assert ("sds.source=off" in words) == (name == "without_SDS")
        done.append((run.parent.name, name, seed))
        psnr = 10 + gain[name] + 4 * int(seed) + int(run.parent.name[-1])
        scene = {"mean_by_role": {"novel": {"psnr": psnr}}, "baseline": {"mean_by_role": {"novel": {"psnr": 9.0}}}}
        run.mkdir(parents=True)
        (run / "metrics.json").write_text(json.dumps({"scene": scene}))
        return {"seconds": 1.0, "commit": "c"}

    monkeypatch.setattr(ablation, "fit_once", fit)
    page = tmp_path / "page.md"
    words = ("--model", model, "--objects", 2, "--seeds", 2, "--run", tmp_path / "runs", "--output", page)
    call(monkeypatch, ablation, clips, *words)
    assert sorted(done) == sorted((f"clip-{n}", row, seed) for n in (0, 1) for row in gain for seed in "01")
    text = page.read_text()
    rows = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}  # the last: paired
    assert "2 fits each" in text and "+2.000" in rows["without SDS"] and "+1.000" in rows["without 4D-SDS"]


def test_both_editions_are_measured_between_the_generated_views_and_summed(tmp_path: Path) -> None:
    scene = small_scene()
    c2w, times = cameras.orbit(torch.arange(8) * 45.0), torch.linspace(0, 1, 2)
    views = render_views(scene, c2w.repeat_interleave(2, 0), cameras.FOVY_DEG, times.repeat(8), SIZE)[0]
    videos = views.unflatten(0, (8, 2))
    videos[::2] = 0  # the generated views do not count
    save_scene(tmp_path / "scene", scene)
    truth = opaque_clip("truth", videos, c2w, cameras.FOVY_DEG, "", "a test")
    psnr, gmsd, lpips = against_first_edition.novel(tmp_path, truth, None)
    assert psnr > 50 and gmsd < 0.01 and lpips != lpips
    wrong = dataclasses.replace(truth, rgba=truth.rgba.roll(2, 0))
    assert against_first_edition.novel(tmp_path, wrong, None)[0] < psnr - 10

    make = against_first_edition.Fit
    fits = [make("first", "a", 60, 80, 15, 0.3, 0.4), make("this", "a", 20, 20, 16, 0.2, 0.3),
            make("first", "b", 30, 40, 17, 0.1, 0.2), make("this", "b", 10, 20, 20, 0.2, 0.1)]  # fmt: skip
    lines = against_first_edition.table(fits).splitlines()
    assert lines[2] == "| a | 60 | 20 | 3.00 | 4.00 | 15.00 | 16.00 | 0.300 | 0.200 | 0.400 | 0.300 |"
    assert lines[4] == "| all | 90 | 30 | 3.00 | 3.00 | 16.00 | 18.00 | 0.200 | 0.200 | 0.300 | 0.200 |"


def test_a_done_fit_is_not_run_again_and_other_words_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = SimpleNamespace(Popen=lambda words: forks.command(words[3:], tmp_path))
    monkeypatch.setattr(held_out, "subprocess", here)
    note = {"words": ["steps=1"], "weights": "w", "commit": "c", "seconds": 2.0}
    (tmp_path / "full.json").write_text(json.dumps(note))
    assert held_out.fit_once(tmp_path / "full", ["steps=1"], "w") == note
    for words, weights in ((["steps=2"], "w"), (["steps=1"], "v")):
        with pytest.raises(UserError, match="other settings or another model"):
            held_out.fit_once(tmp_path / "full", words, weights)
    with pytest.raises(UserError, match="ended with code 2"):
        held_out.fit_once(tmp_path / "none", ["video=nowhere.mp4"], "w")


def test_a_curve_has_a_point_for_each_checkpoint_in_order_of_time(tmp_path: Path) -> None:
    """The truth is what the second checkpoint shows, though the finished scene is another."""
    scene = small_scene()
    c2w, times = cameras.orbit(torch.tensor([0.0, 45.0])), torch.linspace(0, 1, 2)
    for seed, step, seconds in ((0, 20, "000100.50"), (1, 10, "000020.25")):
        with torch.no_grad():
            scene.field.space.params.normal_(generator=torch.Generator().manual_seed(seed))
        tensors = {f"scene.{name}": value for name, value in scene.field.state_dict().items()}
        tensors |= {f"occupancy.{name}": value for name, value in scene.occupancy.state_dict().items()}
        save_tensors(tmp_path / f"place/checkpoints/{seconds}.safetensors", tensors, {"step": step})
        if seed == 0:
            views = render_views(scene, c2w.repeat_interleave(2, 0), cameras.FOVY_DEG, times.repeat(2), SIZE)[0]
            clip = opaque_clip("truth", views.unflatten(0, (2, 2)), c2w, cameras.FOVY_DEG, "", "a test")
            write_clip(tmp_path / "truth", clip)
    save_scene(tmp_path / "place/run/scene", scene)
    early, late = quality_time.curve(tmp_path / "place", tmp_path / "truth")
    assert [(point["step"], point["seconds"]) for point in (early, late)] == [(10, 20.25), (20, 100.5)]
    assert late["psnr"] > 50 > early["psnr"] and late["copied_psnr"] == early["copied_psnr"] < 50

    (tmp_path / "place/run.json").write_text(json.dumps({"words": [], "weights": ""}))
    with pytest.raises(UserError, match="was stopped in between"):
        quality_time.keep_checkpoints(tmp_path / "place", [], "")


def test_the_table_of_curves_says_when_a_recipe_came_near_the_last_ones_best() -> None:
    points = [
        {"fit": fit, "object": name, "seconds": seconds, "psnr": psnr}
        for fit, name, seconds, psnr in (
            ("quick", "a", 10.0, 16.0),
            ("quick", "a", 30.0, 17.0),
            ("quick", "b", 10.0, 15.0),
            ("slow", "a", 50.0, 16.1),
            ("slow", "a", 90.0, 15.3),
            ("slow", "b", 70.0, 15.5),
        )
    ]
    quick, slow = quality_time.table(points).splitlines()[2:]
    assert (
        quick == "| `quick` | 16.00 | 16.00 | 20 | 10 (1 of 2 never) |"
    )  # a: 16.0 is near 16.1; b: 15.0 is not near 15.5
    assert slow == "| `slow` | 15.40 | 15.80 | 80 | 60 |"


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_words_of_a_shortened_preset_fit_the_settings(preset: str) -> None:
    schema = config.load_settings_class("fourdiffusion.fit.settings:FitConfig")
    words, shortened = presets.PRESETS[preset]
    whole, short = (
        config.build(config.compose("fit", schema, ["video=x", *some]), FitConfig) for some in (words[:1], words)
    )
    assert short.max_steps == pytest.approx(whole.max_steps / shortened, abs=0.5)
    assert short.sds.start_step == pytest.approx(whole.sds.start_step / shortened, abs=0.5)
    for name in ("lambda_rgb", "lambda_lpips", "lambda_dssim", "anchor", "lambda_sparsity", "lambda_opacity"):
        assert getattr(short.loss, name) == getattr(whole.loss, name), name

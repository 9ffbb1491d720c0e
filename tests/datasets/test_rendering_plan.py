"""The plan of `data render` without an engine: assets, cameras and scale."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fourdiffusion import cameras
from fourdiffusion.datasets.rendering import plan
from fourdiffusion.datasets.rendering.settings import LightConfig, RenderAssetsConfig, validate
from fourdiffusion.errors import UserError

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def settings(**changes: Any) -> RenderAssetsConfig:
    return RenderAssetsConfig(**({"assets": "assets", "output": "clips"} | changes))


def azimuths(rig: plan.Rig) -> np.ndarray:
    return np.degrees(np.arctan2(rig.c2w[:, 1, 3], rig.c2w[:, 0, 3])) % 360


def test_the_cameras_are_those_of_the_project() -> None:
    for azimuth, elevation, distance in ((0, 0, 1.1), (130, 25, 2.0), (-70, -40, 1.7)):
        expected = cameras.orbit(azimuth, elevation, distance)
        assert torch.allclose(torch.from_numpy(plan.orbit(azimuth, elevation, distance)).float(), expected, atol=1e-6)


def test_the_rig_depends_on_seed_and_uid_only() -> None:
    config = settings(num_views=8, num_random_views=4)
    first, again = plan.make_rig(config, "bat-fly"), plan.make_rig(config, "bat-fly")
    assert (first.c2w == again.c2w).all()
    assert not np.allclose(first.c2w, plan.make_rig(config, "bat-walk").c2w)
    assert not np.allclose(first.c2w, plan.make_rig(settings(num_views=8, num_random_views=4, seed=1), "bat-fly").c2w)
    assert first.roles == ["even"] * 8 + ["random"] * 4


@pytest.mark.parametrize(("views", "extra"), [(8, 4), (32, 3), (4, 40), (1, 2)])
def test_random_cameras_keep_off_the_even_ones(views: int, extra: int) -> None:
    config = settings(num_views=views, num_random_views=extra, random_elevation_deg=[-10.0, 40.0])
    seen = []
    for number in range(30):
        rig = plan.make_rig(config, f"clip-{number}")
        turned = azimuths(rig)
        spacing = 360 / views
        assert np.allclose((turned[:views] - turned[0]) % 360, np.arange(views) * spacing)
        places = (turned - turned[0]) % spacing
        gaps = np.abs(places[:, None] - places[None, views:])
        gaps = np.minimum(gaps, spacing - gaps)[views:] + 360 * np.eye(extra)
        assert min(gaps.min(), np.abs(places[views:]).min(), (spacing - places[views:]).min()) > min(
            0.6, spacing / (2 * extra + 3)
        )
        seen.extend(np.degrees(np.arcsin(rig.c2w[views:, 2, 3] / np.linalg.norm(rig.c2w[views:, :3, 3], axis=1))))
    assert -10 <= min(seen) < 0 and 25 < max(seen) <= 40


def test_jitter_and_ranges_are_drawn_once_a_clip() -> None:
    config = settings(num_views=4, elevation_deg=[0.0, 20.0], distance=[1.5, 2.0], fovy_jitter_deg=5.0)
    rigs = [plan.make_rig(config, f"clip-{k}") for k in range(20)]
    for rig in rigs:
        assert np.ptp(rig.c2w[:, 2, 3]) < 1e-12 and np.ptp(np.linalg.norm(rig.c2w[:, :3, 3], axis=1)) < 1e-12
    assert np.ptp([rig.fovy_deg for rig in rigs]) > 4
    assert all(40 <= rig.fovy_deg <= 50 for rig in rigs)


@pytest.mark.parametrize("wide", [False, True])
def test_the_object_fills_the_frame_and_never_leaves_it(wide: bool) -> None:
    config = settings(num_views=36, num_random_views=6, random_elevation_deg=[-20.0, 50.0], width=96 if wide else 64,
                      height=64, frame_margin=0.0, cube_side=2.0, num_frames=2)  # fmt: skip
    rng = np.random.default_rng(3)
    everywhere = np.stack([plan.orbit(a, e, 1.1) for a in range(0, 360, 2) for e in np.linspace(-20, 50, 9)])
    parts = np.array_split(rng.permutation(everywhere), 60)  # one camera that sees too little is enough
    for number in range(8):
        rig = plan.make_rig(config, f"clip-{number}")
        frames = [rng.normal(size=(200, 3)) * rng.uniform(0.1, 3, 3) + rng.normal(size=3) for _ in range(4)]
        matrix = plan.normalization(frames, plan.SCENE_FROM_GLTF, config, rig)
        assert plan.share_outside(frames, matrix, config, rig) == 0
        larger = matrix.copy()
        larger[:3] *= 1.01
        assert any(plan.share_outside(frames, larger, config, plan.Rig(part, [], rig.fovy_deg)) > 0 for part in parts)


def test_the_cube_holds_all_frames_not_the_first() -> None:
    config = settings(keep_in_frame=False, cube_side=0.8)
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    frames = [corners, corners + [0, 3, 0]]  # it rises by 3
    matrix = plan.normalization(frames, plan.SCENE_FROM_GLTF, config, plan.make_rig(config, "a"))
    points = np.concatenate(frames) @ matrix[:3, :3].T + matrix[:3, 3]
    assert np.abs(points).max() == pytest.approx(0.4)
    assert points.min(0) + points.max(0) == pytest.approx(np.zeros(3), abs=1e-9)
    assert np.ptp(points[:, 2]) == pytest.approx(0.8)  # the asset's y is the scene's z


@pytest.mark.parametrize(("axes", "front", "up"), [("gltf", [0, 0, 1], [0, 1, 0]), ("blender", [0, -1, 0], [0, 0, 1])])
def test_the_front_of_an_asset_looks_to_azimuth_0(axes: str, front: list[float], up: list[float]) -> None:
    rotation = plan.scene_from_engine(axes, 0.0)
    assert rotation @ front == pytest.approx([1, 0, 0])
    assert rotation @ up == pytest.approx([0, 0, 1])
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert plan.scene_from_engine(axes, 90.0) @ front == pytest.approx([0, 1, 0])


def test_which_part_of_an_animation_is_rendered() -> None:
    config = settings(num_frames=5, fps=10.0, stride=2, part="start")  # 0.8 s
    times, part = plan.choose_times(1.0, 3.0, config)
    assert part == "start" and times == pytest.approx([1, 1.2, 1.4, 1.6, 1.8])
    assert plan.choose_times(1.0, 3.0, settings(num_frames=5, fps=10.0, stride=2, part="middle"))[0][0] == 1.6
    short, part = plan.choose_times(1.0, 1.4, config)
    assert part == "whole" and short == pytest.approx([1, 1.1, 1.2, 1.3, 1.4])
    assert plan.choose_times(0.0, 8.0, settings(num_frames=5, part="whole"))[0] == pytest.approx([0, 2, 4, 6, 8])


def test_the_part_that_moves_most_is_found() -> None:
    config = settings(num_frames=3, fps=10.0, stride=2)  # 0.4 s
    ticks = plan.dense_times(0.0, 2.0, config)
    assert ticks is not None and len(ticks) == 21
    speed = np.where((ticks[:-1] >= 1.2) & (ticks[:-1] < 1.55), 1.0, 0.1)
    place = np.concatenate([[0], np.cumsum(speed)])
    moved = plan.moved_between([np.array([[x, 0, 0], [x, 1, 0]]) for x in place])
    times, part = plan.choose_times(0.0, 2.0, config, moved)
    assert part == "most_motion" and times == pytest.approx([1.2, 1.4, 1.6])
    assert plan.dense_times(0.0, 0.3, config) is None


def test_an_endless_animation_is_cut() -> None:
    config = settings(max_seconds=2.0, num_frames=3, fps=10.0)
    ticks = plan.dense_times(0.0, 1e9, config)
    assert ticks is not None and ticks[-1] == pytest.approx(2.0)
    assert plan.choose_times(0.0, 1e9, settings(max_seconds=2.0, part="whole"))[0][-1] == 2.0


def test_movement_and_travel() -> None:
    square = np.array([[0.0, 0, 0], [3, 4, 0]])
    assert plan.movement([square, square]) == 0
    assert plan.movement([square, square + [[0, 0, 0], [0, 0, 0.5]]]) == pytest.approx(0.1)
    assert plan.travel([square, square]) == pytest.approx(1)
    assert plan.travel([square, square + [27, 36, 0]]) == pytest.approx(10)
    assert plan.movement([square, np.array([[0.0, 0, 0], [3, 4, 0], [3, 4, 1]])]) == pytest.approx(
        0.2
    )  # other topology


def test_animations_are_chosen_by_rule() -> None:
    found = [{"name": "Walk", "start": 0, "end": 1}, {"name": "Run", "start": 0, "end": 3}]
    assert plan.choose_animations(found, "all") == [0, 1]
    assert plan.choose_animations(found, "first") == [0]
    assert plan.choose_animations(found, "longest") == [1]
    assert plan.choose_animations(found, "w*") == [0]
    assert plan.choose_animations(found, "fly") == []
    assert plan.choose_animations([], "longest") == []


def test_names_are_unique_and_fit_a_file_system() -> None:
    taken: set[str] = set()
    names = [plan.unique_name(text, taken) for text in ("a/b c", "a-b-c", "A/B C", "../..", "日本")]
    assert names == ["a-b-c", "a-b-c-2", "A-B-C-3", "unnamed", "unnamed-2"]


def test_what_the_manifest_says_travels_along(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    for name in ("birds/Red_Kite.glb", "Cow.GLB", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    header = "path\tcaption\tlicence\tauthor\tsource\n"
    (tmp_path / "MANIFEST.tsv").write_text(header + "birds/Red_Kite.glb\ta red kite\tCC0-1.0\tAda\thttps://a.org\n")
    cow, kite = plan.list_assets(settings(assets=str(tmp_path), engine="opengl"))
    assert (kite.object, kite.caption, kite.license) == ("birds-Red_Kite", "a red kite", "CC0-1.0")
    assert (kite.author, kite.source) == ("Ada", "https://a.org")
    assert (cow.object, cow.caption, cow.license, cow.source) == ("Cow", "Cow", "not stated", "Cow.GLB")
    (tmp_path / "list.txt").write_text("# two of them\nbirds/Red_Kite.glb\n\nmissing.glb\n")
    listed = plan.list_assets(settings(assets=str(tmp_path / "list.txt")))
    assert [entry.caption for entry in listed] == ["a red kite", "missing"]
    assert len(plan.list_assets(settings(assets=str(tmp_path), engine="opengl", limit=1))) == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"assets": "nowhere"}, "assets=nowhere"),
        ({"assets": "."}, "no file that ends in"),
        ({"assets": "empty.txt"}, "the list is empty"),
        ({"assets": "binary.txt"}, "not a text file"),
        ({"assets": "one.glb.txt", "manifest": "none.tsv"}, "manifest=none.tsv"),
        ({"assets": "one.glb.txt", "manifest": "bad.tsv"}, "no column `path`"),
    ],
)
def test_lists_that_cannot_be_read(
    changes: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, data in (("empty.txt", b"\n"), ("binary.txt", b"\xff\xfe\x00"), ("one.glb.txt", b"one.glb"),
                       ("bad.tsv", b"a\tb\n1\t2\n")):  # fmt: skip
        Path(name).write_bytes(data)
    with pytest.raises(UserError, match=text):
        plan.list_assets(settings(**changes))


def test_a_random_heading_adds_to_the_given_one_and_is_not_the_cameras_offset() -> None:
    plain, turned = settings(), settings(random_heading=True)
    assert plan.heading(settings(heading_deg=30.0), "bat-fly") == 30 and plan.heading(plain, "bat-fly") == 0
    angles = {uid: plan.heading(turned, uid) for uid in ("bat-fly", "bat-walk")}
    assert len({*angles.values(), plan.heading(settings(random_heading=True, seed=1), "bat-fly")}) == 3
    for uid, angle in angles.items():
        assert 0 <= angle < 360 and angle == plan.heading(turned, uid)
        assert plan.heading(settings(random_heading=True, heading_deg=30.0), uid) == pytest.approx(angle + 30)
        rig = plan.make_rig(turned, uid)
        assert np.array_equal(rig.c2w, plan.make_rig(plain, uid).c2w)
        offset = float(cameras.azimuth_deg(torch.from_numpy(rig.c2w[0])))
        assert abs((angle - offset + 180) % 360 - 180) > 1  # else an object would always show the same side


@pytest.mark.parametrize(
    "changes",
    [
        {"assets": "???"}, {"output": ""}, {"engine": "povray"}, {"part": "end"}, {"num_frames": 1}, {"stride": 0},
        {"elevation_deg": [10.0]}, {"distance": [2.0, 1.0]}, {"elevation_deg": [-95.0, 0.0]}, {"fovy_deg": 0.0},
        {"engine": "opengl", "supersampling": 2}, {"engine": "opengl", "hdri": __file__}, {"hdri": "nowhere.exr"},
        {"depth": True, "distance": [6.0, 6.0]}, {"lights": [LightConfig(kind="laser")]}, {"seed": -1},
        {"engine": "opengl", "lights": [LightConfig()] * 9},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        validate(settings(**changes))
    assert "\n" not in str(caught.value) and list(changes)[-1].split("[")[0] in str(caught.value)


@pytest.mark.parametrize("preset", ["", *sorted(p.stem for p in (CONFIGS / "render").glob("*.yaml"))])
def test_presets_are_valid_settings(preset: str) -> None:
    merged = OmegaConf.merge(OmegaConf.structured(RenderAssetsConfig), {"assets": "a", "output": "b"})
    if preset:
        merged = OmegaConf.merge(merged, OmegaConf.load(CONFIGS / "render" / f"{preset}.yaml"))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, RenderAssetsConfig)
    validate(config)


def test_lights_may_be_plain_mappings() -> None:
    config = settings(lights=[{"azimuth_deg": 10.0, "kind": "area"}])
    validate(config)
    assert config.lights == [LightConfig(azimuth_deg=10.0, kind="area")]

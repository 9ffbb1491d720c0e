"""`evaluate` on folders of meshes: known shapes, known motion, and what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourdiffusion.errors import UserError
from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.settings import EvaluateConfig, ProtocolConfig, load_protocol

trimesh = pytest.importorskip("trimesh", reason="meshes are read by trimesh: pip install 'trimesh>=4.6'")
pytestmark = pytest.mark.slow

FRAMES = 3


def shape(frame: int) -> Any:
    """A lopsided solid that grows an arm and moves up."""
    body = trimesh.creation.icosphere(subdivisions=2, radius=0.3)
    body.vertices *= [1.0, 0.6, 0.4]
    arm = trimesh.creation.box(extents=[0.1, 0.5 + 0.1 * frame, 0.12])
    arm.vertices += [0.25, 0.35, 0.1]
    mesh = trimesh.util.concatenate([body, arm])
    mesh.vertices += [0, 0, 0.1 * frame]
    return mesh


def write(folder: Path, change: Any = lambda mesh, frame: mesh, frames: int = FRAMES, suffix: str = "obj") -> Path:
    folder.mkdir(parents=True)
    for frame in range(frames):
        change(shape(frame), frame).export(folder / f"mesh_{frame:02d}.{suffix}")
    return folder


def moved(mesh: Any, _: int) -> Any:
    """Turned by 90 degrees, twice as large, elsewhere: another convention, the same object."""
    mesh.vertices = 2 * np.asarray(mesh.vertices)[:, [1, 2, 0]] + [1, 2, 3]
    return mesh


def run(prediction: Path, truth: Path, output: Path, **changes: Any) -> dict[str, Any]:
    settings = {"mesh_points": 3000, "mesh_icp_points": 1000} | changes
    metrics = settings.pop("metrics", ["chamfer", "f_score", "cd_3d", "cd_4d", "cd_motion"])
    protocol = ProtocolConfig(name="actionbench_rigid", metrics=metrics, frame_choice="index", **settings)
    evaluate(EvaluateConfig(str(prediction), str(truth), str(output), "cpu", protocol=protocol))
    return json.loads((output / "metrics.json").read_text())


def test_another_convention_is_excused_by_the_alignment_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "gt" / "a"), write(tmp_path / "pred" / "a", moved)
    report = run(tmp_path / "pred", tmp_path / "gt", tmp_path / "out")
    assert "evaluate: 100%" in capsys.readouterr().err  # objects, with rate and time left
    mean = report["mean"]
    assert mean["chamfer [none]"] > 2 and mean["f_score 0.05 [none]"] < 0.05
    for name in ("cd_3d [similarity]", "cd_4d [similarity]", "cd_motion [similarity]"):
        assert mean[name] < 0.05  # what is left are two samples of 3000 points
    assert mean["f_score 0.05 [similarity]"] > 0.98
    assert len(report["objects"]["a"]["views"]["surface"]["per_frame"]["cd_3d [similarity]"]) == FRAMES
    assert (tmp_path / "out" / "table.md").read_text().count("↑") == 2  # the F-scores
    again = run(tmp_path / "pred", tmp_path / "gt", tmp_path / "again")
    assert (tmp_path / "again" / "metrics.json").read_bytes() == (tmp_path / "out" / "metrics.json").read_bytes()
    assert again == report


def test_a_still_prediction_is_seen_over_time_and_not_a_frame_at_a_time(tmp_path: Path) -> None:
    """A frame's own alignment takes a shift away; the first frame's alignment does not."""
    write(tmp_path / "gt")
    still = write(tmp_path / "pred", lambda mesh, frame: shape(0))
    mean = run(still, tmp_path / "gt", tmp_path / "out")["mean"]
    assert mean["cd_4d [similarity]"] > mean["cd_3d [similarity]"] + 0.03
    assert mean["cd_motion [similarity]"] > mean["cd_4d [similarity]"]


def test_tracked_points_of_the_truth_and_another_topology(tmp_path: Path) -> None:
    mesh = shape(0)
    points, _ = trimesh.sample.sample_surface(mesh, 2000, seed=0)
    tracked = np.stack([np.concatenate([points + [0, 0, 0.1 * f], np.zeros((2000, 3))], axis=1) for f in range(FRAMES)])
    (tmp_path / "gt" / "a").mkdir(parents=True)
    np.save(tmp_path / "gt" / "a" / "surfaces.npy", tracked.astype(np.float32))

    def follow(_: Any, frame: int) -> Any:
        mesh = shape(0)
        mesh.vertices += [0, 0, 0.1 * frame]
        return mesh

    write(tmp_path / "pred" / "a", follow, suffix="glb")
    mean = run(tmp_path / "pred", tmp_path / "gt", tmp_path / "out", mesh_alignment="none")["mean"]
    assert mean["cd_motion [none]"] < 0.05 and mean["cd_4d [none]"] < 0.05

    def cut(mesh: Any, frame: int) -> Any:
        return mesh.subdivide() if frame else mesh

    write(tmp_path / "cut" / "a", cut)
    report = run(tmp_path / "cut", tmp_path / "gt", tmp_path / "out2", mesh_alignment="none")
    assert "cd_motion [none]" not in report["mean"]
    assert any("cd_motion: missing (the prediction's meshes have different faces)" in note for note in report["notes"])


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    write(tmp_path / "gt" / "a"), write(tmp_path / "pred" / "b")
    with pytest.raises(UserError, match="lacks object a; .* lacks object b"):
        run(tmp_path / "pred", tmp_path / "gt", tmp_path / "out")
    write(tmp_path / "short" / "a", frames=2)
    with pytest.raises(UserError, match="a: 2 frames against 3"):
        run(tmp_path / "short", tmp_path / "gt", tmp_path / "out")
    with pytest.raises(UserError, match="holds meshes, synthetic measures pictures: give protocol=actionbench"):
        config = EvaluateConfig(str(tmp_path / "gt"), str(tmp_path / "gt"), str(tmp_path / "out"), "cpu")
        evaluate(config)
    for content, message in ((b"no mesh", "is no mesh that can be read|holds 0 faces"), (b"", "is no mesh|0 faces")):
        (tmp_path / "short" / "a" / "mesh_00.obj").write_bytes(content)
        with pytest.raises(UserError, match=message):
            run(tmp_path / "short", tmp_path / "gt", tmp_path / "out", frame_mismatch="first")
    (tmp_path / "short" / "a" / "00.ply").write_bytes(b"")
    with pytest.raises(UserError, match="holds frame 0 twice"):
        run(tmp_path / "short", tmp_path / "gt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_shipped_protocols_differ_by_their_alignment() -> None:
    assert load_protocol("actionbench").mesh_alignment == "axis_scales"
    assert load_protocol("actionbench_rigid").mesh_alignment == "similarity"

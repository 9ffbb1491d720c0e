"""Depth, agreement of views and true motion where a truth holds them: a perfect scene scores as one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate_runs import TIMES, save_run, scene  # noqa: F401

from fourdiffusion.cameras import DISTANCE, orbit
from fourdiffusion.datasets.clips import opaque_clip, write_clip
from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.runs import _render
from fourdiffusion.evaluate.settings import EvaluateConfig, ProtocolConfig
from fourdiffusion.media.write import write_image
from fourdiffusion.scene.scene import Scene

pytestmark = pytest.mark.slow

SIZE, AROUND = 24, [0.0, 30.0, 60.0]


def save_truth(folder: Path, scene: Scene, size: float = 1.0, offset: float = 0.0) -> str:  # noqa: F811
    """A clip of the scene's own pictures and depth, in a world ``size`` times as large."""
    rgb, alpha, depth = _render(scene, orbit(torch.tensor(AROUND)), 45.0, TIMES.tolist(), SIZE)
    depth = torch.where(alpha > 0.5, size * depth + offset, torch.tensor(torch.inf))
    assert 0.1 < float(depth.isfinite().float().mean()) < 1 or bool((alpha > 0.5).any())
    clip = opaque_clip(folder.name, rgb, orbit(torch.tensor(AROUND), distance=size * DISTANCE), 45.0, "", "a test")
    write_clip(folder, dataclasses.replace(clip, depth=depth))
    return str(folder)


def report(prediction: str, truth: str, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    protocol = ProtocolConfig(metrics=["psnr", "depth_error", "cross_view_error"], **changes)
    evaluate(EvaluateConfig(prediction, truth, str(tmp_path / "out"), "cpu", protocol=protocol))
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_depth_of_a_perfect_scene(scene: Scene, tmp_path: Path) -> None:  # noqa: F811
    run = save_run(tmp_path / "run", scene, fovy_deg=45.0, distance=DISTANCE, elevation_deg=0.0)
    exact = report(run, save_truth(tmp_path / "truth", scene), tmp_path)["mean"]
    assert exact["psnr"] > 45 and exact["depth_error"] < 1e-3 and "cross_view_error" in exact
    larger = report(run, save_truth(tmp_path / "larger", scene, size=2.0), tmp_path)["mean"]
    assert larger["psnr"] > 45 and larger["depth_error"] < 2e-3  # in the truth's units
    behind = report(run, save_truth(tmp_path / "behind", scene, offset=0.1), tmp_path)["mean"]
    assert behind["depth_error"] == pytest.approx(0.1, abs=2e-3)
    resized = report(run, str(tmp_path / "truth"), tmp_path, size=32)
    assert set(resized["mean"]) == {"psnr"}
    assert any("cross_view_error: missing (pictures were resized)" in note for note in resized["notes"])
    assert any("depth_error: missing" in note for note in resized["notes"])


def test_the_true_flow_of_a_clip_and_its_absence(tmp_path: Path) -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    pattern = torch.stack([0.5 + 0.4 * (x / (3 + c)).sin() * (y / 4 - c).cos() for c in range(3)])
    video = torch.stack([pattern[:, :24, 10 - 2 * f : 34 - 2 * f] for f in range(4)])[None]  # 2 pixels right a frame
    folder = tmp_path / "truth"
    write_clip(folder, opaque_clip("truth", video, orbit(torch.zeros(1)), 45.0, "", "a test"))
    for number, frame in enumerate(video[0]):
        write_image(tmp_path / "good" / "view_0" / f"{number}.png", frame)
        write_image(tmp_path / "flicker" / "view_0" / f"{number}.png", frame * (0.8 if number % 2 else 1.0))

    def error(name: str, flow: str) -> tuple[dict[str, float], list[str]]:
        protocol = ProtocolConfig(metrics=["psnr", "warped_error"], flow=flow)
        evaluate(EvaluateConfig(str(tmp_path / name), str(folder), str(tmp_path / "out"), protocol=protocol))
        content = json.loads((tmp_path / "out" / "metrics.json").read_text())
        return content["mean"], content["notes"]

    assert "warped_error [true flow]" not in error("good", "true")[0]
    assert any("holds no motion vectors" in note for note in error("good", "true")[1])
    assert error("good", "estimated")[0]["warped_error [TV-L1]"] < 0.02
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "motion").mkdir()
    for entry in meta["frames"]:
        entry["motion_file_path"] = f"motion/{entry['frame']}.npy"
        motion = np.zeros((24, 24, 2), np.float16)
        motion[..., 0] = 2
        np.save(folder / entry["motion_file_path"], motion)
    (folder / "transforms.json").write_text(json.dumps(meta))
    assert error("good", "true")[0]["warped_error [true flow]"] < 0.01
    assert error("flicker", "true")[0]["warped_error [true flow]"] == pytest.approx(0.1, abs=0.03)

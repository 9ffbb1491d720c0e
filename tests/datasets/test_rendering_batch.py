"""A batch of assets with bad ones among them, killed and resumed; and the clips it leaves, read for training."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from animated_glb import Glb, box, face_texture, swinging_box

from fourdiffusion.datasets.clips import list_clips, read_clip
from fourdiffusion.datasets.rendering import run
from fourdiffusion.datasets.rendering.engine import ANSWER, Engine, EngineFailure
from fourdiffusion.datasets.rendering.gltf import AssetError
from fourdiffusion.datasets.rendering.rasterizer import create_context
from fourdiffusion.datasets.rendering.settings import RenderAssetsConfig
from fourdiffusion.datasets.sampling import even_rigs
from fourdiffusion.errors import UserError
from fourdiffusion.prepare.render_assets import render_assets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def opengl() -> None:
    try:
        create_context()
    except AssetError as error:
        pytest.skip(str(error))


def settings(folder: Path, **changes: Any) -> RenderAssetsConfig:
    usual: dict[str, Any] = {
        "assets": str(folder / "assets"), "output": str(folder / "clips"), "engine": "opengl", "width": 24,
        "height": 24, "supersampling": 1, "num_views": 4, "num_random_views": 1, "num_frames": 3, "part": "whole",
    }  # fmt: skip
    return RenderAssetsConfig(**(usual | changes))


def still_box(path: Path, animated: bool) -> Path:
    """Write a box that does not move, with or without an animation."""
    glb = Glb()
    shape = box((1.0, 1.0, 1.0))
    node = glb.node(mesh=glb.mesh(shape.pop("triangles"), face_texture(glb), **shape))
    if animated:
        glb.animate("rest", (node, "translation", [0, 1], [[1, 0, 0], [1, 0, 0]], "LINEAR"))
    return glb.save(path)


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all clips of a folder by path."""
    return {str(p.relative_to(folder)): p.read_bytes() for clip in list_clips(folder) for p in clip.rglob("*.*")}


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / run.LOG).read_text().splitlines()]


def test_eight_good_and_four_bad_assets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    for k in range(8):
        swinging_box(assets / f"good{k}.glb", angle_deg=40 + 10 * k)
    (assets / "a_text.glb").write_text("this is no model")
    whole = swinging_box(assets / "cut.glb").read_bytes()
    (assets / "cut.glb").write_bytes(whole[: len(whole) // 2])
    still_box(assets / "nothing_happens.glb", animated=False)
    swinging_box(assets / "rocket.glb", shift=60.0)
    render_assets(settings(tmp_path, num_workers=2))
    printed = capsys.readouterr().out
    assert "8 clips" in printed and "1 leaves_frame, 1 no_animation, 2 unreadable" in printed
    failed = {line["object"]: line for line in log_of(tmp_path / "clips") if line["status"] == "failed"}
    assert {name: line["reason"] for name, line in failed.items()} == {
        "a_text": "unreadable", "cut": "unreadable", "nothing_happens": "no_animation", "rocket": "leaves_frame",
    }  # fmt: skip
    assert "truncated" in failed["cut"]["detail"] and all(line["detail"] for line in failed.values())
    assert [clip.name for clip in list_clips(tmp_path / "clips")] == [f"good{k}-swing" for k in range(8)]
    assert not (tmp_path / "clips" / ".partial").exists()

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").rglob("*.png")}
    lines = len(log_of(tmp_path / "clips"))
    summary = run.render_batch(settings(tmp_path))
    assert (summary.rendered, summary.clips, sum(summary.failures.values())) == (0, 8, 4)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").rglob("*.png")}
    assert lines == len(log_of(tmp_path / "clips"))

    swinging_box(assets / "cut.glb")  # mended
    assert run.render_batch(settings(tmp_path, retry_failed=True)).failures == {
        "leaves_frame": 1, "no_animation": 1, "unreadable": 1,
    }  # fmt: skip
    assert (tmp_path / "clips" / "cut-swing").is_dir()


def test_a_clip_reads_as_training_reads_it(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    swinging_box(tmp_path / "assets" / "box.glb")
    header = "path\tcaption\tlicense\tauthor\tsource\n"
    (tmp_path / "assets" / "MANIFEST.tsv").write_text(header + "box.glb\ta colored box\tMIT\tAda\thttps://a.org/box\n")
    run.render_batch(settings(tmp_path, depth=True, num_views=8, num_random_views=4))
    folder = tmp_path / "clips" / "box-swing"
    clip = read_clip(folder)
    assert clip.rgba.shape == (12, 3, 4, 24, 24) and clip.depth is not None
    assert clip.times.tolist() == [0, 0.5, 1] and clip.fovy_deg == pytest.approx(45)
    assert (clip.caption, clip.source) == ("a colored box", "https://a.org/box")
    rigs = even_rigs(clip, 4)
    assert len(rigs) == 2 and sorted(sum(rigs, [])) == list(range(8))  # no random camera among them
    meta = json.loads((folder / "transforms.json").read_text())
    assert (meta["license"], meta["author"], meta["object"], meta["animation"]) == ("MIT", "Ada", "box", "swing")
    assert (meta["part"], meta["animation_seconds"], meta["engine"]) == ("whole", [0, 1], "opengl")
    assert Counter(entry["role"] for entry in meta["frames"]) == {"even": 24, "random": 12}


def test_a_killed_batch_goes_on_to_the_same_set(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    for k in range(3):
        swinging_box(tmp_path / "assets" / f"box{k}.glb", angle_deg=30 + 20 * k)
    (tmp_path / "assets" / "bad.glb").write_text("no model")
    whole = settings(tmp_path, output=str(tmp_path / "whole"), num_workers=2)
    run.render_batch(whole)
    killed = settings(tmp_path, output=str(tmp_path / "killed"))
    code = "import sys, json; from fourdiffusion.datasets.rendering import run, settings; "
    code += "run.render_batch(settings.RenderAssetsConfig(**json.loads(sys.argv[1])))"
    wanted = {k: v for k, v in vars(killed).items() if k != "lights"}
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(wanted)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "box0-swing").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(list((tmp_path / "killed").glob("*-swing"))) < 3
    with (tmp_path / "killed" / run.LOG).open("a") as file:
        file.write('{"object": "box1", "uid": "box1-sw')  # what a kill in the middle of a line leaves
    summary = run.render_batch(killed)
    assert (summary.clips, summary.failures) == (3, {"unreadable": 1})
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


FAKE = """
import json, os, sys, time
from fourdiffusion.datasets.rendering import opengl_worker
first = sys.stdin.readline()
path = json.loads(first).get("path", "")
if "endless" in path:
    time.sleep(1000)
if "crash" in path:
    os.kill(os.getpid(), 11)
if "raises" in path:
    raise RuntimeError("out of ideas")
class Input:
    def __iter__(self):
        yield first
        for line in sys.__stdin__:
            if "frozen" in path and '"render"' in line:
                time.sleep(1000)
            yield line
sys.stdin = Input()
opengl_worker.main()
"""


def test_what_becomes_of_a_process_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real worker behind a script that crashes, raises or sleeps on some paths."""
    (tmp_path / "assets").mkdir()
    for name in ("crash", "endless", "frozen", "good", "raises"):
        swinging_box(tmp_path / "assets" / f"{name}.glb")
    still_box(tmp_path / "assets" / "still.glb", animated=True)
    (tmp_path / "worker.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.setattr(run, "engine_command", lambda config: [sys.executable, str(tmp_path / "worker.py")])
    summary = run.render_batch(settings(tmp_path, timeout_s=6.0, num_workers=2))
    assert (summary.clips, summary.failures) == (1, {"crash": 2, "static": 1, "timeout": 2})
    details = {line["object"]: line["detail"] for line in log_of(tmp_path / "clips") if line["status"] == "failed"}
    assert "SIGSEGV" in details["crash"] and "out of ideas" in details["raises"]
    uids = {line["object"]: line["uid"] for line in log_of(tmp_path / "clips") if line["status"] == "failed"}
    assert uids["frozen"] == "frozen-swing" and uids["endless"] is None


def test_an_engine_that_does_not_run_here_ends_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "assets").mkdir()
    swinging_box(tmp_path / "assets" / "box.glb")
    monkeypatch.setattr(run, "engine_command", lambda config: [sys.executable, "-c", "import no_such_module"])
    with pytest.raises(UserError, match="no_such_module"):
        run.render_batch(settings(tmp_path))
    assert not (tmp_path / "clips" / run.LOG).exists()


@pytest.mark.parametrize("blender", ["/nowhere/blender", ""])
def test_a_missing_blender_is_named(blender: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="[Bb]lender"):
        run.engine_command(settings(tmp_path, engine="cycles", blender=blender))


def test_a_folder_holds_clips_of_one_choice_of_settings(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    swinging_box(tmp_path / "assets" / "box.glb")
    run.render_batch(settings(tmp_path))
    with pytest.raises(UserError, match="width=24"):
        run.render_batch(settings(tmp_path, width=32))
    run.render_batch(settings(tmp_path, num_workers=2, timeout_s=99.0))  # these change no pixel


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with run._claimed(tmp_path / "clips", settings(tmp_path)):
        (tmp_path / "assets").mkdir()
        swinging_box(tmp_path / "assets" / "box.glb")
        with pytest.raises(UserError, match="another run"):
            run.render_batch(settings(tmp_path))


def test_objects_whose_names_meet_do_not_overwrite_each_other(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    for name, animation in (("a", "b-c"), ("a-b", "c")):
        glb = Glb()
        shape = box((1.0, 1.0, 1.0))
        node = glb.node(mesh=glb.mesh(shape.pop("triangles"), face_texture(glb), **shape))
        glb.animate(animation, (node, "translation", [0, 1], [[0, 0, 0], [0, 1, 0]], "LINEAR"))
        glb.save(tmp_path / "assets" / f"{name}.glb")
    assert run.render_batch(settings(tmp_path)).clips == 2
    assert run.render_batch(settings(tmp_path)).rendered == 0
    owners = {line["object"] for line in log_of(tmp_path / "clips") if line["status"] == "done"}
    assert owners == {"a", "a-b"}


def engine(code: str, tmp_path: Path) -> Engine:
    return Engine([sys.executable, "-c", code], tmp_path / "errors.txt")


def test_answers_are_found_among_other_output(tmp_path: Path) -> None:
    code = f"print('noise'); input(); print('more'); print({ANSWER!r} + '{{\"x\": 1}}'); print('rest')"
    talk = engine(code, tmp_path)
    assert talk.request({"do": "hello"}, 30) == {"x": 1}
    talk.close()


def test_a_stuck_process_is_ended_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(999)']); "
    )
    code += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); time.sleep(999)"
    talk = engine(code, tmp_path)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    with pytest.raises(EngineFailure) as caught:
        talk.request({"do": "hello"}, 0.2)
    assert caught.value.reason == "timeout" and caught.value.fatal
    child = int((tmp_path / "pid").read_text())
    for _ in range(200):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child of a stuck process lives on")

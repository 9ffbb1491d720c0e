"""Render a batch of assets: each object in a process of its own, every outcome in a log, finished clips never again."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator

import numpy as np
from PIL import Image
from tqdm import tqdm

from fourdiffusion.datasets.rendering import plan
from fourdiffusion.datasets.rendering.engine import Engine, EngineFailure
from fourdiffusion.datasets.rendering.settings import PIXEL_SETTINGS, RenderAssetsConfig
from fourdiffusion.errors import UserError

LOG, SETTINGS, LOCK, PARTIAL = "render_log.jsonl", "render.json", ".lock", ".partial"
DEPTH_UNIT = 0.0001  # scene units a step of the 16-bit depth files, as in `clips.py`


@dataclass
class Summary:
    """What a batch holds after a run."""

    rendered: int  # clips of this run
    clips: int  # clips in the folder
    failures: dict[str, int]  # number of failed objects or clips by reason


class RenderLog:
    """`render_log.jsonl`: one line a clip (status `done` or `failed`) and one an object that is through (`complete`)."""

    def __init__(self, path: Path) -> None:
        self.path, self.guard = path, threading.Lock()
        self.done: set[str] = set()
        self.failed: dict[str, dict[str, Any]] = {}  # by uid, or by object where it has no clip
        self.complete: dict[str, list[str]] = {}  # object: uids
        data = path.read_bytes() if path.exists() else b""
        if data and not data.endswith(b"\n"):  # killed while it wrote a line
            data = data[: data.rfind(b"\n") + 1]
            path.write_bytes(data)
        for line in data.splitlines():
            self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        if line["status"] == "complete":
            self.complete[line["object"]] = line["clips"]
        elif line["status"] == "done":
            self.done.add(line["uid"])
            self.failed.pop(line["uid"], None)
        else:
            self.failed[line["uid"] or line["object"]] = line

    def add(self, **line: Any) -> None:
        with self.guard:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._take(line)


def render_batch(config: RenderAssetsConfig, command: list[str], env: dict[str, str]) -> Summary:
    """Render all assets of the settings with the engine process ``command``; return what the folder holds."""
    entries = plan.list_assets(config)
    output = Path(config.output)
    _make_folder(output)
    with _only_run(output):
        _claim(output, config)
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        log = RenderLog(output / LOG)
        before = len(log.done)
        waiting = [entry for entry in entries if not _finished(entry, log, output, config.retry_failed)]
        with tqdm(total=len(entries), initial=len(entries) - len(waiting), unit="object", desc="render") as bar:
            with ThreadPoolExecutor(config.num_workers) as pool:
                futures = [pool.submit(_render_object, entry, config, command, env, log) for entry in waiting]
                try:
                    for future in as_completed(futures):
                        future.result()
                        bar.set_postfix(clips=len(log.done), failed=len(log.failed))
                        bar.update()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
    reasons = Counter(line["reason"] for line in log.failed.values())
    return Summary(len(log.done) - before, len(log.done), dict(reasons))


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={output} cannot be made ({error.strerror}); give another folder") from error


@contextmanager
def _only_run(output: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the lock goes with the process, however it ends."""
    with (output / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"output={output}: another run renders into it; wait for it or give another") from error
        yield


def _claim(output: Path, config: RenderAssetsConfig) -> None:
    """Note in `render.json` which settings made the folder, and refuse others."""
    wanted = {name: value for name, value in json.loads(json.dumps(asdict(config))).items() if name in PIXEL_SETTINGS}
    note = output / SETTINGS
    if not note.exists():
        partial = output / (SETTINGS + ".partial")
        partial.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        partial.rename(note)
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{note}: not valid JSON ({error}); delete it to start this folder again") from error
    differs = [f"{name}={found.get(name)}" for name in wanted if found.get(name) != wanted[name]]
    if differs:
        raise UserError(f"output={output} holds clips rendered with {', '.join(differs)}; use that or another folder")


def _finished(entry: plan.AssetEntry, log: RenderLog, output: Path, retry: bool) -> bool:
    """Tell whether an object needs no further work."""
    if entry.object in log.failed and entry.object not in log.complete:
        return not retry
    if entry.object not in log.complete:
        return False
    states = [(output / uid / "transforms.json").exists() or (uid in log.failed and not retry)
              for uid in log.complete[entry.object]]  # fmt: skip
    return all(states)


def _render_object(
    entry: plan.AssetEntry, config: RenderAssetsConfig, command: list[str], env: dict[str, str], log: RenderLog
) -> None:
    """Render the clips of one object; every failure goes to the log."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fourdiffusion-") as scratch:
        objects = _Object(entry, config, command, env, log, Path(scratch))
        try:
            objects.run()
        except EngineFailure as failure:
            log.add(object=entry.object, uid=None, status="failed", reason=failure.reason, detail=str(failure),
                    asset=str(entry.path), seconds=round(time.monotonic() - start, 3))  # fmt: skip
        finally:
            objects.close()


class _Object:
    """The rendering of one object: its process, which is started again after a crash or a timeout."""

    def __init__(
        self,
        entry: plan.AssetEntry,
        config: RenderAssetsConfig,
        command: list[str],
        env: dict[str, str],
        log: RenderLog,
        scratch: Path,
    ) -> None:
        self.entry, self.config, self.command, self.env = entry, config, command, env
        self.log, self.scratch, self.output = log, scratch, Path(config.output)
        self.engine: Engine | None = None
        self.axes, self.animations, self.digest = "", [], ""

    def run(self) -> None:
        self.open()
        chosen = plan.choose_animations(self.animations, self.config.animations)
        if not chosen:
            what = "the file has no animation"
            if self.animations:
                names = ", ".join(a["name"] for a in self.animations[:8])
                what = f"no animation is named {self.config.animations}; the file has {names}"
            raise EngineFailure("no_animation", what, fatal=False)
        taken: set[str] = set()
        uids = [plan.unique_name(f"{self.entry.object}-{self.animations[k]['name']}", taken) for k in chosen]
        for k, uid in zip(chosen, uids, strict=True):
            if (self.output / uid).exists():
                if uid not in self.log.done:  # killed between the clip and its line
                    self.log.add(object=self.entry.object, uid=uid, status="done")
                continue
            if uid in self.log.failed and not self.config.retry_failed:
                continue
            self.clip(k, uid)
        self.log.add(object=self.entry.object, status="complete", clips=uids)

    def open(self) -> None:
        if not self.entry.path.is_file():
            raise EngineFailure("unreadable", f"{self.entry.path}: no such file", fatal=False)
        self.digest = hashlib.sha256(self.entry.path.read_bytes()).hexdigest()
        self.engine = Engine(self.command, self.scratch / "errors.txt", self.env)
        answer = self.engine.request({"do": "open", "path": str(self.entry.path.resolve())}, self.config.timeout_s)
        self.axes, self.animations = answer["axes"], answer["animations"]

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def clip(self, animation: int, uid: str) -> None:
        """Render one clip into the output folder, or note why not."""
        start, note = time.monotonic(), {"object": self.entry.object, "uid": uid, "asset": str(self.entry.path)}
        partial = self.output / PARTIAL / f"{uid}.{os.getpid()}"
        try:
            if self.engine is None:
                self.open()
            partial.mkdir(parents=True)
            self._render(animation, uid, partial)
        except EngineFailure as failure:
            shutil.rmtree(partial, ignore_errors=True)
            if failure.fatal:
                self.close()
            self.log.add(**note, status="failed", reason=failure.reason, detail=str(failure),
                         seconds=round(time.monotonic() - start, 3))  # fmt: skip
            return
        size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        partial.rename(self.output / uid)
        self.log.add(**note, status="done", seconds=round(time.monotonic() - start, 3), bytes=size)

    def _measure(self, animation: int, times: np.ndarray) -> list[np.ndarray]:
        assert self.engine is not None
        path = self.scratch / "points.npz"
        message = {"do": "measure", "animation": animation, "times": times.tolist(), "file": str(path)}
        self.engine.request(message, self.config.timeout_s)
        with np.load(path) as data:
            frames = [data[f"f{k}"].astype(np.float64) for k in range(len(times))]
        if any(len(frame) == 0 for frame in frames):
            raise EngineFailure("empty", "a frame has no vertices", fatal=False)
        return frames

    def _render(self, animation: int, uid: str, folder: Path) -> None:
        assert self.engine is not None
        config, entry = self.config, self.animations[animation]
        dense = plan.dense_times(entry["start"], entry["end"], config)
        moved = None if dense is None else plan.moved_between(self._measure(animation, dense))
        times, part = plan.choose_times(entry["start"], entry["end"], config, moved)
        frames = self._measure(animation, times)
        self._check(frames)
        rig = plan.make_rig(config, uid)
        matrix = plan.normalization(frames, plan.scene_from_engine(self.axes, config.heading_deg), config, rig)
        outside = plan.share_outside(frames, matrix, config, rig)
        if outside > 0:
            detail = f"{100 * outside:.1f} percent of the object lie outside an image; lower cube_side or keep_in_frame"
            raise EngineFailure("leaves_frame", detail, fatal=False)
        self.engine.request(render_message(config, animation, times, matrix, rig, folder), config.timeout_s)
        _encode_layers(folder, config)
        middle = Image.open(folder / "rgba" / f"v00_f{config.num_frames // 2:02d}.png")
        if middle.getextrema()[3][1] == 0:
            raise EngineFailure("empty", "the pictures are transparent everywhere", fatal=False)
        record = transforms(config, rig, times)
        record |= {
            "caption": self.entry.caption, "license": self.entry.license, "author": self.entry.author,
            "source": self.entry.source, "object": self.entry.object, "asset_sha256": self.digest,
            "animation": entry["name"], "animation_seconds": [entry["start"], entry["end"]], "part": part,
            "scene_from_asset": matrix.tolist(), "asset_axes": self.axes, "engine": config.engine, "seed": config.seed,
        }  # fmt: skip
        order = ("frames",)
        record = {k: v for k, v in record.items() if k not in order} | {k: record[k] for k in order}
        (folder / "transforms.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _check(self, frames: list[np.ndarray]) -> None:
        """EngineFailure for what is not worth rendering."""
        moved, travel = plan.movement(frames), plan.travel(frames)
        if np.ptp(np.concatenate(frames), axis=0).max() == 0:
            raise EngineFailure("empty", "all vertices lie in one point", fatal=False)
        if moved < self.config.min_movement:
            detail = f"vertices move by {100 * moved:.2f} percent of the object's diagonal"
            raise EngineFailure("static", detail, fatal=False)
        if travel > self.config.max_travel:
            detail = f"the motion spans {travel:.1f} times the object's own size (max_travel={self.config.max_travel:g})"
            raise EngineFailure("leaves_frame", detail, fatal=False)


def render_message(
    config: RenderAssetsConfig, animation: int, times: np.ndarray, matrix: np.ndarray, rig: plan.Rig, folder: Path
) -> dict[str, Any]:
    """Return the request that renders one clip."""
    lights = [
        {"direction": plan.light_direction(light.azimuth_deg, light.elevation_deg), "strength": light.strength,
         "angle_deg": light.angle_deg, "kind": light.kind} for light in config.lights
    ]  # fmt: skip
    return {
        "do": "render", "animation": animation, "times": times.tolist(), "world": matrix.tolist(),
        "cameras": rig.c2w.tolist(), "fovy_deg": rig.fovy_deg, "folder": str(folder.resolve()),
        "width": config.width, "height": config.height, "supersampling": config.supersampling,
        "samples": config.samples, "engine": config.engine, "device": config.device, "denoise": config.denoise, "threads": config.threads,
        "lights": lights, "shadows": config.shadows,
        "ambient": config.ambient, "hdri": str(Path(config.hdri).resolve()) if config.hdri else "",
        "depth": config.depth, "normal": config.normals, "motion": config.motion_vectors, "seed": config.seed,
    }  # fmt: skip


def _encode_layers(folder: Path, config: RenderAssetsConfig) -> None:
    """Turn the engine's arrays into the files of the clip format: 16-bit depth, 8-bit normals, half-precision motion."""
    for path in (folder / "depth").glob("*.npy"):
        distance = np.load(path)
        steps = np.where(np.isfinite(distance), np.clip(np.round(distance / DEPTH_UNIT), 1, 65535), 0)
        Image.fromarray(steps.astype(np.uint16)).save(path.with_suffix(".png"), compress_level=1)
        path.unlink()
    for path in (folder / "normal").glob("*.npy"):
        normal = np.load(path)
        Image.fromarray(np.round((normal + 1) * 127.5).astype(np.uint8)).save(path.with_suffix(".png"))
        path.unlink()
    for path in (folder / "motion").glob("*.npy"):
        np.save(path, np.load(path).astype(np.float16))


def transforms(config: RenderAssetsConfig, rig: plan.Rig, times: np.ndarray) -> dict[str, Any]:
    """Return cameras, times and file names as `transforms.json` holds them."""
    half = np.tan(np.radians(rig.fovy_deg) / 2)
    focal = config.height / 2 / half
    meta: dict[str, Any] = {
        "camera_angle_x": float(2 * np.arctan(half * config.width / config.height)),
        "w": config.width, "h": config.height, "fl_x": float(focal), "fl_y": float(focal),
        "cx": config.width / 2, "cy": config.height / 2,
    }  # fmt: skip
    if config.depth:
        meta["depth_unit"] = DEPTH_UNIT
    clock = (times - times[0]) / (times[-1] - times[0])
    frames = []
    for v, role in enumerate(rig.roles):
        for f in range(config.num_frames):
            name = f"v{v:02d}_f{f:02d}"
            entry = {"file_path": f"rgba/{name}.png", "time": float(clock[f]), "view": v, "frame": f, "role": role}
            entry["asset_time"] = float(times[f])
            if config.depth:
                entry["depth_file_path"] = f"depth/{name}.png"
            if config.normals:
                entry["normal_file_path"] = f"normal/{name}.png"
            if config.motion_vectors:
                entry["motion_file_path"] = f"motion/{name}.npy"
            frames.append(entry | {"transform_matrix": rig.c2w[v].tolist()})
    meta["frames"] = frames
    return meta


def opengl_command() -> list[str]:
    """Return the command of the OpenGL engine's process."""
    return [sys.executable, "-m", "fourdiffusion.datasets.rendering.opengl_worker"]


def blender_command(blender: str) -> list[str]:
    """Return the command of a Blender engine's process.

    Args:
        blender: a Python that has bpy, or a Blender program; empty: `blender` on PATH, else this Python if it has bpy.
    """
    script = str(Path(__file__).with_name("blender_render.py"))
    program = blender or shutil.which("blender") or (sys.executable if importlib.util.find_spec("bpy") else "")
    if not program:
        raise UserError(
            "no Blender found; set blender=PATH to a Blender program or to a Python with bpy "
            "(`python3.11 -m venv ENV; ENV/bin/pip install bpy==5.0.1`), or engine=opengl for GLB"
        )
    found = shutil.which(program)
    if found is None:
        raise UserError(f"blender={program}: no such program")
    if "python" in Path(program).name:
        return [found, script]
    return [found, "--background", "--factory-startup", "--python-exit-code", "1", "--python", script]

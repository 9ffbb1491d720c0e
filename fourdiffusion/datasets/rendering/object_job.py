"""Render the clips of one object in a separate process, which is restarted after a crash or a timeout."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fourdiffusion.datasets.rendering import clip_files, plan
from fourdiffusion.datasets.rendering.engine import Engine, EngineFailure
from fourdiffusion.datasets.rendering.render_log import RenderLog
from fourdiffusion.datasets.rendering.settings import RenderAssetsConfig
from fourdiffusion.errors import UserError

PARTIAL = ".partial"  # folder of clips that are being rendered, inside the output folder
MIN_FREE_BYTES = 20_000_000


@dataclass
class Batch:
    """The shared state of a batch."""

    config: RenderAssetsConfig
    command: list[str]  # starts an engine's process
    log: RenderLog
    scratch: Path
    stopping: threading.Event = field(default_factory=threading.Event)
    engines: set[Engine] = field(default_factory=set)

    def start_engine(self, name: str) -> Engine:
        if self.stopping.is_set():
            raise KeyboardInterrupt
        engine = Engine(self.command, self.scratch / f"{name}.txt")
        self.engines.add(engine)
        return engine

    def end_engine(self, engine: Engine) -> None:
        engine.close()
        self.engines.discard(engine)

    def stop(self) -> None:
        """End all processes; their unfinished clips are neither kept nor logged as failures."""
        self.stopping.set()
        for engine in list(self.engines):
            self.end_engine(engine)


class ObjectJob:
    """The clips of one object."""

    def __init__(self, entry: plan.AssetEntry, batch: Batch) -> None:
        self.entry, self.batch, self.config, self.log = entry, batch, batch.config, batch.log
        self.output = Path(self.config.output)
        self.engine: Engine | None = None
        self.axes, self.digest = "", ""
        self.animations: list[dict[str, Any]] = []

    def run(self) -> None:
        """Render every chosen clip that is missing; log every result."""
        start = time.monotonic()
        try:
            self._open()
            for animation, uid in self._clips():
                self._clip(animation, uid)
        except EngineFailure as failure:
            self._failed(None, failure, start)
        else:
            uids = [uid for _, uid in self._clips()]
            self.log.add(object=self.entry.object, status="complete", clips=uids)
        finally:
            self._close()

    def _clips(self) -> list[tuple[int, str]]:
        """Return index of animation and uid of every clip that the settings choose."""
        chosen = plan.choose_animations(self.animations, self.config.animations)
        if not chosen:
            detail = "the file has no animation"
            if self.animations:
                names = ", ".join(animation["name"] for animation in self.animations[:8])
                detail = f"no animation matches {self.config.animations}; the file has {names}"
            raise EngineFailure("no_animation", detail, fatal=False)
        taken = self.log.foreign(self.entry.object)
        return [(k, plan.unique_name(f"{self.entry.object}-{self.animations[k]['name']}", taken)) for k in chosen]

    def _open(self) -> None:
        path = self.entry.path
        if not path.is_file():
            raise EngineFailure("unreadable", f"{path}: no such file", fatal=False)
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.engine = self.batch.start_engine(self.entry.object)
        answer = self.engine.request({"do": "open", "path": str(path.resolve())}, self.config.timeout_s)
        self.axes, self.animations = answer["axes"], answer["animations"]

    def _close(self) -> None:
        if self.engine is not None:
            self.batch.end_engine(self.engine)
            self.engine = None

    def _clip(self, animation: int, uid: str) -> None:
        """Render one clip into the output folder, or log the reason of the failure."""
        start = time.monotonic()
        note = {"object": self.entry.object, "uid": uid, "asset": str(self.entry.path)}
        if (self.output / uid).exists():
            if uid not in self.log.done:  # killed between the clip and its line
                self.log.add(**note, status="done")
            return
        if (self.entry.object, uid) in self.log.failed and not self.config.retry_failed:
            return
        partial = self.output / PARTIAL / f"{uid}.{os.getpid()}"
        try:
            if self.engine is None:
                self._open()
            partial.mkdir(parents=True)
            self._render(animation, uid, partial)
        except EngineFailure as failure:
            shutil.rmtree(partial, ignore_errors=True)
            self._failed(uid, failure, start)
            return
        size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        partial.rename(self.output / uid)
        self.log.add(**note, status="done", seconds=round(time.monotonic() - start, 3), bytes=size)

    def _failed(self, uid: str | None, failure: EngineFailure, start: float) -> None:
        """Log a failure; raise errors that are not caused by the object."""
        if failure.fatal:
            self._close()
        if self.batch.stopping.is_set():
            raise KeyboardInterrupt
        free = shutil.disk_usage(self.output).free
        if free < MIN_FREE_BYTES:
            raise UserError(f"output={self.output}: {free // 1_000_000} MB are free on its disk; make room")
        if failure.reason == "engine":
            raise UserError(str(failure))
        self.log.add(
            object=self.entry.object, uid=uid, asset=str(self.entry.path), status="failed", reason=failure.reason,
            detail=str(failure), seconds=round(time.monotonic() - start, 3),
        )  # fmt: skip

    def _measure(self, animation: int, times: np.ndarray) -> list[np.ndarray]:
        """Return the vertices in the engine's world at each time, F arrays [N, 3]."""
        assert self.engine is not None
        path = self.batch.scratch / f"{self.entry.object}.npz"
        message = {"do": "measure", "animation": animation, "times": times.tolist(), "file": str(path)}
        self.engine.request(message, self.config.timeout_s)
        with np.load(path) as data:
            frames = [data[f"f{k}"].astype(np.float64) for k in range(len(times))]
        path.unlink()
        if any(len(frame) == 0 for frame in frames):
            raise EngineFailure("empty", "a frame has no vertices", fatal=False)
        return frames

    def _render(self, animation: int, uid: str, folder: Path) -> None:
        assert self.engine is not None
        config, entry = self.config, self.animations[animation]
        dense = plan.dense_times(entry["start"], entry["end"], config)
        moved = None if dense is None else plan.moved_between(self._measure(animation, dense))
        times, part = plan.choose_times(entry["start"], entry["end"], config, moved)
        if times[-1] <= times[0]:
            raise EngineFailure("static", "the animation has one key time only", fatal=False)
        frames = self._measure(animation, times)
        self._check_motion(frames)
        rig = plan.make_rig(config, uid)
        rotation = plan.scene_from_engine(self.axes, plan.heading(config, uid))
        matrix = plan.normalization(frames, rotation, config, rig)
        outside = plan.share_outside(frames, matrix, config, rig)
        if outside > 0:
            detail = f"{100 * outside:.1f} percent of the object are outside an image; lower cube_side"
            raise EngineFailure("leaves_frame", detail, fatal=False)
        self.engine.request(render_message(config, animation, times, matrix, rig, folder), config.timeout_s)
        clip_files.encode_layers(folder)
        if clip_files.is_transparent(folder, config):
            raise EngineFailure("empty", "the pictures are transparent", fatal=False)
        record = {
            "caption": self.entry.caption, "license": self.entry.license, "author": self.entry.author,
            "source": self.entry.source, "object": self.entry.object, "asset": self.entry.path.name,
            "asset_sha256": self.digest, "animation": entry["name"],
            "animation_seconds": [entry["start"], entry["end"]], "part": part, "asset_axes": self.axes,
            "scene_from_asset": matrix.tolist(), "engine": config.engine, "seed": config.seed,
        }  # fmt: skip
        clip_files.write_transforms(folder, clip_files.transforms(config, rig, times), record)

    def _check_motion(self, frames: list[np.ndarray]) -> None:
        """Reject objects that have no extent, do not move, or move away."""
        if np.ptp(np.concatenate(frames), axis=0).max() == 0:
            raise EngineFailure("empty", "all vertices lie in one point", fatal=False)
        moved, travel = plan.movement(frames), plan.travel(frames)
        if moved < self.config.min_movement:
            detail = f"vertices move by {100 * moved:.2f} percent of the object's diagonal"
            raise EngineFailure("static", detail, fatal=False)
        if travel > self.config.max_travel:
            detail = f"the motion spans {travel:.1f} times the object's own size, max_travel={self.config.max_travel:g}"
            raise EngineFailure("leaves_frame", detail, fatal=False)


def render_message(
    config: RenderAssetsConfig, animation: int, times: np.ndarray, matrix: np.ndarray, rig: plan.Rig, folder: Path
) -> dict[str, Any]:
    """Return the request that renders one clip, see `engine.py`."""
    lights = [
        {"direction": plan.light_direction(light.azimuth_deg, light.elevation_deg), "strength": light.strength,
         "angle_deg": light.angle_deg, "kind": light.kind} for light in config.lights
    ]  # fmt: skip
    return {
        "do": "render", "animation": animation, "times": times.tolist(), "world": matrix.tolist(),
        "cameras": rig.c2w.tolist(), "fovy_deg": rig.fovy_deg, "folder": str(folder.resolve()),
        "width": config.width, "height": config.height, "supersampling": config.supersampling,
        "samples": config.samples, "denoise": config.denoise, "engine": config.engine, "device": config.device,
        "threads": config.threads, "lights": lights, "shadows": config.shadows, "ambient": config.ambient,
        "cull_backfaces": config.cull_backfaces,
        "hdri": str(Path(config.hdri).resolve()) if config.hdri else "", "depth": config.depth,
        "normal": config.normals, "motion": config.motion_vectors,
    }  # fmt: skip

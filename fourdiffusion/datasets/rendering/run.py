"""Render a batch of assets: a process per object, a log of all results, finished clips are skipped."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from fourdiffusion.datasets.rendering import plan
from fourdiffusion.datasets.rendering.engine import EngineFailure
from fourdiffusion.datasets.rendering.object_job import PARTIAL, Batch, ObjectJob
from fourdiffusion.datasets.rendering.render_log import RenderLog
from fourdiffusion.datasets.rendering.settings import PIXEL_SETTINGS, RenderAssetsConfig
from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import refuse_foreign_files, require_own_file

LOG, SETTINGS, LOCK = "render_log.jsonl", "render.json", ".lock"


@dataclass
class Summary:
    """Result of a run and content of the folder after it."""

    rendered: int  # clips of this run
    clips: int  # clips in the folder
    failures: dict[str, int]  # failed clips and objects by reason


def render_batch(config: RenderAssetsConfig) -> Summary:
    """Render all assets of the settings that are not rendered yet.

    Raises:
        UserError: a setting is wrong, the engine does not run here, or the disk is full. A bad asset does not end the
            batch: it is logged.
    """
    entries = plan.list_assets(config)
    output = Path(config.output)
    command = [] if (output / SETTINGS).exists() else engine_command(config)  # before a new folder is locked
    with _claimed(output, config), tempfile.TemporaryDirectory(prefix="fourdiffusion-") as scratch:
        log = RenderLog(output / LOG)
        before = len(log.done)
        waiting = [entry for entry in entries if not _is_finished(entry, log, config)]
        batch = Batch(config, command, log, Path(scratch))
        if waiting:
            batch.command = command or engine_command(config)
            _probe(batch)
            _render_all(waiting, len(entries), batch)
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
    reasons = Counter(line["reason"] for line in log.failed.values())
    return Summary(len(log.done) - before, len(log.done), dict(sorted(reasons.items())))


@contextmanager
def _claimed(output: Path, config: RenderAssetsConfig) -> Iterator[None]:
    """Lock the output folder for one run, and for clips of one set of settings, recorded in `render.json`."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        require_own_file(output / LOCK)
        lock = (output / LOCK).open("w")
    except OSError as error:
        raise UserError(f"output={output} cannot be written ({error.strerror}); give another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends in any way
        except BlockingIOError as error:
            raise UserError(f"output={output}: another run renders into it; wait for its end") from error
        _compare_settings(output / SETTINGS, config)
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        yield


def _compare_settings(note: Path, config: RenderAssetsConfig) -> None:
    settings = json.loads(json.dumps(asdict(config)))
    wanted = {name: value for name, value in settings.items() if name in PIXEL_SETTINGS}
    refuse_foreign_files(note.parent, note.name)
    if not note.exists():
        partial = note.with_name(note.name + ".partial")
        partial.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        partial.rename(note)
        return
    remedy = "delete it to start this folder again"
    found = read_json(note, remedy)
    if not isinstance(found, dict):
        raise UserError(f"{note}: holds a {type(found).__name__}, not an object; {remedy}")
    differs = [f"{name}={found.get(name)}" for name in wanted if name in found and found[name] != wanted[name]]
    if differs:
        folder = note.parent
        raise UserError(f"output={folder} holds clips rendered with {', '.join(differs)}; use that or another folder")


def _is_finished(entry: plan.AssetEntry, log: RenderLog, config: RenderAssetsConfig) -> bool:
    """Return whether every clip of an object is in the folder, or failed and must not be retried."""
    if (entry.object, None) in log.failed:
        return not config.retry_failed
    if entry.object not in log.complete:
        return False
    return all(
        (Path(config.output) / uid / "transforms.json").exists()
        or ((entry.object, uid) in log.failed and not config.retry_failed)
        for uid in log.complete[entry.object]
    )


def _probe(batch: Batch) -> None:
    """Raise UserError if the engine does not run on this machine, whatever the asset."""
    engine = batch.start_engine("probe")
    try:
        engine.request({"do": "hello"}, max(batch.config.timeout_s, 60))
    except EngineFailure as failure:
        command = " ".join(batch.command)
        raise UserError(f"engine={batch.config.engine} does not run here ({failure}); try `{command}`") from failure
    finally:
        batch.end_engine(engine)


def _render_all(waiting: list[plan.AssetEntry], total: int, batch: Batch) -> None:
    with (
        tqdm(total=total, initial=total - len(waiting), unit="object", desc="render") as bar,
        ThreadPoolExecutor(batch.config.num_workers) as pool,
    ):
        futures = [pool.submit(ObjectJob(entry, batch).run) for entry in waiting]
        try:
            for future in as_completed(futures):
                future.result()
                bar.set_postfix(clips=len(batch.log.done), failed=len(batch.log.failed), refresh=False)
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            batch.stop()
            raise


def engine_command(config: RenderAssetsConfig) -> list[str]:
    """Return the command that starts an engine's process; UserError if there is none."""
    if config.engine == "opengl":
        if importlib.util.find_spec("moderngl") is None:
            raise UserError("engine=opengl needs moderngl: pip install 'fourdiffusion[render]'")
        return [sys.executable, "-m", "fourdiffusion.datasets.rendering.opengl_worker"]
    script = str(Path(__file__).with_name("blender_render.py"))
    program = config.blender or shutil.which("blender") or (sys.executable if importlib.util.find_spec("bpy") else "")
    if not program:
        raise UserError(
            f"engine={config.engine}: no Blender found; set blender=PATH to a Blender program or to a Python with bpy "
            "(pip install bpy==5.0.1 in an environment of its own), or engine=opengl for GLB"
        )
    found = shutil.which(program)
    if found is None:
        raise UserError(f"blender={program}: no such program; give a Blender program or a Python with bpy")
    if "python" in Path(program).name:
        return [found, script]
    return [found, "--background", "--factory-startup", "--python-exit-code", "1", "--python", script]

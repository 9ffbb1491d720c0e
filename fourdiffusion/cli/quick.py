"""`fourdiffusion VIDEO` and `fourdiffusion demo`: a plan in a few lines, then fit, turntable, GLB and HTML page.

The plan says which model and recipe, where the object is, and about how long. The time is an estimate: the processor
seconds of each part, measured once on the small model, scaled by how fast this machine computes a short probe now,
beside whatever else runs on it.
"""

import os
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from fourdiffusion.cli import config as composition
from fourdiffusion.cli import launch, verbs
from fourdiffusion.cli.schema import load_settings_class, shipped
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion.generation_config import sampling_settings
from fourdiffusion.errors import UserError
from fourdiffusion.fit.settings import FitConfig
from fourdiffusion.media.read import load_video

MODELS = ("models/4dm",)  # looked for in the working folder, the best first; the shipped small model after them
FULL_SIZE_GIB = 16.0  # of GPU memory for a model of 256 pixels; below 24 its encoders wait in the CPU's memory
NEEDED_GIB = 0.2  # of disk for a run of the small model
SMALLEST = 128  # side of the turntable's pictures in pixels, or the model's where that is larger


FIT = next(verb for verb in verbs.VERBS if verb.function == "fit")
RESULTS = ("turntable.mp4", "scene.glb", "scene.html")  # in the run folder


@dataclass(frozen=True)
class Cost:
    """Processor seconds of the small model's fit on one thread of the machine of ``PROBE_SECONDS``.

    Of the demo (8 frames, 4 views, 128 pixels), recipe small, commit 14981a3: 142 s, 118 of them its 500 steps.
    ``step`` is from scripts/benchmarks/quick_cost.py --plain 440 --sds 40, ``sds`` what remains for each of 40 steps.
    """

    fixed: float = 24.0  # start 6, sampling 5, pictures 3, turntable, GLB and HTML 10
    step: float = 0.057
    sds: float = 2.25  # more, where a step distills


COST = Cost()
PROBE_SECONDS = 0.0145  # of one run of ``probe`` on the machine of ``COST``, one thread
PROBE_RUNS = 7


def run(words: list[str], warn: Any) -> None:
    """Say the plan; without --explain, carry it out: fit, then one video, one GLB and one page in the run folder.

    Args:
        words: a video's path or demo, then settings of `fit`, and --explain.
        warn: called with a line of text.
    """
    explained = "--explain" in words
    words = [word for word in words if word != "--explain"]
    if flag := next((word for word in words[1:] if word.startswith("-")), None):
        raise UserError(f"{flag}: fourdiffusion VIDEO takes settings and --explain; for sweeps: fourdiffusion fit -m")
    settings, why = settings_of(*of_demo(words[1:])) if words[0] == "demo" else settings_of(words[0], words[1:])
    config = composed(settings)
    print("\n".join(describe(config, why)), flush=True)
    if explained:
        print(f"command: fourdiffusion fit {shlex.join(settings)}")
        return
    launch.run(launch.Task(FIT.module, FIT.function, FIT.settings), settings, warn)
    export_all(Path(config.output), config.device, max(sampling_settings(config.model).image_size, SMALLEST), warn)


def of_demo(words: list[str]) -> tuple[str, list[str]]:
    """Return the video that ships and the settings of the demo, under those that the user gave."""
    defaults = ["crop=frame", "output=runs/demo", f"prompt={verbs.SAMPLE_PROMPT}"]
    keys = {word.partition("=")[0] for word in words}
    return str(shipped(verbs.SAMPLE)), [*(word for word in defaults if word.partition("=")[0] not in keys), *words]


def settings_of(video: str, words: list[str]) -> tuple[list[str], str]:
    """Return the words for `fit` of a video and what the user gave, and why the model is the one that it is."""
    given = {word.partition("=")[0] for word in words}
    if "video" in given:
        raise UserError(f"video= is given twice: leave it out after '{video}'")
    chosen, why = choose_model(given)
    output = [] if "output" in given else [f"output={default_output(video)}"]
    return [f"video={video}", *chosen, *output, *words], why


def composed(settings: list[str]) -> FitConfig:
    """Return the fit's settings as Hydra composes them."""
    schema = load_settings_class(FIT.settings)
    return composition.build(composition.compose(FIT.function, schema, settings), FitConfig)


def export_all(run: Path, device: str, size: int, warn: Any) -> None:
    """Write ``RESULTS`` of a fitted run, the turntable with pictures of ``size`` pixels, and say where they are."""
    turntable, glb, page = (run / name for name in RESULTS)
    scene = [f"scene={run}", f"device={device}"]
    steps: tuple[tuple[str, list[str]], ...] = (
        ("render", ["path=orbit_time", f"size={size}", f"output={turntable}"]),
        ("export", ["format=glb", f"output={glb}"]),
        ("export", ["format=html", f"output={page}"]),
    )
    for function, words in steps:
        verb = next(verb for verb in verbs.VERBS if verb.function == function)
        launch.run(launch.Task(verb.module, verb.function, verb.settings), [*scene, *words], warn)
    print(f"done. Open {page} in a browser, {glb} in Blender; turn it live: fourdiffusion view scene={run}")


def choose_model(given: set[str]) -> tuple[list[str], str]:
    """Return the settings of `fit` that choose model and recipe, and why, in a few words.

    Args:
        given: keys that the user gave; what they choose stays.
    """
    if "model.path" in given or "model" in given or "experiment" in given:
        return [], "as you gave it"
    found = next((path for path in MODELS if (Path(path) / "model_index.json").is_file()), None)
    if found is None:
        return [], f"the small model that ships (no {' or '.join(MODELS)} here)"
    if not torch.cuda.is_available():
        return [], f"the small model that ships ({found} is here, but needs a GPU; model.path={found} takes it)"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    if memory < FULL_SIZE_GIB:
        return [], f"the small model that ships ({found} needs {FULL_SIZE_GIB:.0f} GiB, the GPU has {memory:.0f})"
    words = ["experiment=fast", f"model.path={found}"]
    return (words + ["model.offload=model"] if memory < 24 else words), f"{found}, on a GPU with {memory:.0f} GiB"


def default_output(video: str) -> str:
    """Return runs/NAME for a video NAME.mp4 or a folder or glob of frames in NAME/."""
    path = Path(video)
    name = path.parent.name if any(letter in path.name for letter in "*?[") else path.stem
    return str(Path("runs") / (name or "video"))


def describe(config: FitConfig, why: str) -> list[str]:
    """Read the video and return the plan in a few lines.

    Raises:
        UserError: the video cannot be used, the object cannot be told from the background, or the disk is full.
    """
    device = resolve_device(config.device)
    sampling = sampling_settings(config.model)
    video = load_video(config, sampling.image_size)
    _check_disk(Path(config.output))
    frames, size = len(video.frame_indices), sampling.image_size
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    lines = [
        f"video: {config.video}, {frames} of {video.num_source_frames} frames; object from {video.alpha_from}; "
        f"crop {video.crop[2]} x {video.crop[2]} at {video.crop[:2]}",
        f"model: {why}, {size} x {size} pixels; {config.max_steps} steps on {machine}",
        f"time: {duration(config, device.type)}",
        f"results: {config.output}: turntable.mp4, scene.glb, scene.html, and the run (Ctrl-C stops it, the same "
        "command goes on)",
    ]
    return lines + [f"warning: {text}" for text in video.warnings]


def duration(config: FitConfig, device: str) -> str:
    """Return about how long the fit takes, or why that is not known."""
    if device != "cpu" or sampling_settings(config.model).image_size > 128:
        return "no measurement for this model and device; the progress bar tells after the first steps"
    minutes = estimate(config, probe()) / 60
    return f"about {max(round(minutes), 1)} min, estimated from a probe of this machine as it is now"


def estimate(config: FitConfig, probe_seconds: float) -> float:
    """Return the seconds of a fit of the small model where ``probe`` takes ``probe_seconds``."""
    sds = config.sds
    distilled = 0 if sds.source == "off" else max(config.max_steps - sds.start_step, 0) / sds.every
    pictures = config.num_frames * config.num_views / 32
    seconds = COST.fixed * pictures + COST.step * config.max_steps + COST.sds * pictures * distilled
    return seconds * probe_seconds / PROBE_SECONDS


def probe() -> float:
    """Return the seconds of a fixed piece of work like a fit's: the median of several runs, in under a second."""
    images, weight = torch.ones(8, 64, 32, 32), torch.ones(64, 64, 3, 3)
    table, index = torch.ones(1 << 18, 2), (torch.arange(1 << 19) * 7919) % (1 << 18)
    taken = []
    with torch.no_grad():
        for _ in range(PROBE_RUNS):
            began = time.perf_counter()
            functional.conv2d(images, weight, padding=1)
            table.index_select(0, index).sum()
            taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:]))


def _check_disk(output: Path) -> None:
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if free < NEEDED_GIB:
        raise UserError(
            f"output={output}: {free:.2f} GiB are free there, a run needs {NEEDED_GIB}: choose another disk"
        )
    if not os.access(folder, os.W_OK):
        raise UserError(f"output={output}: {folder} cannot be written to: choose another output")

"""What the measuring scripts share: held-out clips, samples of the model, and fits through the command line.

Clips are those of `data synth split=test rig=orbit` or of `data render random_offset=false random_heading=true`: V
views evenly spaced from azimuth 0, where the input is. Letters: F frames, V views.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.cli import config
from fourdiffusion.cli.verbs import SAMPLE_PROMPT
from fourdiffusion.datasets.clips import Clip, list_clips, read_clip
from fourdiffusion.diffusion.generation import generate_views
from fourdiffusion.diffusion.generation_config import with_sampling_settings
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import override
from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.media.image import composite
from fourdiffusion.media.write import write_image
from fourdiffusion.runs import git_commit
from fourdiffusion.settings import GenerateConfig

# The words of `fourdiffusion fit` for the sample that ships, and for the first edition's.
SAMPLE = ["video=data/sample/input.mp4", "crop=frame", f"prompt={SAMPLE_PROMPT}"]
CREATURE = ["video=tests/data/creature/input.mp4", "crop=frame", "prompt=a pink bird with a purple belly flying"]


def first_clips(folder: Path, count: int) -> list[Path]:
    """The first clips by name: none is chosen. UserError where there are fewer."""
    found = list_clips(folder)
    if not 1 <= count <= len(found):
        raise UserError(f"--objects {count}: {folder} holds {len(found)} clips, give 1 to {len(found)}")
    return found[:count]


def choose_views(c2w: Tensor, num_views: int) -> list[int]:
    """Numbers of the cameras [N, 4, 4] that stand where 4DM puts its ``num_views``, the input's own first."""
    chosen = []
    for azimuth in cameras.orthogonal_azimuths(num_views).tolist():
        found = cameras.find(c2w, cameras.orbit(azimuth))
        if found is None:
            raise UserError(
                f"the clip has no camera at azimuth {azimuth:g}: make clips with `fourdiffusion data synth split=test "
                f"rig=orbit` and a num_views that is a multiple of {num_views}"
            )
        chosen.append(found)
    return chosen


# ---- samples --------------------------------------------------------------------------------------------------------


def sampling_settings(clips: Path, model: str, frames: int, views: int, words: list[str]) -> GenerateConfig:
    """The settings that `fourdiffusion generate` would have; ``words`` are more of its KEY=VALUE."""
    schema = config.load_settings_class("fourdiffusion.settings:GenerateConfig")
    given = [f"video={clips}", f"model.path={model}", f"num_frames={frames}", f"num_views={views}"]
    settings = config.build(config.compose("generate", schema, [*given, *words]), GenerateConfig)
    settings.model = with_sampling_settings(settings.model)
    return settings


@dataclass
class Example:
    """One held-out object: its true videos, RGB in [0, 1] on white, from where the model puts its views."""

    caption: str
    truth: Tensor  # [V, F, 3, H, W], view 0 is the input


def read_example(folder: Path, settings: GenerateConfig) -> Example:
    """Of the clip's first frames. UserError where it has fewer, or other pictures or cameras than the settings want."""
    clip = read_clip(folder)
    frames, size = clip.rgba.shape[1], list(clip.rgba.shape[-2:])
    if frames < settings.num_frames:
        raise UserError(f"{folder} has {frames} frames: give --frames {frames}, or other clips")
    if size != [settings.model.image_size] * 2:
        raise UserError(f"{folder} is {size[1]} x {size[0]} pixels, the model wants {settings.model.image_size} square")
    pixels = clip.rgba[choose_views(clip.c2w, settings.num_views), : settings.num_frames]
    return Example(clip.caption, composite(pixels.float() / 255))


def sample(
    pipeline: FourDiffusionPipeline,
    settings: GenerateConfig,
    example: Example,
    seed: int,
    use_motion: bool = True,
    own_settings: bool = False,
) -> Tensor:
    """Videos [V, F, 3, H, W] in [0, 1] as `fourdiffusion generate` makes them; without motion, frame by frame.

    With ``own_settings`` the pipeline samples at its own size with its own steps; its videos are then resized to the
    truth's size.
    """
    own = pipeline.generation_config
    videos = generate_views(
        pipeline,
        example.truth[0].to(pipeline.device),
        example.caption,
        num_views=settings.num_views,
        settings=own if own_settings else override(own, settings.model),
        generator=torch.Generator().manual_seed(seed),
        use_motion=use_motion,
    )
    side = example.truth.shape[-1]
    if videos.shape[-1] == side:
        return videos
    frames = torch.nn.functional.interpolate(videos.flatten(0, 1), size=side, mode="bicubic", antialias=True)
    return frames.clamp(0, 1).unflatten(0, videos.shape[:2])


def fingerprint(folder: Path) -> str:
    """Of all weights in a folder, so that figures of two models never mix."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


# ---- fits -----------------------------------------------------------------------------------------------------------


def write_input(folder: Path, clip: Clip) -> list[str]:
    """Writes the clip's view at azimuth 0 as frames; the words that make `fourdiffusion fit` read them as they are."""
    for number, frame in enumerate(clip.rgba[choose_views(clip.c2w, 1)[0]]):
        write_image(folder / f"{number:02d}.png", frame.float() / 255)
    return [f"video={folder}", "crop=frame", f"num_frames={clip.rgba.shape[1]}", f"prompt={clip.caption}"]


def fit_once(run: Path, words: list[str], weights: str, watch: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Runs `fourdiffusion fit` into ``run`` unless that is done; a stopped fit goes on.

    Args:
        words: its KEY=VALUE, all but output.
        weights: the model's fingerprint.
        watch: called now and then while it runs.

    Returns:
        The note kept beside the run: words, weights, commit, peak memory, and seconds and processor seconds of the
        whole command, None where it was stopped in between. UserError where the run is of other words or
        weights.
    """
    path = run.with_name(run.name + ".json")
    wanted = {"words": words, "weights": weights}
    note: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    if note is not None and {key: note[key] for key in wanted} != wanted:
        raise UserError(f"{run} was fitted with other settings or another model: delete it and {path}")
    if note is not None and "seconds" in note:
        return note
    _write_json(path, wanted)
    commit, began = git_commit(), time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "fourdiffusion", "fit", *words, f"output={run}"])
    try:
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            time.sleep(0.2)
            watch()
    except KeyboardInterrupt:
        process.wait()  # it got the signal too, and saves its step first
        raise
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"the fit in {run} ended with code {process.returncode}, see above; the same command goes on")
    seconds = cpu_seconds = None
    if note is None:
        seconds = round(time.monotonic() - began, 1)
        cpu_seconds = round(usage.ru_utime + usage.ru_stime, 1)
    peak = round(usage.ru_maxrss / 2**20, 2)  # Linux counts KiB
    done = wanted | {"commit": commit, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gib": peak}
    _write_json(path, done)
    return done


def novel_means(metrics: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Of a fit's metrics.json: the scene's means over novel views, and those of the copied input."""
    scene = json.loads(metrics.read_text())["scene"]
    if "novel" not in scene["mean_by_role"]:
        raise UserError(f"{metrics}: the truth has no view between the generated ones; use clips of 8 views")
    return scene["mean_by_role"]["novel"], scene["baseline"]["mean_by_role"]["novel"]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, lambda partial: partial.write_text(json.dumps(content, indent=1) + "\n"))

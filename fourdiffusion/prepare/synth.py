"""Verb `data synth`: write clips of the synthetic world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.cameras import DISTANCE, FOVY_DEG, orbit, orthogonal_azimuths
from fourdiffusion.datasets.clips import Clip, write_clip
from fourdiffusion.datasets.processes import run_jobs
from fourdiffusion.datasets.synthetic import TEST_SEED_START, make_creature, render
from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.media.paths import refuse_foreign_files
from fourdiffusion.prepare.settings import FAULTS, PLANS, RIGS, SPLITS, SynthConfig
from fourdiffusion.runs import lock_folder, terminable


def synth(config: SynthConfig) -> None:
    """Write the missing clips; an interrupted run resumes."""
    _validate(config)
    output = Path(config.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file; give a folder")
    with terminable(), lock_folder(output, keep="synth.json"):
        _claim(output, config)
        _write_missing(config, output)


def _write_missing(config: SynthConfig, output: Path) -> None:
    base = config.first_seed + (TEST_SEED_START if config.split == "test" else 0)
    seeds = range(base, base + config.num_clips + config.num_faulty)
    jobs = [(config, seed, seed >= base + config.num_clips) for seed in seeds]
    todo = [job for job in jobs if not (output / _uid(*job)).exists()]
    with tqdm(total=len(seeds), initial=len(seeds) - len(todo), unit="clip", desc=f"synth {config.split}") as bar:
        for _ in run_jobs(_write_one, todo, config.num_workers):
            bar.update()


def make_clip(config: SynthConfig, seed: int, faulty: bool = False) -> Clip:
    """Render the clip of one seed (the absolute seed, including the split's offset)."""
    creature = make_creature(seed, config.plans == "unseen")
    azimuths = rig_azimuths(config.rig, config.num_views, seed)
    times = torch.linspace(0, 1, config.num_frames)
    views, frames, size = config.num_views, config.num_frames, config.size
    shown, turn, shift = fault(seed, times) if faulty else (times, torch.zeros(frames), torch.zeros(frames, 3))
    cameras = orbit((azimuths[:, None] + turn).flatten(), config.elevation_deg, DISTANCE)  # [V * F, 4, 4]
    cameras[:, :3, 3] += shift.repeat(views, 1)
    rgba, depth = render(creature, cameras, FOVY_DEG, shown.repeat(views), size, size)
    return Clip(
        uid=_uid(config, seed, faulty),
        rgba=(rgba * 255).round().to(torch.uint8).view(views, frames, 4, size, size),
        c2w=orbit(azimuths, config.elevation_deg, DISTANCE),
        fovy_deg=FOVY_DEG,
        times=times,
        caption=creature.caption,
        license="Apache-2.0",
        source=f"fourdiffusion data synth, seed {seed}" + (f", fault {FAULTS[seed % len(FAULTS)]}" if faulty else ""),
        depth=depth.view(views, frames, size, size) if config.depth else None,
    )


def fault(seed: int, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return times and camera motion of a faulty clip; its transforms.json does not contain them.

    static: one frozen pose. turning: one pose on a turntable. leaving: the object drifts out of the frame.
    broken: poses in random order, each from another position.

    Returns:
        the times shown [F], rotation of the cameras about z in degrees [F], and their translation [F, 3].
    """
    rng = np.random.default_rng([seed, 2])
    kind, frames = FAULTS[seed % len(FAULTS)], len(times)
    moment, still = torch.full_like(times, float(rng.uniform())), torch.zeros_like(times)
    here = torch.zeros(frames, 3)
    if kind == "static":
        return moment, still, here
    if kind == "turning":
        return moment, times * float(rng.choice([-1, 1]) * rng.uniform(120, 360)), here
    if kind == "leaving":
        way = torch.from_numpy(rng.normal(size=3)).float()
        return times, still, times[:, None] * way / way.norm() * float(rng.uniform(0.4, 0.8))
    jumps = torch.from_numpy(rng.uniform(size=(2, frames))).float()
    return jumps[0], 360 * jumps[1], here


def rig_azimuths(rig: str, num_views: int, seed: int) -> Tensor:
    """Return azimuths [V] in degrees. Only `two_orthogonal` depends on the seed."""
    if rig == "orbit":
        return orthogonal_azimuths(num_views)
    starts = np.random.default_rng([seed, 1]).uniform(0, 360, num_views // 4)
    return torch.cat([orthogonal_azimuths(4, float(start)) for start in starts]) % 360


def _uid(config: SynthConfig, seed: int, faulty: bool) -> str:
    return f"{'faulty' if faulty else 'unseen' if config.plans == 'unseen' else 'synthetic'}-{seed:07d}"


def _write_one(job: tuple[SynthConfig, int, bool]) -> None:
    write_clip(Path(job[0].output) / _uid(*job), make_clip(*job))


def _validate(config: SynthConfig) -> None:
    if not config.output:
        raise UserError("output is empty; give the folder for the clips, for example output=data/synth")
    for name, value, choices in (
        ("split", config.split, SPLITS), ("rig", config.rig, RIGS), ("plans", config.plans, PLANS)
    ):  # fmt: skip
        if value not in choices:
            raise UserError(f"{name}={value} is unknown; choose one of {', '.join(choices)}")
    for name, low in (("num_clips", 1), ("num_views", 1), ("num_frames", 2), ("size", 8), ("num_workers", 1)):
        if getattr(config, name) < low:
            raise UserError(f"{name}={getattr(config, name)} is too small; give at least {low}")
    if config.rig == "two_orthogonal" and config.num_views % 4:
        raise UserError(
            f"num_views={config.num_views} does not fit rig=two_orthogonal; give a multiple of 4 or rig=orbit"
        )
    if not -90 < config.elevation_deg < 90:
        raise UserError(f"elevation_deg={config.elevation_deg}; give degrees between -90 and 90")
    if config.plans == "unseen" and config.split == "train":
        raise UserError("plans=unseen is what no training clip shows: set split=test")
    if config.num_faulty < 0:
        raise UserError(f"num_faulty={config.num_faulty} is negative; give 0 or more")
    if config.first_seed < 0:
        raise UserError(f"first_seed={config.first_seed} is negative; give 0 or more")
    if config.split == "train" and config.first_seed + config.num_clips + config.num_faulty > TEST_SEED_START:
        raise UserError(
            f"first_seed={config.first_seed} with num_clips={config.num_clips} reaches the test seeds;"
            f" training seeds end at {TEST_SEED_START - 1}, use split=test for the others"
        )


def _claim(output: Path, config: SynthConfig) -> None:
    """Record the settings in synth.json, so that a second run cannot add other clips."""
    kept = ("split", "num_views", "num_frames", "size", "rig", "elevation_deg", "plans", "depth")
    wanted = {name: getattr(config, name) for name in kept}
    refuse_foreign_files(output, "synth.json")
    note = output / "synth.json"
    if not note.exists():
        text = json.dumps(wanted, indent=1) + "\n"
        write_atomic(note, lambda partial: partial.write_text(text, encoding="utf-8"))
        return
    found = read_json(note, "restore it, or give another folder")
    if not isinstance(found, dict):
        raise UserError(f"{note}: holds a {type(found).__name__}, not an object; restore it, or give another folder")
    found = {"plans": "seen"} | found  # defaults of folders written before these settings existed
    differs = [f"{name}={found.get(name)}" for name in kept if found.get(name) != wanted[name]]
    if differs:
        raise UserError(f"output={output} holds clips made with {', '.join(differs)}; use that or another folder")

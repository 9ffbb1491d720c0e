"""This tree against the first edition (commit 365a7e0): seconds and PSNR of the demo's fit, quiet and beside load.

    git worktree add ../first 365a7e0
    python scripts/benchmarks/against_first_edition.py --baseline ../first [--clips .cache/measure --objects 5]

Both trees fit the same videos, in turns, each in a process of its own from command to scene, sampling included; both
scenes are rendered by this tree and compared with the truth at the views between the generated ones. With --recipe tiny
both have the first edition's model, and the first video is its sample, the creature; with --recipe small each has its
own default model, and the first video is the sample that ships now. With --busy N each tree fits that video once more
beside N processes that compute without a pause. Leave the machine alone meanwhile. --steps cuts the fits short, to try
the script. --words are for this tree alone: with the first edition's terms, which do not sharpen the input's view,

    --words max_steps=400 sds.every=8 loss.rgb_rays=4096 loss.lambda_input=0 loss.lambda_mask=0
"""

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import report
import torch
from held_out import CREATURE, SAMPLE, first_clips, write_input

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import Clip, read_clip
from fourdiffusion.errors import UserError
from fourdiffusion.media.image import composite
from fourdiffusion.metrics.image import gmsd, psnr
from fourdiffusion.metrics.lpips import load_lpips
from fourdiffusion.runs import git_commit
from fourdiffusion.scene.scene import load_scene, render_views

RECIPES = {
    "tiny": ("creature", CREATURE, "tests/data/creature/truth"),
    "small": ("sample", SAMPLE, "data/sample/truth"),
}
HERE = Path(__file__).resolve().parents[2]


@dataclass
class Fit:
    """One fit of one tree."""

    tree: str  # "first" | "this"
    video: str
    seconds: float  # wall time of the whole command
    cpu_seconds: float  # of all its threads
    psnr_db: float  # this and the others at novel views
    gmsd: float
    lpips: float  # on SqueezeNet; NaN without its weights


def main() -> None:
    """Fit, measure, and print two Markdown tables."""
    options = _options()
    own = {"first": [], "this": [f"experiment={options.recipe}", *options.words]}
    trees = {"first": options.baseline.resolve(), "this": HERE}
    for tree in trees.values():
        if not (tree / "fourdiffusion").is_dir():
            raise UserError(f"--baseline {tree}: no source tree; make one with git worktree add {tree} 365a7e0")
    first, words, folder = RECIPES[options.recipe]
    videos: dict[str, tuple[list[str], Clip]] = {first: (_absolute(words), read_clip(HERE / folder))}
    for path in first_clips(options.clips, options.objects) if options.objects else []:
        clip = read_clip(path)
        videos[path.name] = (_absolute(write_input(options.run / "input" / path.name, clip)), clip)
    fits = [
        fit(name, tree, video, [*words, *own[name]], truth, options)
        for video, (words, truth) in videos.items()
        for name, tree in trees.items()
    ]
    print(table(fits))
    if options.busy:
        quiet = {each.tree: each.seconds for each in fits if each.video == first}
        print(f"\n| beside {options.busy} busy processes | seconds | times the quiet ones |\n|---|---|---|")
        for name, tree in trees.items():
            words, truth = videos[first]
            more = (name, tree, "busy", [*words, *own[name]], truth, options)
            with_load = busy_fit(options.busy, *more)
            print(f"| {name} | {with_load.seconds:.0f} | {with_load.seconds / quiet[name]:.2f} |", flush=True)
    print(f"\n{report.provenance({git_commit()})}; first edition: {_commit(trees['first'])}")


def fit(name: str, tree: Path, video: str, words: list[str], truth: Clip, options: argparse.Namespace) -> Fit:
    """Run a tree's `fourdiffusion fit` once. UserError where it fails."""
    output = (options.run / f"{name}-{video}").resolve()
    shutil.rmtree(output, ignore_errors=True)
    words = [*words, f"output={output}", "preview_minutes=0", *([f"steps={options.steps}"] if options.steps else [])]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "fourdiffusion", "fit", *words], cwd=tree, env=environment, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise UserError(f"{tree}: the fit of {video} ended with code {os.waitstatus_to_exitcode(status)}")
    return Fit(name, video, seconds, usage.ru_utime + usage.ru_stime, *novel(output, truth, options.weights))


def busy_fit(count: int, *arguments: object) -> Fit:
    """Run a fit beside ``count`` processes that compute without a pause."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        return fit(*arguments)  # type: ignore[arg-type]
    finally:
        for other in others:
            other.kill()
            other.wait()


def novel(run: Path, truth: Clip, weights: Path | None) -> tuple[float, float, float]:
    """Return PSNR in dB, GMSD and LPIPS (SqueezeNet): means over the frames of the views between the generated ones."""
    between = ((cameras.azimuth_deg(truth.c2w) % 90 - 45).abs() < 40).nonzero().squeeze(1)
    if not len(between):
        raise UserError("the truth has no view between the generated ones; use clips of 8 views")
    frames, size = len(truth.times), truth.rgba.shape[-1]
    scene = load_scene(run)
    c2w = truth.c2w[between].repeat_interleave(frames, 0)
    rendered, _ = render_views(scene, c2w, cameras.FOVY_DEG, truth.times.repeat(len(between)), size)
    wanted = composite(truth.rgba[between].flatten(0, 1).float() / 255)
    lpips = None if weights is None else load_lpips(str(weights), "squeeze")
    distance = math.nan
    if lpips is not None:
        with torch.no_grad():
            distance = float(lpips(rendered, wanted).mean())
    return float(psnr(rendered, wanted).mean()), float(gmsd(rendered, wanted).mean()), distance


def table(fits: list[Fit]) -> str:
    """Return a Markdown table: a line for each video, and the means."""
    lines = [
        "| video | first: s | this: s | ratio | ratio of CPU time | first: dB | this: dB | first: GMSD | this: GMSD | "
        "first: LPIPS | this: LPIPS |",
        "|---" * 11 + "|",
    ]
    pairs = [(a, b) for a in fits for b in fits if (a.tree, b.tree) == ("first", "this") and a.video == b.video]
    lines += [_line(a.video, _figures([a]), _figures([b])) for a, b in pairs]
    first, this = zip(*pairs, strict=True)
    return "\n".join([*lines, _line("all", _figures(first), _figures(this))])


def _figures(fits: Sequence[Fit]) -> list[float]:
    """Return sums of the seconds and means of the rest."""
    seconds = [sum(each.seconds for each in fits), sum(each.cpu_seconds for each in fits)]
    means = [statistics.fmean(getattr(each, name) for each in fits) for name in ("psnr_db", "gmsd", "lpips")]
    return [*seconds, *means]


def _line(video: str, first: list[float], this: list[float]) -> str:
    (a, cpu_a, *quality_a), (b, cpu_b, *quality_b) = first, this
    cells = [f"{a:.0f}", f"{b:.0f}", f"{a / b:.2f}", f"{cpu_a / cpu_b:.2f}"]
    for digits, *pair in zip((2, 3, 3), quality_a, quality_b, strict=True):
        cells += [f"{value:.{digits}f}" for value in pair]
    return f"| {video} | {' | '.join(cells)} |"


def _absolute(words: list[str]) -> list[str]:
    """Return the words with the video's path absolute: both trees run in their own folders."""
    return [f"video={(HERE / word[6:]).resolve()}" if word.startswith("video=") else word for word in words]


def _commit(tree: Path) -> str:
    found = subprocess.run(["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True, help="source tree of the first edition")
    parser.add_argument("--recipe", choices=RECIPES, default="tiny", help="of this tree")
    parser.add_argument("--weights", type=Path, help="folder of LPIPS' weights, as of fourdiffusion evaluate")
    parser.add_argument("--clips", type=Path, default=Path(".cache/measure"), help="held-out clips")
    parser.add_argument("--objects", type=int, default=0, help="of the clips, beside the sample")
    parser.add_argument("--busy", type=int, default=4, help="processes that compute beside the last fits; 0: none")
    parser.add_argument("--words", nargs="*", default=[], help="further settings of this tree's fits, as KEY=VALUE")
    parser.add_argument("--steps", type=int, help="of each fit")
    parser.add_argument("--run", type=Path, default=Path("runs/against_first_edition"))
    return parser.parse_args()


if __name__ == "__main__":
    report.run(main)

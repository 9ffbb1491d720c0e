"""This tree against the first edition (commit 365a7e0): seconds and PSNR of the demo's fit, quiet and beside load.

    git worktree add ../first 365a7e0
    python scripts/benchmarks/against_first_edition.py --baseline ../first [--clips .cache/measure --objects 5]

Both trees fit the same videos with experiment=tiny, in turns, each in a process of its own from command to scene,
sampling included; both scenes are rendered by this tree and compared with the truth at the views between the generated
ones. With --busy N each tree fits the sample once more beside N processes that compute without a pause. Leave the
machine alone meanwhile. --steps cuts the fits short, to try the script. --words are for this tree alone: with the
first edition's terms, which do not sharpen the input's view,

    --words max_steps=400 sds.every=8 loss.rgb_rays=4096 loss.lambda_input=0 loss.lambda_mask=0
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import report
import torch
from held_out import SAMPLE, first_clips, write_input

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import Clip, read_clip
from fourdiffusion.errors import UserError
from fourdiffusion.media.image import composite
from fourdiffusion.metrics.image import psnr
from fourdiffusion.runs import git_commit
from fourdiffusion.scene.scene import load_scene, render_views

HERE = Path(__file__).resolve().parents[2]


@dataclass
class Fit:
    """One fit of one tree."""

    tree: str  # "first" | "this"
    video: str
    seconds: float  # wall time of the whole command
    cpu_seconds: float  # of all its threads
    psnr_db: float  # at novel views


def main() -> None:
    """Fit, measure, and print two Markdown tables."""
    options = _options()
    own = {"first": [], "this": options.words}
    trees = {"first": options.baseline.resolve(), "this": HERE}
    for tree in trees.values():
        if not (tree / "fourdiffusion").is_dir():
            raise UserError(f"--baseline {tree}: no source tree; make one with git worktree add {tree} 365a7e0")
    videos: dict[str, tuple[list[str], Clip]] = {"sample": (_absolute(SAMPLE), read_clip(HERE / "data/sample/truth"))}
    for folder in first_clips(options.clips, options.objects) if options.objects else []:
        clip = read_clip(folder)
        videos[folder.name] = (_absolute(write_input(options.run / "input" / folder.name, clip)), clip)
    fits = [
        fit(name, tree, video, [*words, *own[name]], truth, options.run, options.steps)
        for video, (words, truth) in videos.items()
        for name, tree in trees.items()
    ]
    print(table(fits))
    if options.busy:
        quiet = {each.tree: each.seconds for each in fits if each.video == "sample"}
        print(f"\n| beside {options.busy} busy processes | seconds | times the quiet ones |\n|---|---|---|")
        for name, tree in trees.items():
            words, truth = videos["sample"]
            more = (name, tree, "busy", [*words, *own[name]], truth, options.run, options.steps)
            with_load = busy_fit(options.busy, *more)
            print(f"| {name} | {with_load.seconds:.0f} | {with_load.seconds / quiet[name]:.2f} |", flush=True)
    print(f"\n{report.provenance({git_commit()})}; first edition: {_commit(trees['first'])}")


def fit(name: str, tree: Path, video: str, words: list[str], truth: Clip, run: Path, steps: int | None) -> Fit:
    """Run a tree's `fourdiffusion fit` once. UserError where it fails."""
    output = (run / f"{name}-{video}").resolve()
    shutil.rmtree(output, ignore_errors=True)
    words = [*words, f"output={output}", "preview_minutes=0", *([f"steps={steps}"] if steps else [])]
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
    return Fit(name, video, seconds, usage.ru_utime + usage.ru_stime, novel_psnr(output, truth))


def busy_fit(count: int, *arguments: object) -> Fit:
    """Run a fit beside ``count`` processes that compute without a pause."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        return fit(*arguments)  # type: ignore[arg-type]
    finally:
        for other in others:
            other.kill()
            other.wait()


def novel_psnr(run: Path, truth: Clip) -> float:
    """Return the mean PSNR in dB over the frames of the views that stand between the generated ones, on white."""
    between = ((cameras.azimuth_deg(truth.c2w) % 90 - 45).abs() < 40).nonzero().squeeze(1)
    if not len(between):
        raise UserError("the truth has no view between the generated ones; use clips of 8 views")
    frames, size = len(truth.times), truth.rgba.shape[-1]
    scene = load_scene(run)
    c2w = truth.c2w[between].repeat_interleave(frames, 0)
    rendered, _ = render_views(scene, c2w, cameras.FOVY_DEG, truth.times.repeat(len(between)), size)
    return float(psnr(rendered, composite(truth.rgba[between].flatten(0, 1).float() / 255)).mean())


def table(fits: list[Fit]) -> str:
    """Return a Markdown table: a line for each video, and the means."""
    lines = ["| video | first: s | this: s | ratio | ratio of CPU time | first: dB | this: dB |", "|---" * 7 + "|"]
    pairs = [(a, b) for a in fits for b in fits if (a.tree, b.tree) == ("first", "this") and a.video == b.video]
    for a, b in pairs:
        lines.append(
            f"| {a.video} | {a.seconds:.0f} | {b.seconds:.0f} | {a.seconds / b.seconds:.2f} | "
            f"{a.cpu_seconds / b.cpu_seconds:.2f} | {a.psnr_db:.2f} | {b.psnr_db:.2f} |"
        )
    first, this = (
        torch.tensor([[f.seconds, f.cpu_seconds, f.psnr_db] for f in side]) for side in zip(*pairs, strict=True)
    )
    ratio = first.sum(0) / this.sum(0)
    lines.append(
        f"| all | {first[:, 0].sum():.0f} | {this[:, 0].sum():.0f} | {ratio[0]:.2f} | {ratio[1]:.2f} | "
        f"{first[:, 2].mean():.2f} | {this[:, 2].mean():.2f} |"
    )
    return "\n".join(lines)


def _absolute(words: list[str]) -> list[str]:
    """Return the words with the video's path absolute: both trees run in their own folders."""
    return [f"video={(HERE / word[6:]).resolve()}" if word.startswith("video=") else word for word in words]


def _commit(tree: Path) -> str:
    found = subprocess.run(["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True, help="source tree of the first edition")
    parser.add_argument("--clips", type=Path, default=Path(".cache/measure"), help="held-out clips")
    parser.add_argument("--objects", type=int, default=0, help="of the clips, beside the sample")
    parser.add_argument("--busy", type=int, default=4, help="processes that compute beside the last fits; 0: none")
    parser.add_argument("--words", nargs="*", default=[], help="further settings of this tree's fits, as KEY=VALUE")
    parser.add_argument("--steps", type=int, help="of each fit")
    parser.add_argument("--run", type=Path, default=Path("runs/against_first_edition"))
    return parser.parse_args()


if __name__ == "__main__":
    report.run(main)

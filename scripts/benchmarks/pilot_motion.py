"""Does a motion prior from another base model help? The small model's miniature of starting from AnimateDiff.

    python scripts/benchmarks/pilot_motion.py --run runs/pilot                        # clips of 32 x 32 are made
    python scripts/benchmarks/pilot_motion.py --run runs/pilot --clips CLIPS --held-out CLIPS

1. other bases: "tuned", the shipped UNet with `--tuned-steps` more steps of stage=base at a high rate and other noise,
   whose features are near to the shipped one's; "fresh", a UNet of the same sizes trained from other random weights, as
   AnimateDiff's SD 1.5 is to SD 2.1
2. motion layers trained on each other base
3. on the shipped base: from zero, from these layers (moved), from these with the projections first (two-stage)

Prints the validation loss of each against steps, and the steps that each needs to the loss that zero ends with. One run
each: a table of one seed in miniature.
"""

import argparse
import json
from pathlib import Path

import report
import torch

from fourdiffusion import cli
from fourdiffusion.cli.config import shipped
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet
from fourdiffusion.errors import UserError
from fourdiffusion.runs import git_commit

WORDS = [
    "cpu=true",
    "trackers=[]",
    "validation_num_inference_steps=1",
    "validation_guidance_scale=1",
    "lr_warmup_steps=10",
]
WORDS += ["ema_decay=0.98", "log_every=10", "cond_drop_camera=false", "max_loss_rise=0", "keep_best=false"]


def main() -> None:
    """Train the runs and print the tables."""
    options = _options()
    base, fresh = options.run / "base", options.run / "fresh_start"
    if not base.exists():
        write_base(base, trained=True)
    if not fresh.exists():
        write_base(fresh, trained=False)
    clips, held_out = options.clips or options.run / "clips", options.held_out or options.run / "held_out"
    for folder, count, split in ((clips, 96, "train"), (held_out, 4, "test")):
        if not folder.exists():
            words = [f"output={folder}", f"num_clips={count}", f"split={split}", "size=32", "num_views=4", "rig=orbit"]
            _run(["data", "synth", *words, "num_frames=8"])
    data = [f"data.path={clips}", f"data.num_views={options.views}", f"data.num_frames={options.frames}", *WORDS]
    motion = [f"batch_size={options.batch}", "stage=motion", f"learning_rate={options.rate}"]
    starts: dict[str, list[str]] = {"zero": []}
    for name, steps, start in (("tuned", options.tuned_steps, base), ("fresh", options.fresh_steps, fresh)):
        if not steps:
            continue
        other = ["stage=base", "batch_size=4", f"model.path={start}", f"max_steps={steps}", "learning_rate=1e-3"]
        _run(["train", *data, *other, "seed=7", "validation_every=0", f"output={options.run / name}"])
        words = [f"model.path={options.run / name / 'model'}", f"max_steps={options.prior_steps}", "seed=8"]
        prior = options.run / f"{name}_prior"
        _run(["train", *data, *motion, *words, "validation_every=0", f"output={prior}"])
        starts[f"{name}, moved"] = [f"init_motion={prior}"]
        starts[f"{name}, two-stage"] = [f"init_motion={prior}", f"projection_steps={options.steps // 4}"]
    shown = [f"validation_every={options.steps // 6}", f"validation_data={held_out}", "validation_clips=4"]
    untrained = options.run / "untrained"  # the loss before any step: zero motion layers are the base
    words = [f"model.path={base}", f"output={untrained}", "max_steps=1", "learning_rate=0", "validation_every=1"]
    _run(["train", *data, *motion, *shown, *words])
    losses = {"base": _losses(untrained)}
    for name, words in starts.items():
        folder = options.run / name.replace(", ", "_")
        own = [f"model.path={base}", f"output={folder}", f"max_steps={options.steps}"]
        _run(["train", *data, *motion, *words, *shown, *own])
        losses[name] = _losses(folder)
    print_table(losses)


def print_table(losses: dict[str, dict[int, float]]) -> None:
    """Print the losses {start: {step: loss}} as Markdown, with the first step at which each reaches zero's last."""
    steps = sorted(losses["zero"])
    print(f"\nbase alone: {losses.pop('base')[1]:.4f}\n")
    print("| start | " + " | ".join(f"{step} steps" for step in steps) + " | steps to zero's last loss |")
    print("|---" * (len(steps) + 2) + "|")
    goal = losses["zero"][steps[-1]]
    for name, found in losses.items():
        reached = next((str(step) for step in steps if found[step] <= goal), "not reached")
        print(f"| {name} | " + " | ".join(f"{found[step]:.4f}" for step in steps) + f" | {reached} |")
    print(f"\n{report.provenance({git_commit()})}")


def write_base(folder: Path, trained: bool) -> None:
    """Write the shipped model with zero motion layers, without ``trained`` with a UNet of random weights."""
    pipeline = load_pipeline(shipped("data/models/tiny"))
    sizes = pipeline.motion.config
    torch.manual_seed(0)
    if not trained:
        pipeline.register_modules(unet=MultiviewUNet.from_config(dict(pipeline.unet.config)))
    fresh = MotionModules(list(sizes.channels), sizes.num_heads, sizes.max_frames, sizes.norm_groups)
    pipeline.register_modules(motion=fresh)
    pipeline.save_whole(folder)


def _losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}


def _run(words: list[str]) -> None:
    if code := cli.main(words):
        raise UserError(f"fourdiffusion {' '.join(words)} ended with code {code}, see above")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="training clips; none: 96 synthetic ones of 32 x 32")
    parser.add_argument("--held-out", type=Path, help="at least 4 clips; none: synthetic ones")
    parser.add_argument("--run", type=Path, default=Path("runs/pilot"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--tuned-steps", type=int, default=150, help="0: without this base")
    parser.add_argument("--fresh-steps", type=int, default=600, help="0: without this base")
    parser.add_argument("--prior-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=240)
    return parser.parse_args()


if __name__ == "__main__":
    report.run(main)

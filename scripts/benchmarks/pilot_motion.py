"""Does a motion prior from another base model help? The small model's miniature of starting from AnimateDiff.

    python scripts/benchmarks/pilot_motion.py --clips CLIPS --held-out CLIPS --run runs/pilot

1. another base: the shipped UNet with `--other-steps` steps of stage=base at a high rate and other noise
2. motion layers trained on that other base
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
    """Train the five runs and print the tables."""
    options = _options()
    base = options.run / "base"
    if not base.exists():
        write_base(base)
    data = [f"data.path={options.clips}", f"data.num_views={options.views}", f"data.num_frames={options.frames}"]
    data += [f"batch_size={options.batch}", *WORDS]
    other = ["stage=base", f"model.path={base}", f"max_steps={options.other_steps}", "learning_rate=1e-3", "seed=7"]
    _train([*data, *other, "validation_every=0", f"output={options.run / 'other'}"])
    motion = ["stage=motion", f"learning_rate={options.rate}"]
    prior = [f"model.path={options.run / 'other/model'}", f"max_steps={options.prior_steps}", "validation_every=0"]
    _train([*data, *motion, *prior, "seed=8", f"output={options.run / 'prior'}"])
    starts = {
        "zero": [],
        "moved": [f"init_motion={options.run / 'prior'}"],
        "two-stage": [f"init_motion={options.run / 'prior'}", f"projection_steps={options.steps // 4}"],
    }
    shown = [f"validation_every={options.steps // 8}", f"validation_data={options.held_out}", "validation_clips=8"]
    losses: dict[str, dict[int, float]] = {}
    for name, words in starts.items():
        own = [f"model.path={base}", f"max_steps={options.steps}", f"output={options.run / name}"]
        _train([*data, *motion, *words, *shown, *own])
        losses[name] = _losses(options.run / name)
    steps = sorted(losses["zero"])
    print("| start | " + " | ".join(f"{step} steps" for step in steps) + " | steps to zero's last loss |")
    print("|---" * (len(steps) + 2) + "|")
    goal = losses["zero"][steps[-1]]
    for name, found in losses.items():
        reached = next((str(step) for step in steps if found[step] <= goal), "not reached")
        print(f"| {name} | " + " | ".join(f"{found[step]:.4f}" for step in steps) + f" | {reached} |")
    print(f"\n{report.provenance({git_commit()})}")


def write_base(folder: Path) -> None:
    """Write the shipped model with zero motion layers."""
    pipeline = load_pipeline(shipped("data/models/tiny"))
    sizes = pipeline.motion.config
    torch.manual_seed(0)
    fresh = MotionModules(list(sizes.channels), sizes.num_heads, sizes.max_frames, sizes.norm_groups)
    pipeline.register_modules(motion=fresh)
    pipeline.save_whole(folder)


def _losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}


def _train(words: list[str]) -> None:
    if code := cli.main(["train", *words]):
        raise UserError(f"fourdiffusion train {' '.join(words)} ended with code {code}, see above")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/pilot"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--other-steps", type=int, default=300)
    parser.add_argument("--prior-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=400)
    return parser.parse_args()


if __name__ == "__main__":
    report.run(main)

"""Overfit: does the motion stage, the only one that trains here, learn four clips by heart?

    python scripts/benchmarks/overfit.py --run runs/overfit [KEY=VALUE of `fourdiffusion train` ...]

The frozen base has the shipped model's VAE and encoders and an untrained UNet (--base fresh), so that everything that
the model comes to know of the clips lies in its motion layers; --base shipped takes the shipped model's trained UNet,
whose loss is low before the first step. The encoders' outputs are cached. Prints the validation loss by noise level,
on the training clips, against steps, and writes overfit.png: each clip's frames, truth above samples from noise.
Ends with code 1 unless the mean of the four noise levels falls under a tenth of its start, and under a tenth of 1,
which predicting zero gives: the start of a random network may lie above that.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import report
import torch
from diffusers.models.resnet import ResnetBlock2D

from fourdiffusion import cli
from fourdiffusion.cli.config import build, compose, load_settings_class, shipped
from fourdiffusion.diffusion.attention import MultiviewTransformer
from fourdiffusion.diffusion.generation import generate_views
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet
from fourdiffusion.errors import UserError
from fourdiffusion.media.write import contact_sheet, write_image
from fourdiffusion.runs import git_commit
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.validation import validation_samples

SETTINGS = "fourdiffusion.train.settings:TrainConfig"
BRANCH, GAIN = 0.3, 4.0  # factors of an untrained UNet's weights, see shrink_branches
WORDS = ["stage=motion", "batch_size=4", "data.num_views=2", "data.num_frames=3", "data.frame_stride=3", "cpu=true"]
WORDS += ["learning_rate=2e-3", "lr_warmup_steps=50", "weight_decay=0", "ema_decay=0.98", "cond_drop_prob=0"]
WORDS += ["text_drop_prob=0", "log_every=50", "validation_clips=4", "validation_num_inference_steps=1"]
WORDS += ["validation_guidance_scale=1", "trackers=[]", "checkpoint_minutes=1", "max_loss_rise=0"]


def main() -> None:
    """Make the clips and the base, train, and print the table."""
    options = _options()
    if options.run.exists() and not (options.run / "train").exists():
        raise UserError(f"{options.run} exists: delete it")
    clips, base = options.run / "clips", options.run / "base"
    if not clips.exists():
        words = [f"num_clips={options.clips}", "num_views=2", f"size={options.size}", "rig=orbit", "num_frames=7"]
        _run(["data", "synth", f"output={clips}", *words])
    if not base.exists():
        write_base(base, options.base)
    shards = options.run / "shards"
    _run(["data", "pack", f"clips={clips}", f"output={shards}", "latents=true", f"model.path={base}"])
    words = [*WORDS, f"max_steps={options.steps}", f"lr_decay_steps={options.steps // 3}"]
    words += [
        f"data.path={shards}",
        "data.latents=true",
        f"model.path={base}",
        *options.words,
        f"output={options.run / 'train'}",
    ]
    began = time.process_time()
    _run(["train", *words, "max_steps=1", "validation_every=1"])  # where the loss starts
    _run(["train", *words, f"validation_every={options.steps // 8}"])
    print(f"\n{time.process_time() - began:.0f} s of processor time, starting and validating included")
    write_sheet(options.run, build(compose("train", load_settings_class(SETTINGS), words), TrainConfig))
    sys.exit(not table(options.run / "train"))


def write_base(folder: Path, kind: str) -> None:
    """Write the shipped model with zero motion layers, and an untrained narrower UNet where ``kind`` is fresh."""
    pipeline = load_pipeline(shipped("data/models/tiny"))
    torch.manual_seed(0)
    if kind == "fresh":
        sizes = dict(pipeline.unet.config) | {"channels": [64, 64], "attention_levels": [True, True]}
        pipeline.register_modules(unet=MultiviewUNet.from_config(sizes))
        shrink_branches(pipeline.unet)
    heads, groups = pipeline.motion.config.num_heads, pipeline.unet.config.norm_groups
    pipeline.register_modules(motion=MotionModules(pipeline.unet.block_channels(), heads, 32, groups))
    pipeline.save_whole(folder)


def shrink_branches(unet: MultiviewUNet) -> None:
    """Let an untrained UNet pass its input on, so that layers that see one pixel each can read the noise from it.

    Diffusion UNets begin with residual branches of zero (Dhariwal and Nichol 2021); torch's defaults bury the input
    under what the branches make of it. A few tenths leave cameras, noise level, prompt and positions in the features.
    The output convolution is scaled up: by default normalized features cannot say white noise of variance 1.
    """
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, ResnetBlock2D):
                module.conv2.weight *= BRANCH
            elif isinstance(module, MultiviewTransformer):
                module.proj_out.weight *= BRANCH
        unet.conv_out.weight *= GAIN


def write_sheet(run: Path, config: TrainConfig) -> None:
    """Write overfit.png: per clip the views' frames side by side, truth above samples from noise (20 steps)."""
    pipeline = load_pipeline(run / "train/model")
    own = replace(pipeline.generation_config, num_inference_steps=20, guidance_scale=1.0, negative_prompt="")
    samples, rows, labels = validation_samples(config), [], []
    for number in range(config.validation_clips):
        sample = samples[0, number]
        own = replace(own, image_size=sample.input.shape[-1])
        noise = torch.Generator().manual_seed(number)
        views = generate_views(pipeline, sample.input, sample.caption, c2w=sample.c2w, settings=own, generator=noise)
        rows += [sample.target.transpose(0, 1).flatten(0, 1), views.flatten(0, 1)]
        labels += [f"{number} truth", f"{number} model"]
    write_image(run / "overfit.png", contact_sheet(torch.stack(rows), labels, min_side=64))


def table(run: Path) -> bool:
    """Print the losses as Markdown. Return whether the last mean is under a tenth of the first, and of 1."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "validation_loss" in line]
    names = [name for name in lines[0] if name.startswith("validation_loss")]
    print("| steps | " + " | ".join(name.replace("validation_loss", "t").strip("_") for name in names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for line in lines:
        print(f"| {line['step']} | " + " | ".join(f"{line[name]:.4f}" for name in names) + " |")
    first, last = lines[0]["validation_loss"], lines[-1]["validation_loss"]
    print(f"\n{first:.4f} -> {last:.4f}, a {first / last:.1f}th; {report.provenance({git_commit()})}")
    return last < min(first, 1) / 10


def _run(words: list[str]) -> None:
    if code := cli.main(words):
        raise UserError(f"fourdiffusion {' '.join(words)} ended with code {code}, see above")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="KEY=VALUE of fourdiffusion train; they win")
    parser.add_argument("--run", type=Path, default=Path("runs/overfit"))
    parser.add_argument("--base", choices=("fresh", "shipped"), default="fresh")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--size", type=int, default=32, help="of the pictures, in pixels")
    parser.add_argument("--steps", type=int, default=480)
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    report.run(main)

"""How near diffusers' samplers come to the solution of 1000 DDIM steps on the small model, and how fast.

python scripts/benchmarks/compare_samplers.py [FOLDER OF CLIPS [NUMBER OF CLIPS]]

Same clip, same first noise, trailing steps, no noise added on the way: all samplers solve one differential equation.
Printed: relative distance of the latents to the reference, PSNR of the pictures against it, seconds; means over the
clips. One frame a clip keeps the thousand steps affordable.
"""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.cli import config
from fourdiffusion.datasets.clips import list_clips, read_clip
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.generation import generate_views, with_overrides
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.schedulers import set_scheduler
from fourdiffusion.media.image import composite

FRAMES, VIEWS, GUIDANCE, REFERENCE_STEPS = 1, 4, 2.5, 1000
STEPS = {"ddim": (10, 15, 25, 50, 100), "dpm++": (10, 15, 25), "unipc": (10, 15, 25), "euler": (10, 15, 25)}


def conditions(folder: Path) -> tuple[Tensor, str]:
    """The first frames of a clip's view at azimuth 0, on white, and its caption."""
    clip = read_clip(folder)
    view = int(cameras.azimuth_deg(clip.c2w).abs().argmin())
    return composite(clip.rgba[view, :FRAMES].float() / 255), clip.caption


def sample(pipeline: FourDiffusionPipeline, images: Tensor, prompt: str, steps: int, seed: int) -> Tensor:
    """Latents of one clip."""
    settings = with_overrides(pipeline.generation_config, steps, GUIDANCE, "")
    generator = torch.Generator().manual_seed(seed)
    return generate_views(
        pipeline, images, prompt, num_views=VIEWS, settings=settings, generator=generator, output_type="latent"
    )


def main(folder: Path, number: int) -> None:
    """Prints a Markdown table."""
    pipeline = load_pipeline(config.shipped("data/models/tiny"))
    clips = [conditions(each) for each in list_clips(folder)[:number]]
    set_scheduler(pipeline, "ddim", "trailing")
    wanted = [sample(pipeline, *clip, REFERENCE_STEPS, seed) for seed, clip in enumerate(clips)]
    print(f"{number} clips of {folder}, {FRAMES} frames x {VIEWS} views, guidance {GUIDANCE}")
    print("| sampler | steps | distance of latents | PSNR, dB | seconds |\n|---|---|---|---|---|")
    for name, choices in STEPS.items():
        set_scheduler(pipeline, name, "trailing")
        for steps in choices:
            distances, psnrs, began = [], [], time.perf_counter()
            for seed, clip in enumerate(clips):
                z = sample(pipeline, *clip, steps, seed)
                distances.append(float((z - wanted[seed]).norm() / wanted[seed].norm()))
                a, b = (encoders.decode_latents(pipeline.vae, x) for x in (z, wanted[seed]))
                psnrs.append(float(-10 * (a - b).square().mean().log10()))
            seconds = (time.perf_counter() - began) / number
            row = (sum(distances) / number, sum(psnrs) / number, seconds)
            print(f"| {name} | {steps} | {row[0]:.4f} | {row[1]:.1f} | {row[2]:.1f} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".cache/synth/test"), int(sys.argv[2]) if len(sys.argv) > 2 else 2)

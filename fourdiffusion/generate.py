"""``generate``: a monocular video becomes V videos of the same object from evenly spaced sides."""

from pathlib import Path

import torch
from tqdm import tqdm

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import opaque_clip, write_clip
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.loading import open_pipeline
from fourdiffusion.diffusion.long_video import frame_groups
from fourdiffusion.diffusion.pipeline import unconditional
from fourdiffusion.errors import check_ranges
from fourdiffusion.media.image import composite
from fourdiffusion.media.read import load_video
from fourdiffusion.media.write import write_views
from fourdiffusion.runs import open_run
from fourdiffusion.settings import GenerateConfig


def generate(config: GenerateConfig) -> None:
    """Writes the views as mp4, a contact sheet, and the clip in the interchange format."""
    model = config.model
    check_ranges(
        {
            "num_frames": (config.num_frames, 1, 1000),
            "num_views": (config.num_views, 1, 360),
            "elevation_deg": (config.elevation_deg, -89, 89),
            "model.num_inference_steps": (model.num_inference_steps, 1, 999),
        }
    )
    video = load_video(config.video, config.num_frames, model.image_size, config.alpha, config.crop)
    pipeline = open_pipeline(model, resolve_device(config.device))
    groups = frame_groups(model.long_video, config.num_frames, model.window, pipeline.motion.config.max_frames)
    output = Path(config.output)
    open_run(output, config, free=set())
    tqdm.write(f"{config.video}: {video.summary()}")

    images = composite(video.rgba)
    azimuths = cameras.orthogonal_azimuths(config.num_views)
    c2w = cameras.orbit(azimuths, config.elevation_deg)
    negative = unconditional(model.negative_prompt, model.guidance_scale)
    denoiser = pipeline.prepare(images, config.prompt, negative)
    generator = torch.Generator().manual_seed(config.seed)
    with tqdm(total=model.num_inference_steps, desc="sampling") as bar:
        z = pipeline.sample(
            denoiser, c2w, model.num_inference_steps, model.guidance_scale, generator, groups, bar.update
        )
    views = encoders.decode_latents(pipeline.vae, z).transpose(0, 1).cpu()  # [V, F, 3, H, W]

    write_views(output, images, views, azimuths.tolist())
    if not (output / "clip").exists():
        source = f"generated from {config.video}"
        write_clip(output / "clip", opaque_clip("clip", views, c2w, cameras.FOVY_DEG, config.prompt, source))
    tqdm.write(
        f"pictures: {output / 'contact_sheet.png'}, {output / 'view_000.mp4'} and its sisters; clip: {output / 'clip'}"
    )

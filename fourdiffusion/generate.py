"""``generate``: sample V videos of an object from evenly spaced views, given a monocular video."""

from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import opaque_clip, write_clip
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion.generation import generate_views
from fourdiffusion.diffusion.generation_config import sampling_settings
from fourdiffusion.diffusion.loading import check_precision, open_pipeline, resolve_dtype, with_own_settings
from fourdiffusion.diffusion.long_video import frame_groups
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.errors import check_ranges
from fourdiffusion.media.image import composite
from fourdiffusion.media.read import VideoInput, load_video
from fourdiffusion.media.write import write_views
from fourdiffusion.runs import folder_digest, lock_folder, open_run, terminable
from fourdiffusion.settings import GenerateConfig

FREE = {"device", "model.compile", "model.offload", "model.channels_last"}  # they change the result only by rounding


def generate(config: GenerateConfig) -> None:
    """Write the views as mp4, a contact sheet, and the clip in the interchange format."""
    check_ranges(
        {
            "num_frames": (config.num_frames, 1, 1000),
            "num_views": (config.num_views, 1, 360),
            "elevation_deg": (config.elevation_deg, -89, 89),
        }
    )
    device = resolve_device(config.device)
    config = replace(config, model=resolve_dtype(config.model, device, Path(config.output)))
    check_precision(config.model, device)
    sampling = sampling_settings(config.model)  # before the weights, to report errors at once
    video = load_video(config, sampling.image_size)
    pipeline = open_pipeline(config.model, device)
    frame_groups(sampling.long_video, config.num_frames, sampling.window, pipeline.motion.config.max_frames)
    output = Path(config.output)
    with terminable(), lock_folder(output):
        recorded = replace(config, model=with_own_settings(config.model, pipeline))
        content = {"video": video.digest, "model.path": folder_digest(Path(str(config.model.path)))}
        open_run(output, recorded, FREE, content=content)
        video.write(output, {"fovy_deg": cameras.FOVY_DEG, "distance": cameras.DISTANCE, "elevation_deg": 0.0})
        tqdm.write(f"{config.video}: {video.summary()}")
        _sample(config, pipeline, video, output)


def _sample(config: GenerateConfig, pipeline: FourDiffusionPipeline, video: VideoInput, output: Path) -> None:
    """Sample the views and write them."""
    images = composite(video.rgba)
    azimuths = cameras.orthogonal_azimuths(config.num_views)
    c2w = cameras.orbit(azimuths, config.elevation_deg)
    with tqdm(total=pipeline.generation_config.num_inference_steps, desc="sampling") as bar:
        views = generate_views(
            pipeline,
            images,
            config.prompt,
            c2w=c2w,
            generator=torch.Generator().manual_seed(config.seed),
            progress=bar.update,
        )

    write_views(output, images, views, azimuths.tolist())
    if not (output / "clip").exists():
        source = f"generated from {config.video}"
        times = torch.tensor(video.times)
        write_clip(output / "clip", opaque_clip("clip", views, c2w, cameras.FOVY_DEG, config.prompt, source, times))
    tqdm.write(f"videos: {output}/view_*.mp4; contact sheet: {output / 'contact_sheet.png'}; clip: {output / 'clip'}")

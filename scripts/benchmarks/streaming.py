"""What reading for training costs: the first sample of a large clip, the share of waiting, the gain of cached latents.

python scripts/benchmarks/streaming.py --shards SHARDS --model MODEL [--steps 10] [--output streaming.json]

SHARDS were packed with latents=true model.path=MODEL. Processor seconds (user + system) stand beside wall seconds,
which beside other jobs say little; the two ways of one comparison take turns.
"""

import argparse
import io
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import ClipFiles
from fourdiffusion.datasets.pictures import PictureGrid
from fourdiffusion.datasets.sampling import ClipSamples, collate
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.datasets.shards.reader import FORMAT, INDEX
from fourdiffusion.datasets.shards.writer import PackedClip, write_shard
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.diffusion.objectives import DiffusionObjective
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.step import diffusion_inputs, micro_batches


def resident_mb() -> float:
    """Return the greatest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def large_clip(folder: Path, views: int = 32, frames: int = 32, size: int = 256) -> None:
    """Write one shard with one clip of pictures that compress like renders: a shaded, noisy disk on nothing."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    noise = np.random.default_rng(0).integers(0, 24, (size, size, 1))
    files = []
    for k in range(views * frames):
        inside = (np.hypot(x - 0.1 * np.sin(k), y) < 0.35)[..., None]
        shade = np.stack([x + 0.5, y + 0.5, 0.5 - x], axis=-1) * 200 + noise
        rgba = np.concatenate([shade, np.full((size, size, 1), 255.0)], axis=-1) * inside
        file = io.BytesIO()
        Image.fromarray(rgba.astype(np.uint8)).save(file, "PNG", compress_level=1)
        files.append(file.getvalue())
    grid = PictureGrid([[Path("unused")] * frames] * views, (size, size))
    c2w = cameras.orbit(cameras.orthogonal_azimuths(views))
    clip = ClipFiles("large", grid, c2w, 45.0, torch.linspace(0, 1, frames), "", "", "", "", None, 0.0)
    table = write_shard(folder, "shard-00000.tar", "png", [PackedClip(clip, files, {})], [])
    index = {"format": FORMAT, "frames": "png", "encoders": {}, "shards": [{"name": table["name"], "clips": ["large"]}]}
    (folder / INDEX).write_text(json.dumps(index))


def first_sample() -> dict[str, float]:
    """Seconds and memory from nothing to the first sample (4 + 1 views x 8 frames at stride 4) of a large clip."""
    with tempfile.TemporaryDirectory() as folder:
        writer = multiprocessing.get_context("fork").Process(target=large_clip, args=(Path(folder),))
        writer.start()  # elsewhere: its memory is not the reader's
        writer.join()
        megabytes = (Path(folder) / "shard-00000.tar").stat().st_size / 2**20
        before, began, used = resident_mb(), time.perf_counter(), time.process_time()
        samples = ClipSamples(DataConfig(folder, num_views=4, num_frames=8, frame_stride=4), 8, 0, 1)
        assert samples[0, 0].target.shape == (8, 4, 3, 256, 256)
        seconds, processor = time.perf_counter() - began, time.process_time() - used
        return {
            "shard_mb": round(megabytes, 1),
            "seconds": round(seconds, 3),
            "processor_seconds": round(processor, 3),
            "peak_memory_growth_mb": round(resident_mb() - before, 1),
        }


def steps(shards: str, model: str, latents: bool, count: int, workers: int) -> dict[str, float]:
    """Wall and processor seconds of motion steps, and the share of waiting for data; the first step is not counted."""
    data = DataConfig(shards, num_views=4, num_frames=8, latents=latents)
    config = TrainConfig(batch_size=2, max_steps=count + 1, num_workers=workers, data=data)
    pipeline = load_pipeline(model)
    objective = DiffusionObjective(pipeline, "motion", 0.1, 0.1, True, None)
    optimizer = torch.optim.AdamW(objective.trainable.parameters(), lr=1e-4)
    samples = ClipSamples(data, data.num_frames, config.seed, config.batch_size)
    order = micro_batches(config, 0, 0, 1)
    batches = iter(DataLoader(samples, batch_sampler=order, num_workers=workers, collate_fn=collate))
    waited, began, used = 0.0, time.perf_counter(), time.process_time()
    for step in range(count + 1):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        inputs = diffusion_inputs(config, pipeline.vae, 1000, batch, step)
        objective(*inputs)["mse"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step == 0:
            waited, began, used = 0.0, time.perf_counter(), time.process_time()
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    return {
        "seconds_a_step": round(seconds / count, 3),
        "processor_seconds_a_step": round(processor / count, 3),
        "waiting_share": round(waited / seconds, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", required=True, help="folder of shards with cached latents")
    parser.add_argument("--model", required=True, help="the model that made them")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("streaming.json"))
    options = parser.parse_args()
    result: dict[str, Any] = {"first_sample": first_sample()}
    for turn in range(2):
        for name, latents in (("pictures", False), ("latents", True)):
            result[f"{name}_{turn}"] = steps(options.shards, options.model, latents, options.steps, workers=1)
    pair = [
        sum(result[f"{name}_{k}"]["processor_seconds_a_step"] for k in range(2)) for name in ("pictures", "latents")
    ]
    result["speed_up_in_processor_time"] = round(pair[0] / pair[1], 3)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

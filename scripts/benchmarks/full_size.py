"""What one video costs in memory and time at the release's size, with random weights: none need be downloaded.

python scripts/benchmarks/full_size.py --device cpu   # `generate`: one JSON line, peak and seconds of each part
python scripts/benchmarks/full_size.py --device cuda --task sds --image-chunk 4 --ray-chunk 65536    # steps of `fit`
python scripts/benchmarks/full_size.py --device cuda --steps 4 --table    # every memory mode, as a Markdown table
python scripts/benchmarks/full_size.py --device cpu --tiny --table   # the same at the small model's sizes

The first call writes the pipeline folder (bfloat16, 4.6 GiB), every other loads it as the verbs do. Each measurement is
a process of its own; its peak is all of the process's memory on the CPU, torch's tensors on a GPU.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fourdiffusion import cameras
from fourdiffusion.cli.config import build, compose, load_settings_class
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.generation import generate_views
from fourdiffusion.diffusion.generation_config import (
    read_generation_config,
    sampling_settings,
    write_generation_config,
)
from fourdiffusion.diffusion.loading import DTYPES, OFFLOADS, fresh_pipeline, open_pipeline
from fourdiffusion.diffusion.pipeline import unconditional
from fourdiffusion.diffusion.schedulers import noise_schedule
from fourdiffusion.diffusion.settings import GenerationConfig, ModelConfig, architecture
from fourdiffusion.fit.loop import update
from fourdiffusion.fit.settings import FitConfig
from fourdiffusion.fit.setup import build_target
from fourdiffusion.fit.step import Problem, plan_step
from fourdiffusion.randomness import stream
from fourdiffusion.scene.field import DynamicField
from fourdiffusion.scene.optimization import make_optimizer
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.scene import Scene

PROMPT = "a cat that walks"
CARDS = (12, 16, 24, 40, 80)  # GB
SPARE = 1.0  # GiB that a card needs beside torch's tensors: CUDA's own, and what lies between the tensors
CASES = {  # what the table compares
    "generate, float32": ["--dtype", "float32"],
    "generate, float32, offload": ["--dtype", "float32", "--offload", "model"],
    "generate, bfloat16": [],
    "generate, bfloat16, channels_last": ["--channels-last"],
    "generate, bfloat16, compile": ["--compile"],
    "generate, bfloat16, offload": ["--offload", "model"],
    "fit, float32, chunks": ["--task", "sds", "--dtype", "float32", "--image-chunk", "4", "--ray-chunk", "65536"],
    "fit, bfloat16": ["--task", "sds"],
    "fit, bfloat16, image_chunk": ["--task", "sds", "--image-chunk", "4"],
    "fit, bfloat16, ray_chunk": ["--task", "sds", "--ray-chunk", "65536"],
    "fit, bfloat16, both chunks": ["--task", "sds", "--image-chunk", "4", "--ray-chunk", "65536"],
    "fit, bfloat16, both chunks, offload": [
        "--task", "sds", "--image-chunk", "4", "--ray-chunk", "65536", "--offload", "model"
    ],
}  # fmt: skip


def settings(tiny: bool) -> FitConfig:
    """The paper's; with the small model's sizes for a trial."""
    schema = load_settings_class("fourdiffusion.fit.settings:FitConfig")
    words = ["video=none", "experiment=paper", *(["model=tiny_sizes", "scene=tiny", "model.path=null"] if tiny else [])]
    return build(compose("fit", schema, words), FitConfig)


def main(arguments: argparse.Namespace) -> None:
    """Writes the model where there is none, then measures one case, or has all of them measured."""
    config = settings(arguments.tiny)
    sizes = config.model
    folder = arguments.model or Path("runs/full_size", "tiny" if arguments.tiny else "release")
    if arguments.write:
        write_model(folder, sizes)
        return
    if not folder.is_dir():  # in another process: its peak does not count
        words = ["--write", "--model", str(folder)] + ["--tiny"] * arguments.tiny
        subprocess.run([sys.executable, __file__, *words], check=True)
    if arguments.table is not None:
        print_table(sys.argv[1 : sys.argv.index("--table")], arguments.table or list(CASES))
        return
    device = resolve_device(arguments.device)
    if arguments.size:  # random weights are of any size
        own = read_generation_config(folder) or GenerationConfig()
        write_generation_config(folder, dataclasses.replace(own, image_size=arguments.size))
    model = dataclasses.replace(
        sizes,
        path=str(folder),
        image_size=arguments.size or sizes.image_size,
        dtype=arguments.dtype,
        storage_dtype=arguments.storage,
        offload=arguments.offload,
        channels_last=arguments.channels_last,
        compile=arguments.compile,
    )
    side = sampling_settings(model).image_size
    config.prompt, config.num_frames, config.num_views, config.model = PROMPT, arguments.frames, arguments.views, model
    config.sds.image_chunk, config.sds.ray_chunk = arguments.image_chunk, arguments.ray_chunk
    config.sds.resolutions = [side] * len(config.sds.resolution_milestones)
    images = torch.rand(arguments.frames, 3, side, side)
    measure = measure_generate if arguments.task == "generate" else measure_sds
    seconds = measure(config, device, images, arguments.steps)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"peak_gib": round(peak, 2)} | {f"{part}_s": round(value, 3) for part, value in seconds.items()}))


def write_model(folder: Path, sizes: ModelConfig) -> None:
    """A pipeline folder of random bfloat16 weights, which are never in memory at any other precision."""
    tokenizer = encoders.train_tokenizer([PROMPT], 512, architecture(sizes).text_length)
    with torch.device("meta"):  # names and shapes without memory
        pipeline = fresh_pipeline(sizes, tokenizer, seed=0)
    generator = torch.Generator().manual_seed(0)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            shapes = {name: value.shape for name, value in part.state_dict().items()}
            part.load_state_dict({name: _weight(name, shapes[name], generator) for name in shapes}, assign=True)
    pipeline.register_modules(
        scheduler=noise_schedule(architecture(sizes).beta_end)
    )  # its tables were on the meta device, too
    folder.parent.mkdir(parents=True, exist_ok=True)
    pipeline.save_whole(folder)


def _weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Signals keep their size: matrices of unit gain, norms of one, biases of zero."""
    weight = torch.empty(shape, dtype=torch.bfloat16)
    if len(shape) > 1:
        return weight.normal_(std=shape[1:].numel() ** -0.5, generator=generator)
    return weight.fill_(1.0 if name.endswith("weight") else 0.0)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_generate(config: FitConfig, device: torch.device, images: Tensor, steps: int) -> dict[str, float]:
    """Seconds of each part of ``generate``; of the denoising steps the fastest."""
    began = _now(device)
    pipeline = open_pipeline(config.model, device)
    loaded = _now(device)
    marks: list[float] = []
    views = generate_views(
        pipeline,
        images,
        config.prompt,
        num_views=config.num_views,
        settings=dataclasses.replace(pipeline.generation_config, num_inference_steps=steps),
        progress=lambda _: marks.append(_now(device)),
    )
    ended = _now(device)
    assert views.isfinite().all()
    step = min(after - before for before, after in zip(marks[:-1], marks[1:], strict=True))
    return {"load": loaded - began, "encode": marks[0] - loaded, "step": step, "decode": ended - marks[-1]}


def measure_sds(config: FitConfig, device: torch.device, images: Tensor, steps: int) -> dict[str, float]:
    """Seconds of each part of ``fit`` up to its ``steps`` first steps with the largest renders; of these the fastest.

    The scene is fresh, so hardly any space is empty: the renders cost as much as they ever do.
    """
    began = _now(device)
    pipeline = open_pipeline(config.model, device)
    for module in (pipeline.unet, pipeline.motion, pipeline.vae):
        module.requires_grad_(False)
    loaded = _now(device)
    negative = unconditional(pipeline.generation_config.distillation_negative_prompt, config.sds.guidance_scale)
    denoiser = pipeline.prepare(images, config.prompt, negative)
    field, renderer = DynamicField(config.scene.field, config.seed).to(device), config.scene.renderer
    scene = Scene(field, OccupancyGrid(renderer).to(device), renderer)
    c2w = cameras.orbit(cameras.orthogonal_azimuths(config.num_views))
    times = torch.linspace(0, 1, config.num_frames)
    opaque = torch.cat([images, torch.ones_like(images[:, :1])], 1)
    target = build_target(images, images.expand(config.num_views, *images.shape), c2w, times, 0, opaque)
    perceptual = partial(encoders.latent_distance, pipeline.vae)
    problem = Problem(config, pipeline, denoiser, perceptual, scene, target)
    optimizer = make_optimizer(scene, config.grid_lr, config.mlp_lr)
    config.occupancy_every = 1
    marks = [_now(device)]
    for step in range(config.sds.resolution_milestones[-1], config.sds.resolution_milestones[-1] + steps):
        update(problem, optimizer, plan_step(config, step), stream(config.seed, 0, step))
        marks.append(_now(device))
    fastest = min(after - before for before, after in zip(marks[:-1], marks[1:], strict=True))
    return {"load": loaded - began, "encode": marks[0] - loaded, "step": fastest}


def print_table(given: list[str], names: list[str]) -> None:
    """A line for each of some cases, measured with the words ``given`` and its own."""
    print("| verb and mode | peak GiB | suffices | load s | encode s | step s | decode s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        done = subprocess.run([sys.executable, __file__, *given, *CASES[name]], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1].replace("|", "/")
            print(f"| {name} | fails: {reason} | | | | | |", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        parts = " | ".join(str(found.get(f"{part}_s", "")) for part in ("load", "encode", "step", "decode"))
        print(f"| {name} | {found['peak_gib']} | {suffices(found['peak_gib'])} | {parts} |", flush=True)


def suffices(peak: float) -> str:
    """The smallest card with room for ``peak`` GiB."""
    return next((f"{card} GB" for card in CARDS if peak + SPARE <= card), f"more than {CARDS[-1]} GB")


def options(words: list[str] | None = None) -> argparse.Namespace:
    """Read the words of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--task", default="generate", choices=("generate", "sds"))
    parser.add_argument("--steps", type=int, default=1, help="of the sampler, or of fit")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--storage", choices=DTYPES, help="what weights lie in, where that is not --dtype")
    parser.add_argument("--offload", default="none", choices=OFFLOADS)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--image-chunk", type=int, default=0)
    parser.add_argument("--ray-chunk", type=int, default=0)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, help="of the pictures, in pixels; as the model's")
    parser.add_argument("--model", type=Path, help="pipeline folder; runs/full_size/... where none is named")
    parser.add_argument("--tiny", action="store_true", help="the small model's sizes")
    parser.add_argument("--table", nargs="*", choices=CASES, help="comes last: these memory modes, or all")
    parser.add_argument("--write", action="store_true", help="only write the model")
    return parser.parse_args(words)


if __name__ == "__main__":
    main(options())

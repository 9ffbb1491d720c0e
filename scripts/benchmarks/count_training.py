"""Memory and FLOPs of the motion stage at the release's size, counted without weights, data or a GPU.

    python scripts/benchmarks/count_training.py                       # the presets, as Markdown tables
    python scripts/benchmarks/count_training.py --case 1 true [KEY=VALUE of `fourdiffusion train` ...]

Everything runs on fake tensors (shapes and types alone): networks, one micro-batch forward and backward, the
optimizer's step. Counted are the bytes of all tensors alive at a time, and multiply-adds x 2 of matrix products,
convolutions and attention. Norms compute in float32, as autocast does on a GPU. Not counted: CUDA's own memory (about
1 GiB), the workspaces of convolutions, what lies unused between tensors. Hours are FLOPs over 40 percent of a card's
peak: a goal.
"""

import argparse
import contextlib
import gc
import json
import weakref
from collections.abc import Iterator
from typing import Any

import report
import torch
import torch.nn.functional as functional
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from fourdiffusion.cli.config import build, compose, load_settings_class
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.loading import DTYPES, fresh_pipeline
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.objectives import DiffusionObjective
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import architecture
from fourdiffusion.runs import git_commit
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.setup import make_objective, make_optimizer
from fourdiffusion.train.step import micro_batch_size

PRESETS = {"paper_1x24gb": 1, "paper_1x80gb": 1, "paper_8x80gb": 8}  # and their processes
CARDS = (12, 16, 24, 40, 48, 80, 141)  # GB
SPARE = 1.0  # GiB that a card needs beside torch's tensors
PEAK = 989.0  # TFLOP/s of an H100 in bfloat16, dense
UTILIZATION = 0.4
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
PIXELS = 256
GRAIN = 2**27  # bytes that appear between two collections of garbage


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.known = WeakIdKeyDictionary()
        self.now = self.peak = self.collected = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value)
        return result

    def _see(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        if storage not in self.known:
            size = storage.nbytes()
            self.known[storage] = size
            self.now += size
            weakref.finalize(storage, self._free, size)
            if self.now > self.collected + GRAIN:  # fake tensors lie in reference circles, which a GPU's do not
                gc.collect()
                self.collected = self.now
            self.peak = max(self.peak, min(self.now, self.collected + GRAIN))

    def _free(self, size: int) -> None:
        self.now -= size
        self.collected = min(self.collected, self.now)


@contextlib.contextmanager
def norms_in_float32() -> Iterator[None]:
    """Let group and layer norm take and give float32, as under autocast on a GPU."""
    before = functional.group_norm, functional.layer_norm

    def cast(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) else value

    functional.group_norm = lambda *args, **kw: before[0](*map(cast, args), **{k: cast(v) for k, v in kw.items()})
    functional.layer_norm = lambda *args, **kw: before[1](*map(cast, args), **{k: cast(v) for k, v in kw.items()})
    try:
        yield
    finally:
        functional.group_norm, functional.layer_norm = before


def flop_counter() -> FlopCounterMode:
    """Count the CPU's fused attention, too, whose formulas torch leaves out."""

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    backward_op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: forward, backward_op: backward})


def count(config: TrainConfig, clips: int, cached: bool) -> dict[str, float]:
    """Return GiB of each part and TFLOP of a micro-batch of ``clips`` clips, with or without encoders."""
    tokenizer = encoders.train_tokenizer(["a cat"], 512, architecture(config.model).text_length)
    cpu, memory, found = torch.device("cpu"), LiveMemory(), {}
    with FakeTensorMode(allow_non_fake_inputs=True), norms_in_float32():
        pipeline = make_networks(config, tokenizer)
        objective = make_objective(config, pipeline)
        assert isinstance(objective, DiffusionObjective)
        frozen = [pipeline.unet] if cached else [pipeline.unet, pipeline.vae, pipeline.text_encoder]
        frozen += [] if cached else [pipeline.image_encoder]
        parameters = [p for p in objective.parameters() if p.requires_grad]
        optimizer = make_optimizer(config, parameters, cpu)
        found["frozen"] = sum(_bytes(module.state_dict().values()) for module in frozen)
        found["trained"] = _bytes(parameters)
        found["ema"] = _bytes(objective.trainable.state_dict().values())
        inputs = batch(config, clips, objective, cached)
        gc.collect()
        gc.freeze()  # what is here stays, and collections are quick
        with flop_counter() as flops, memory:
            with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16"):
                loss = objective(**inputs)["mse"]
            found["activations"] = memory.now
            loss.backward()
            del loss
            found["gradients"] = _bytes(p.grad for p in parameters if p.grad is not None)
            found["backward_peak"] = memory.peak
            optimizer.step()
        state = [v for entry in optimizer.state.values() for v in entry.values() if isinstance(v, Tensor)]
        found["optimizer"] = _bytes(state)
        trained_only = {id(p) for group in optimizer.param_groups for p in group["params"]} == {
            id(p) for p in parameters
        }
        assert trained_only and not any(p.grad is not None for p in pipeline.unet.parameters())
    fixed = found["frozen"] + found["trained"] + found["ema"] + found["optimizer"]
    found["peak"] = fixed + found["backward_peak"]  # holds this micro-batch's gradients
    result = {name: round(value / 2**30, 2) for name, value in found.items()}
    return result | {"tflop": round(flops.get_total_flops() / 1e12, 2)}


def make_networks(config: TrainConfig, tokenizer: Any) -> FourDiffusionPipeline:
    """Return the networks in the types that a run holds them in: ``place`` cannot cast fake tensors."""
    torch.set_default_dtype(DTYPES[config.frozen_dtype])
    try:
        pipeline = fresh_pipeline(config.model, tokenizer, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    sizes = pipeline.motion.config
    motion = MotionModules(list(sizes.channels), sizes.num_heads, sizes.max_frames, sizes.norm_groups)
    pipeline.register_modules(motion=motion)
    if config.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    return pipeline


def _bytes(tensors: Any) -> int:
    return sum(value.untyped_storage().nbytes() for value in tensors)


def batch(config: TrainConfig, clips: int, objective: DiffusionObjective, cached: bool) -> dict[str, Any]:
    """Return the arguments of the objective for some clips of 256 x 256 pixels."""
    pipeline, frames, views = objective.pipeline[0], config.data.num_frames, config.data.num_views
    side = PIXELS // 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    channels, text = pipeline.vae.config.latent_channels, pipeline.text_encoder.config
    sizes = pipeline.unet.config
    z = torch.empty(clips, frames, views, channels, side, side)
    size = 0 if cached else PIXELS
    known = {}
    if cached:
        tokens = torch.empty(clips, frames, sizes.num_image_tokens, sizes.context_dim)
        states = torch.empty(clips, 2, text.max_position_embeddings, text.hidden_size)
        known = {"latents": z, "given_latents": z[:, :, 0], "image_tokens": tokens, "text": states}
    return known | {
        "target": torch.empty(clips, frames, views, 3, size, size),
        "given": torch.empty(clips, frames, 3, size, size),
        "c2w": torch.empty(clips, views, 4, 4),
        "captions": ["a cat"] * clips,
        "timestep": torch.zeros(clips, dtype=torch.long),
        "noise": torch.empty_like(z),
        "dropout": torch.ones(clips, 2),
    }


def suffices(peak: float) -> str:
    """Return the smallest card with room for ``peak`` GiB."""
    return next((f"{card} GB" for card in CARDS if (peak + SPARE) * 1.0737 <= card), f"more than {CARDS[-1]} GB")


def settings(words: list[str]) -> TrainConfig:
    """Return the settings of some words of the command line."""
    schema = load_settings_class("fourdiffusion.train.settings:TrainConfig")
    return build(compose("train", schema, ["data.path=none", "model.path=null", *words]), TrainConfig)


def main() -> None:
    """Count one case, or print the tables of the presets."""
    options = _options()
    if options.case:
        config = settings(options.words or ["experiment=paper"])
        print(json.dumps(count(config, int(options.case[0]), options.case[1] == "true")))
        return
    print_tables(options.words)


def print_tables(words: list[str]) -> None:
    """Print each preset's parts, what one clip more takes, and a line that says what card it fits."""
    parts = ("frozen", "trained", "gradients", "optimizer", "ema", "activations", "peak")
    heads = ["preset", "encoders", "clips", *(f"{part} GiB" for part in parts), "GiB a clip more", "TFLOP a step"]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    known: dict[tuple[bool, int, int, bool], dict[str, float]] = {}
    lines = []
    for name, processes in PRESETS.items():
        config = settings([f"experiment={name}", *words])
        clips, needs, steps = micro_batch_size(config, processes), [], []
        for cached in (True, False):
            cases = {}
            for size in sorted({1, 2, clips}):
                key = config.gradient_checkpointing, config.vae_batch_size, size, cached
                known[key] = known.get(key) or count(config, size, cached)
                cases[size] = known[key]
            found = cases[clips]
            more, step = cases[2]["peak"] - cases[1]["peak"], found["tflop"] * config.batch_size / clips
            cells = " | ".join(f"{found[part]:.1f}" for part in parts)
            encoder = "cached" if cached else "every step"
            print(f"| {name} | {encoder} | {clips} | {cells} | {more:.1f} | {step:.0f} |", flush=True)
            needs.append(found["peak"])
            steps.append(step)
        lines.append(card_line(name, config, processes, needs, steps))
    print("\n" + "\n".join(lines))
    print(f"\n{report.provenance({git_commit()})}")


def card_line(name: str, config: TrainConfig, processes: int, needs: list[float], steps: list[float]) -> str:
    """Return what card a preset fits, and its hours; ``needs`` and ``steps`` with cached encoders and without."""
    hours = [step * config.max_steps / (PEAK * UTILIZATION) / 3600 / processes for step in steps]
    return (
        f"- `{name}`: {needs[0]:.1f} GiB with cached encoders, {needs[1]:.1f} without: fits a card of "
        f"{suffices(needs[0])}, {suffices(needs[1])}; {hours[0]:.0f} and {hours[1]:.0f} hours on {processes} H100 at "
        f"{UTILIZATION:.0%} of the peak"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="KEY=VALUE of fourdiffusion train; they win")
    parser.add_argument("--case", nargs=2, metavar=("CLIPS", "CACHED"), help="one micro-batch, as JSON")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    report.run(main)

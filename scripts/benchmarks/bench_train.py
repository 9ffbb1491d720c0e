"""Clips a second of the small model's motion step: what bfloat16, cached latents and loading in a worker are worth.

    python scripts/benchmarks/bench_train.py --clips CLIPS [--model data/models/tiny] [--steps 10]

Four cases in one process, in turns, so that other work on the machine hits all of them alike: everything on, and with
one thing changed each: float32 in place of bfloat16 (a CPU without such instructions emulates bfloat16: then everything
on means float32, and the case is bfloat16), the VAE and the encoders in every step, data read between the steps by this
process. Seconds are wall time, the least of several rounds; seconds of processor time are this process's, the worker's
left out.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import report
import torch

from fourdiffusion.datasets.sampling import Batch
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.diffusion.objectives import DiffusionObjective
from fourdiffusion.runs import git_commit
from fourdiffusion.train.batches import make_loader
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.setup import make_objective, make_optimizer, open_data
from fourdiffusion.train.step import diffusion_inputs

CPU = torch.device("cpu")
_CACHE: list[torch.Tensor] = []  # of DiffusionObjective's last arguments


def main() -> None:
    """Measure and print a table."""
    options = _options()
    data = DataConfig(str(options.clips), num_views=options.views, num_frames=options.frames, cache_mib=0)
    config = TrainConfig(batch_size=options.batch, max_steps=10**6, data=data, gradient_checkpointing=False)
    pipeline = load_pipeline(options.model)
    objective = make_objective(config, pipeline)
    assert isinstance(objective, DiffusionObjective)
    optimizer = make_optimizer(config, [p for p in objective.parameters() if p.requires_grad], CPU)
    fast = has_bfloat16()
    samples = open_data(config)
    inline = iter(make_loader(config, samples, 0, 0, 1))
    config.num_workers = 1
    ahead = iter(make_loader(config, samples, 0, 0, 1))
    run = partial(one_step, config, objective, optimizer)
    cases: dict[str, Callable[[], None]] = {
        "everything on": partial(run, ahead, fast, True),
        "(a) float32" if fast else "(a) bfloat16, emulated by this CPU": partial(run, ahead, not fast, True),
        "(b) no latent cache": partial(run, ahead, fast, False),
        "(c) data in the main process": partial(run, inline, fast, True),
    }
    least = {name: [float("inf")] * 2 for name in cases}
    for _ in range(options.steps):
        for name, step in cases.items():
            began = time.perf_counter(), time.process_time()
            step()
            spent = time.perf_counter() - began[0], time.process_time() - began[1]
            least[name] = [min(pair) for pair in zip(least[name], spent, strict=True)]
    first = next(iter(least.values()))
    heads = ["case", "clips a second", "against everything on", "clips a second of processor time", "against"]
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    for name, (wall, cpu) in least.items():
        cells = [f"{options.batch / wall:.2f}", f"{first[0] / wall:.2f}"]
        cells += [f"{options.batch / cpu:.2f}", f"{first[1] / cpu:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n{report.provenance({git_commit()})}")


def one_step(
    config: TrainConfig,
    objective: DiffusionObjective,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    bfloat16: bool,
    cached: bool,
) -> None:
    """Read a batch, step forward and backward, and update; cached encodings are those of the first batch."""
    pipeline = objective.pipeline[0]
    batch = next(batches)
    inputs = diffusion_inputs(config, pipeline.vae, 1000, batch, 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        if cached and not _CACHE:
            with torch.no_grad():
                made = objective.encode(batch.target, batch.input, batch.captions)
            text = torch.stack([made.text, made.no_text.expand_as(made.text)], dim=1)
            _CACHE.extend([made.z, made.given, made.tokens, text])
        loss = objective(*inputs[:7], *(_CACHE if cached else []))["mse"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def has_bfloat16() -> bool:
    """Return whether the CPU multiplies matrices of bfloat16."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text() if path.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of clips")
    parser.add_argument("--model", type=Path, default=Path("data/models/tiny"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="rounds")
    return parser.parse_args()


if __name__ == "__main__":
    report.run(main)

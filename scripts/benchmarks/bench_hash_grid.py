"""Points a second of the hash grids' sum hash3(x) + hash4(x, t), forward and backward, for each way to compute it here.

python scripts/benchmarks/bench_hash_grid.py --points 1000000 --threads 2

All rows use the same points, parameters and gradient, and alternate in one run; times and results are relative to the
torch backend. ``--compile`` adds torch.compile of it, which takes minutes. The difference is over features and
gradients.
"""

import argparse
import time
from collections.abc import Callable

import torch
from report import machine
from torch import Tensor

from fourdiffusion.ops.hash_grid import HashGrid, summed_encodings
from fourdiffusion.ops.settings import HashGridConfig

REPEATS = 3


def main() -> None:
    """Prints a Markdown table."""
    options = _options()
    torch.set_num_threads(options.threads)
    config = HashGridConfig(num_levels=options.levels, log2_hashmap_size=options.log2_entries, per_level_scale=1.4)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(options.points, 4, generator=generator)
    slope = torch.randn(options.points, 2 * options.levels, generator=generator)

    def passes(backend: str, compiled: bool) -> Callable[[], list[Tensor]]:
        grids = [HashGrid(dims, config, seed=dims, backend=backend) for dims in (3, 4)]
        for grid in grids:
            grid.params.data.normal_(generator=torch.Generator().manual_seed(1))
        encode = torch.compile(summed_encodings) if compiled else summed_encodings

        def once() -> list[Tensor]:
            for grid in grids:
                grid.params.grad = None
            features = encode(points, grids)
            features.backward(slope)
            return [features.detach(), *(grid.params.grad for grid in grids if grid.params.grad is not None)]

        return once

    rows = {"torch": passes("torch", False), "numba": passes("numba", False)}
    if options.compile:
        rows["torch, compiled"] = passes("torch", True)
    results = {name: once() for name, once in rows.items()}  # also compiles
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(REPEATS):
        for name, once in rows.items():
            began = time.perf_counter()
            once()
            seconds[name].append(time.perf_counter() - began)

    print(f"{options.points} points, {options.levels} levels of at most 2^{options.log2_entries} entries, 3-D + 4-D, ")
    print(f"{options.threads} threads, best of {REPEATS}; {machine()}\n")
    print("| | thousand points a second | ratio | largest relative difference |\n|---|---|---|---|")
    for name, times in seconds.items():
        rate, ratio = options.points / min(times) / 1000, min(seconds["torch"]) / min(times)
        differences = [
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(results[name], results["torch"], strict=True)
        ]
        print(f"| {name} | {rate:.0f} | {ratio:.1f} | {max(differences):.1e} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--log2-entries", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    return parser.parse_args()


if __name__ == "__main__":
    main()

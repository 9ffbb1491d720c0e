"""The dynamic field on a CPU beside an older commit's: nanoseconds a point, and how far the results lie apart.

git worktree add ../before 365a7e0
python scripts/benchmarks/bench_field.py --baseline ../before --points 50000 200000

Two processes, one a source tree, take turns at the same job, A B A B: forward and backward, forward alone, density
alone, at the points of real rays through a ball of matter, with the grids of scene=tiny. The table has the medians of
wall time and of processor time, and their ratios; on a machine that others use too only the ratios say something.
"""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

JOBS = ("forward + backward", "forward", "density")


def main() -> None:
    """Prints a Markdown table, or serves as one of the processes."""
    options = _options()
    if options.serve:
        serve()
        return
    trees = {"before": options.baseline, "now": Path(__file__).parents[2]}
    workers = {name: _start(tree.resolve(), options.threads) for name, tree in trees.items()}
    print(f"{options.threads} threads, median of {options.repeats}, load {os.getloadavg()[0]:.1f} at the start\n")
    print("| points | job | before, ns a point (wall, processor) | now | ratio of wall, processor | difference |")
    print("|---|---|---|---|---|---|")
    for num_points in options.points:
        for job in JOBS:
            print(_row(workers, num_points, job, options.repeats), flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()


def _row(workers: dict[str, Any], num_points: int, job: str, repeats: int) -> str:
    replies: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for turn in range(repeats + 1):
        for name, worker in workers.items():
            worker.stdin.write(json.dumps([num_points, job]) + "\n")
            worker.stdin.flush()
            reply = json.loads(worker.stdout.readline())
            if turn:  # the first turn compiles
                replies[name].append(reply)

    def nanoseconds(name: str, measure: str) -> float:
        return statistics.median(reply[measure] for reply in replies[name]) / num_points * 1e9

    cells = [f"{nanoseconds(name, 'wall'):.0f}, {nanoseconds(name, 'processor'):.0f}" for name in workers]
    ratios = [nanoseconds("before", measure) / nanoseconds("now", measure) for measure in ("wall", "processor")]
    pairs = zip(*(replies[name][0]["sums"] for name in workers), strict=True)
    difference = max(abs(a - b) / abs(a) for a, b in pairs)
    return f"| {num_points} | {job} | {cells[0]} | {cells[1]} | {ratios[0]:.2f}, {ratios[1]:.2f} | {difference:.0e} |"


def serve() -> None:
    """Read [number of points, job] line by line, do it, answer with its seconds and norms of all results."""
    import fourdiffusion.scene.field as module

    older = importlib.util.find_spec("fourdiffusion.scene.settings") is None  # commits before 0.2
    grids = importlib.import_module("fourdiffusion.ops.hash_grid" if older else "fourdiffusion.ops.settings")
    fields = module if older else importlib.import_module("fourdiffusion.scene.settings")
    grid = grids.HashGridConfig(num_levels=8, log2_hashmap_size=15, per_level_scale=1.4)
    field = module.DynamicField(fields.FieldConfig(space=grid, spacetime=grid), seed=0)
    for part in (field.space, field.spacetime):
        part.params.data *= 3e3
    for line in sys.stdin:
        num_points, job = json.loads(line)
        x, t = ray_points(num_points)
        field.zero_grad(set_to_none=True)
        wall, processor = time.perf_counter(), time.process_time()
        results = _work(field, x, t, job)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        results += [p.grad for p in field.parameters() if p.grad is not None]
        sums = [float(value.detach().double().norm()) for value in results]
        print(json.dumps({"wall": wall, "processor": processor, "sums": sums}), flush=True)


def _work(field: Any, x: Tensor, t: Tensor, job: str) -> list[Tensor]:
    if job == "forward + backward":
        sigma, rgb = field(x, t)
        (sigma.sum() + rgb.square().sum()).backward()
        return [sigma, rgb]
    with torch.no_grad():
        return list(field(x, t)) if job == "forward" else [field.density(x, t)]


def ray_points(num_points: int) -> tuple[Tensor, Tensor]:
    """The samples near the middle of the rays of eight frames of four views, in the renderer's order."""
    from fourdiffusion import cameras

    frames, views, samples = 8, 4, 24
    side = int((num_points / (frames * views * samples)) ** 0.5) + 1
    origins, directions = cameras.rays(cameras.orbit(cameras.orthogonal_azimuths(views)), 30.0, side, side)
    distances = 1.1 + (torch.arange(samples) - samples / 2) * 0.031
    x = origins[..., None, :] + distances[:, None] * directions[..., None, :]
    x = x.expand(frames, *x.shape).reshape(-1, 3)
    t = torch.linspace(0, 1, frames).repeat_interleave(len(x) // frames)
    return x[:num_points].contiguous(), t[:num_points].contiguous()


def _start(tree: Path, threads: int) -> Any:
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
    return subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="a checkout of the commit to compare with")
    parser.add_argument("--points", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.serve and options.baseline is None:
        parser.error("--baseline is needed: a checkout of the commit to compare with")
    return options


if __name__ == "__main__":
    main()

"""Measure what `fourdiffusion VIDEO` estimates its time from: processor seconds of a fit's parts, and of the probe.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python scripts/benchmarks/quick_cost.py --plain 440 --sds 40

Runs steps of the demo in a temporary folder, on one thread; prints one JSON line: values for COST and PROBE_SECONDS in
fourdiffusion/cli/quick.py. Later steps are cheaper than the first; 440 and 40 are all of them. "fixed" holds the
compilation of a first run, and neither the start of the program nor turntable, GLB and HTML.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from fourdiffusion.cli import quick
from fourdiffusion.fit import setup
from fourdiffusion.fit.loop import update
from fourdiffusion.fit.step import plan_step
from fourdiffusion.randomness import stream
from fourdiffusion.scene.optimization import make_optimizer
from fourdiffusion.scene.pictures import write_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", type=int, default=24, help="steps without SDS")
    parser.add_argument("--sds", type=int, default=6, help="steps with SDS")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        video, words = quick.of_demo([f"output={folder}/run", "trackers=[]"])
        config = quick.composed(quick.settings_of(video, words)[0])
        began = time.process_time()
        problem = setup.open_problem(config, setup.read_inputs(config))
        optimizer = make_optimizer(problem.scene, config.grid_lr, config.mlp_lr)
        for number in range(2):  # compiles
            update(problem, optimizer, plan_step(config, number), stream(config.seed, 0, number))
        size = problem.pipeline.generation_config.image_size
        write_pictures(
            Path(folder) / "pictures", problem.scene, problem.target.images, size, times=problem.target.times
        )
        fixed = time.process_time() - began
        seconds: dict[bool, list[float]] = {False: [], True: []}
        number = 2
        while len(seconds[False]) < arguments.plain or len(seconds[True]) < arguments.sds:
            plan = plan_step(config, number)
            full = len(seconds[plan.sds]) >= (arguments.sds if plan.sds else arguments.plain)
            if not full:
                began = time.process_time()
                update(problem, optimizer, plan, stream(config.seed, 0, number))
                seconds[plan.sds].append(time.process_time() - began)
            number += 1
    began = time.process_time()
    for _ in range(5):
        quick.probe()
    probe = (time.process_time() - began) / (5 * quick.PROBE_RUNS)
    step, with_sds = (sum(values) / len(values) for values in (seconds[False], seconds[True]))
    found = {"fixed": fixed, "step": step, "sds": with_sds - step, "probe": probe}
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()

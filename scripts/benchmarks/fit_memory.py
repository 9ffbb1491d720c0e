"""Peak memory of the 4D stage against the number of views: SDS on renders of 256 x 256 rays, in chunks or whole.

    python scripts/benchmarks/fit_memory.py --views 1 2 4 [--whole] [KEY=VALUE of `fourdiffusion fit` ...]

Each measurement is a fit of the sample in a process of its own: photometric steps until there is a scene, then one
step of SDS; its peak is all of the process's memory, libraries and model included.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import report
from held_out import SAMPLE

from fourdiffusion.errors import UserError
from fourdiffusion.runs import git_commit

BEFORE = 48  # photometric steps, after which most of the occupancy grid is empty
CHUNKS = ["sds.ray_chunk=32768", "sds.image_chunk=4"]


def main() -> None:
    """Measures and prints a Markdown table."""
    options = _options()
    words = [*SAMPLE, f"max_steps={BEFORE + 1}", f"sds.start_step={BEFORE}", f"sds.resolutions=[{options.side}]"]
    words += ["device=cpu", "preview_minutes=0", "trackers=[]", *([] if options.whole else CHUNKS), *options.words]
    print("| views | pictures | rays of the SDS step | seconds | peak GiB |\n|---|---|---|---|---|")
    for views in options.views:
        seconds, peak = measure([*words, f"num_views={views}"], options.run)
        rays = views * 8 * options.side**2
        print(f"| {views} | {views * 8} | {rays / 1e6:.2f} M | {seconds:.0f} | {peak / 2**30:.2f} |", flush=True)
    print(f"\n{report.provenance({git_commit()})}")


def measure(words: list[str], run: Path) -> tuple[float, int]:
    """Seconds and peak bytes of one fit, whose run folder is removed again."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "fourdiffusion", "fit", *words, f"output={run}"], stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(
            f"the fit in {run} ended with code {os.waitstatus_to_exitcode(status)}: delete it and try again"
        )
    shutil.rmtree(run)
    return time.monotonic() - began, usage.ru_maxrss * 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="KEY=VALUE of fourdiffusion fit; they win")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--side", type=int, default=256, help="of the renders, in pixels")
    parser.add_argument("--whole", action="store_true", help="all rays and pictures at once")
    parser.add_argument("--run", type=Path, default=Path("runs/fit_memory"), help="run folder, must not exist")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    report.run(main)

"""The presets of `fourdiffusion fit` at the small model's size: time, memory, PSNR and LPIPS of one fit of the sample.

    OMP_NUM_THREADS=1 python scripts/benchmarks/presets.py --weights FOLDER

`small` is fitted as it is, and `tiny` with the first edition's model. The others get the small model and its scene, and
keep their method; their steps, ramps and start steps are shortened by one factor each, and their renders end at 32
pixels as small's do: a step of `released` at
64 takes half a minute. Processor seconds hardly depend on what else the machine does. A fit that is done is not run
again.
"""

import argparse
from pathlib import Path

import report
from held_out import SAMPLE, fingerprint, fit_once, novel_means

from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.settings import EvaluateConfig

SMALL = ["model=small", "scene=tiny", "sds.resolutions=[32]", "sds.resolution_milestones=[0]"]
PRESETS = {  # words, and by what the steps are shortened
    "small": (["experiment=small"], 1),
    "tiny": (["experiment=tiny"], 1),
    "fast": (["experiment=fast", *SMALL, "max_steps=500", "sds.start_step=167", "sds.ramp_steps=333"], 12),
    "paper": (["experiment=paper", *SMALL, "max_steps=200", "sds.ramp_steps=30", "loss.sparsity_start_step=60",
               "loss.orientation_ramp_steps=30"], 175),
    "released": (["experiment=released", *SMALL, "max_steps=200", "sds.ramp_steps=30", "loss.sparsity_start_step=60",
                  "loss.orientation_ramp_steps=30"], 175),
}  # fmt: skip
TRUTH, MODEL = "data/sample/truth", Path("data/models/small")


def main() -> None:
    """Fit, measure, print a Markdown table."""
    options = _options()
    lines, commits, weights = [], set(), fingerprint(MODEL)
    for name in options.presets:
        words, shortened = PRESETS[name]
        words = [*SAMPLE, *words, "preview_minutes=0", "trackers=[]", *options.words]
        note = fit_once(options.run / name, words, weights)
        commits.add(note["commit"])
        metrics = options.run / f"{name}-metrics"
        evaluate(EvaluateConfig(str(options.run / name), TRUTH, output=str(metrics), weights=options.weights))
        novel, copied = novel_means(metrics / "metrics.json")
        seconds = "-" if note["cpu_seconds"] is None else f"{note['cpu_seconds']:.0f}"
        cells = [seconds, f"{note['peak_gib']:.2f}", *_figures(novel)]
        lines.append(f"| `{name}`{f', steps / {shortened}' if shortened > 1 else ''} | " + " | ".join(cells) + " |")
    print("\n| preset | processor seconds | peak GiB | PSNR in dB | LPIPS, Squeeze | GMSD |\n|" + "---|" * 6)
    print("\n".join([*lines, "| copied input | | | " + " | ".join(_figures(copied)) + " |"]))
    print(f"\n{report.provenance(commits)}")


def _figures(means: dict[str, float]) -> list[str]:
    """Return PSNR, LPIPS and GMSD as cells; a dash where weights were missing."""
    names = {"psnr": 2, "lpips_squeeze": 3, "gmsd": 3}
    return [f"{means[name]:.{digits}f}" if name in means else "-" for name, digits in names.items()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--weights", help="folder of LPIPS' weights (docs/weights.md)")
    parser.add_argument("--words", nargs="*", default=[], help="further settings of every fit, as KEY=VALUE")
    parser.add_argument("--run", type=Path, default=Path("runs/presets"))
    return parser.parse_args()


if __name__ == "__main__":
    report.run(main)

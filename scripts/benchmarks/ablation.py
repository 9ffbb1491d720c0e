"""The paper's Table 1 ablations in miniature: scenes fitted to held-out objects, measured at views that nobody made.

    fourdiffusion data synth output=.cache/measure split=test first_seed=60 rig=orbit num_clips=5 size=128
    python scripts/benchmarks/ablation.py .cache/measure --output docs/results.md [KEY=VALUE of `fourdiffusion fit` ...]

Clips are V views of F frames from azimuth 0, of any size: the fit gets view 0, scenes are measured at the clips' size.
Every fit is a command of its own with a run folder of its own; a finished one is not run again, a stopped one goes on.
"""

import argparse
import itertools
from pathlib import Path

import report
from held_out import fingerprint, first_clips, fit_once, novel_means, write_input
from tqdm import tqdm

from fourdiffusion.datasets.clips import read_clip
from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.settings import EvaluateConfig

COPIED = "copied input"
VARIANTS = {
    "full": [],
    "without 4D-SDS": ["sds.source=per_frame"],
    # The default recipe has the generated views where the paper has the anchor loss. Without them nothing but SDS is
    # left: it must begin at the first step, with much noise as the paper's does, and at every step.
    "without anchor": [
        "loss.lambda_rgb=0",
        "loss.lambda_input=0",
        "loss.lambda_mask=0",
        "loss.lambda_empty=0",
        "loss.anchor=false",
        "sds.start_step=0",
        "sds.every=1",
        "sds.t_start=0.98",
        "sds.ramp_steps=150",
        "max_steps=150",
    ],
    "without SDS": ["sds.source=off"],
}
NOTES = """
All rows but the last are fits of the same input video and caption, the four generated videos among them. *full*: the
default recipe: squared error on all generated views, the input in place of the one at its own azimuth (the
default has this in place of the paper's anchor loss, which it turns off), later 4D-aware SDS. *without 4D-SDS*: SDS
of the base model, frame by frame; the generated videos stay 4DM's. *without anchor*: SDS alone, at every step, for as
many steps as its words say. *without SDS*: the generated views alone. *copied input*: the input video shown at
every view. Seconds are those of the whole command, sampling included; fits that were stopped in between have none.
"""


def main() -> None:
    """Fits and evaluates what is not there yet and writes the section."""
    options = _options()
    weights = fingerprint(Path(options.model))
    lines: list[report.Line] = []
    for folder in tqdm(first_clips(options.clips, options.objects), desc="objects"):
        clip, place = read_clip(folder), options.run / folder.name
        given = [*write_input(place / "input", clip), f"model.path={options.model}"]
        for seed, (row, changes) in itertools.product(range(options.seeds), VARIANTS.items()):
            tqdm.write(f"\n{folder.name}, {row}, seed {seed}")
            run = place / f"{row.replace(' ', '_')}_{seed}"
            note = fit_once(run, [*given, f"seed={seed}", *changes, *options.words], weights)
            if not (run / "metrics.json").is_file():
                evaluate(EvaluateConfig(str(run), str(folder), weights=options.weights))
            means, copied = novel_means(run / "metrics.json")
            lines.append(
                {"row": row, "object": folder.name, **means, "seconds": note["seconds"], "commit": note["commit"]}
            )
        lines.append({"row": COPIED, "object": folder.name, **copied})
    report.write_section(options.output, "ablation", section(lines, options))


def section(lines: list[report.Line], options: argparse.Namespace) -> str:
    """The table and all that one must know to read it."""
    words = [f"*{row}* `{' '.join(changes)}`" for row, changes in VARIANTS.items() if changes]
    return "\n".join(
        [
            "## Scenes, and what each part is worth",
            "",
            f"Means over the first {options.objects} test objects (none chosen), {options.seeds} "
            f"{'fits' if options.seeds > 1 else 'fit'} each, ± standard deviation over objects, on white, at the novel "
            "views: those of the truth that are neither the input's nor made. "
            f"{report.legend(lines)}",
            "",
            report.table(lines, [*VARIANTS, COPIED], report.measures(lines)),
            "",
            "*full* minus each other row on the same objects, mean ± standard error over objects:",
            "",
            report.paired_table(lines, "full", [*list(VARIANTS)[1:], COPIED]),
            "",
            " ".join(NOTES.split()),
            f"In words of `fourdiffusion fit`: {'; '.join(words)}. The words of the command come last.",
            "",
            report.provenance({line["commit"] for line in lines if "commit" in line}),
        ]
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of test clips of 8 views, rig=orbit")
    parser.add_argument("words", nargs="*", help="KEY=VALUE of fourdiffusion fit, for every fit; they win")
    parser.add_argument("--model", default="data/models/small", help="pipeline folder")
    parser.add_argument("--objects", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1, help="fits of each object")
    parser.add_argument("--weights", help="folder of the metric networks' weights, as of fourdiffusion evaluate")
    parser.add_argument("--run", type=Path, default=Path("runs/ablation"), help="folder of the run folders")
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"))
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    report.run(main)

"""The paper's Table 2 in miniature: videos from new sides, sampled by the small model for held-out objects.

    fourdiffusion data synth output=.cache/measure split=test first_seed=60 rig=orbit num_clips=30
    python scripts/benchmarks/small_tables.py .cache/measure --output docs/results.md [KEY=VALUE of generate ...]

Each measurement is written down at once, in log.jsonl of the run folder; a stopped command goes on.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import report
from held_out import fingerprint, first_clips, read_example, sample, sampling_settings
from tqdm import tqdm

from fourdiffusion import cameras
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion.loading import open_pipeline
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.metrics.lpips import Lpips, load_lpips
from fourdiffusion.metrics.video import copied_input, evaluate_views, temporal_error
from fourdiffusion.runs import append_log, git_commit, open_run
from fourdiffusion.settings import GenerateConfig

MOTION, FRAMEWISE, UNCURATED = "4DM", "its base model, frame by frame", "4DM, motion layers of uncurated clips"
COPIED = "copied input"


@dataclass
class Row:
    """One line of the table."""

    name: str
    pipeline: FourDiffusionPipeline | None  # None: the input shown at every view
    use_motion: bool
    weights: str  # fingerprint
    seeds: range


def main() -> None:
    """Samples what is not measured yet and writes the section."""
    options = _options()
    folders = first_clips(options.clips, options.objects)
    name = f"{options.frames}x{options.views}" + (f" {options.set}" if options.set else "")
    run = options.run or Path("runs", f"small_tables_{name}".replace(" ", "_"))
    words = [*options.words, f"output={run}"]
    settings = sampling_settings(options.clips, options.model, options.frames, options.views, words)
    rows = _rows(settings, options.uncurated, options.seeds)
    read_example(folders[0], settings)  # what does not fit is said before anything is written
    lpips = load_lpips(None)
    open_run(run, settings, free=set())
    known = {(x["weights"], x["row"], x["object"], x["seed"]): x for x in read_log(run)}
    jobs = [(folder, row, seed) for folder in folders for row in rows for seed in row.seeds]
    lines = []
    for folder, row, seed in tqdm(jobs, desc="samples"):
        key = (row.weights, row.name, folder.name, seed)
        if key not in known:
            known[key] = dict(zip(("weights", "row", "object", "seed"), key, strict=True))
            known[key] |= {"commit": git_commit()} | measure(settings, folder, row, seed, lpips)
            append_log(run, known[key])
        lines.append(known[key])
    report.write_section(
        options.output, f"small_tables {name}", section(settings, lines, [row.name for row in rows], options)
    )


def measure(settings: GenerateConfig, folder: Path, row: Row, seed: int, lpips: Lpips | None) -> dict[str, float]:
    """Means over the generated views but the input's own; beside the copied input, a still video's temporal error."""
    example = read_example(folder, settings)
    truth = example.truth[1:]
    if row.pipeline is not None:
        prediction = sample(row.pipeline, settings, example, seed, row.use_motion)[1:]
        return dict(evaluate_views(prediction, truth, lpips)["mean"])
    copied = evaluate_views(copied_input(example.truth[0], len(truth)), truth, lpips)["mean"]
    return copied | {"still": float(temporal_error(truth[:, :1].expand_as(truth), truth).mean())}


def section(settings: GenerateConfig, lines: list[report.Line], rows: list[str], options: argparse.Namespace) -> str:
    """The table and all that one must know to read it."""
    azimuths = ", ".join(f"{azimuth:g}" for azimuth in cameras.orthogonal_azimuths(settings.num_views).tolist()[1:])
    size, model = settings.model.image_size, settings.model
    still = report.over_objects(lines, COPIED, "still")
    text = [
        f"## Videos from new sides: {options.set + ', ' if options.set else ''}{settings.num_frames} frames, "
        f"{settings.num_views} views",
        "",
        f"Means over the first {options.objects} test objects (none chosen) and {options.seeds} sampling seeds ± "
        f"standard deviation over objects, {size} x {size} pixels, on white. The views that count stand {azimuths} "
        "degrees from the input; the generated view at the input's own place does not count. The model got the input "
        f"video and the clip's caption; {model.scheduler}, {model.num_inference_steps} steps, "
        f"guidance {model.guidance_scale:g}. "
        f"{report.legend(lines)} A still video would have {report.cell(still, 4)}.",
        "",
        report.table(lines, rows, report.measures(lines)),
        "",
        f"*{FRAMEWISE}*: the same network without motion layers, another noise for each frame. *{COPIED}*: the input "
        "video shown at every view.",
    ]
    if UNCURATED not in rows:
        text.append("Motion layers trained on uncurated clips were not at hand: that row of the paper is left out.")
    return "\n".join([*text, "", report.provenance({line["commit"] for line in lines})])


def read_log(run: Path) -> list[report.Line]:
    """The measurements written so far; one that a kill cut off is forgotten."""
    path = run / "log.jsonl"
    if not path.is_file():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    write_atomic(path, lambda partial: partial.write_text("".join(whole)))
    return [json.loads(line) for line in whole]


def _rows(settings: GenerateConfig, uncurated: Path | None, seeds: int) -> list[Row]:
    device = resolve_device(settings.device)
    pipeline = open_pipeline(settings.model, device)
    weights = fingerprint(Path(str(settings.model.path)))
    rows = [Row(MOTION, pipeline, True, weights, range(seeds)), Row(FRAMEWISE, pipeline, False, weights, range(seeds))]
    if uncurated is not None:
        if not (uncurated / "config.json").is_file():
            raise UserError(f"--uncurated {uncurated}: no motion layers; give a folder such as runs/NAME/model/motion")
        other = open_pipeline(settings.model, device)
        other.load_motion(uncurated)
        rows.append(Row(UNCURATED, other, True, weights + fingerprint(uncurated), range(seeds)))
    return [*rows, Row(COPIED, None, False, "", range(1))]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of test clips, rig=orbit")
    parser.add_argument("words", nargs="*", help="KEY=VALUE of fourdiffusion generate")
    parser.add_argument("--model", default="data/models/tiny", help="pipeline folder")
    parser.add_argument("--uncurated", type=Path, help="motion layers trained on uncurated clips, .../model/motion")
    parser.add_argument("--objects", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=8, help="of the clips")
    parser.add_argument("--views", type=int, default=4, help="that the model generates")
    parser.add_argument("--set", default="", help="what the clips are, where they are not the usual ones: a few words")
    parser.add_argument("--run", type=Path, help="folder of the measurements; runs/small_tables_FRAMESxVIEWS_SET")
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"))
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    report.run(main)

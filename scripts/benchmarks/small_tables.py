"""The paper's Table 2 in miniature: videos from new sides, sampled by the small model for held-out objects.

    fourdiffusion data synth output=.cache/measure split=test first_seed=200 rig=orbit num_clips=30 size=128
    python scripts/benchmarks/small_tables.py .cache/measure --weights WEIGHTS --output docs/results.md [KEY=VALUE ...]

KEY=VALUE are settings of `fourdiffusion generate`. Samples and truth are written as PNG frames, and measured by
`fourdiffusion evaluate` under `synthetic`, one call for each row and sampling seed. A stopped command goes on.
"""

import argparse
import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import report
from held_out import Example, fingerprint, first_clips, read_example, sample, sampling_settings
from torch import Tensor
from tqdm import tqdm

from fourdiffusion import cameras
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion.loading import open_pipeline
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.settings import EvaluateConfig, ProtocolConfig, load_protocol
from fourdiffusion.files import write_atomic
from fourdiffusion.media.write import write_image
from fourdiffusion.metrics.i3d import MIN_FRAMES
from fourdiffusion.metrics.video import copied_input, evaluate_views, temporal_error
from fourdiffusion.runs import append_log, git_commit, open_run
from fourdiffusion.settings import GenerateConfig

MOTION, FRAMEWISE, UNCURATED = "4DM", "its base model, frame by frame", "4DM, motion layers of uncurated clips"
NO_CAPTION, COPIED, OTHER = "4DM, captions absent", "copied input", "another model, at its own size"


@dataclass
class Row:
    """One line of the table."""

    name: str
    pipeline: FourDiffusionPipeline | None  # None: the input shown at every view
    use_motion: bool
    weights: str  # fingerprint
    seeds: range
    use_caption: bool = True
    own_settings: bool = False  # its own size, steps and guidance


def main() -> None:
    """Sample what is not there yet, evaluate it and write the section."""
    options = _options()
    folders = first_clips(options.clips, options.objects)
    name = f"{options.frames}x{options.views}" + (f" {options.set}" if options.set else "")
    run = options.run or Path("runs", f"small_tables_{name}".replace(" ", "_"))
    words = [*options.words, f"output={run}"]
    settings = sampling_settings(options.clips, options.model, options.frames, options.views, words)
    rows = _rows(settings, options.uncurated, options.against, options.seeds)
    read_example(folders[0], settings)  # what does not fit is said before anything is written
    open_run(run, settings, free=set())
    known = {(x["weights"], x["row"], x["object"], x["seed"]): x for x in read_log(run)}
    jobs = [(folder, row, seed) for folder in folders for row in rows for seed in row.seeds]
    still = []
    for folder in folders:
        truth = read_example(folder, settings).truth[1:]
        write_views(run / "truth" / folder.name, truth)
        still.append(float(temporal_error(truth[:, :1].expand_as(truth), truth).mean()))
    for folder, row, seed in tqdm(jobs, desc="samples"):
        key = (row.weights, row.name, folder.name, seed)
        place = samples_of(run, row, seed) / folder.name
        if key in known and place.is_dir():
            continue
        write_views(place, predict(settings, read_example(folder, settings), row, seed))
        known[key] = dict(zip(("weights", "row", "object", "seed"), key, strict=True)) | {"commit": git_commit()}
        append_log(run, known[key])
    lines = []
    for row in rows:
        for seed in row.seeds:
            lines += evaluated(run, row, seed, [folder.name for folder in folders], options)
    commits = {known[row.weights, row.name, folder.name, seed]["commit"] for folder, row, seed in jobs}
    text = section(settings, lines, [row.name for row in rows], still, commits, options)
    report.write_section(options.output, f"small_tables {name}", text)


def predict(settings: GenerateConfig, example: Example, row: Row, seed: int) -> Tensor:
    """Return a row's videos at the views that count, [V - 1, F, 3, H, W]."""
    if row.pipeline is None:
        return copied_input(example.truth[0], len(example.truth) - 1)
    shown = example if row.use_caption else dataclasses.replace(example, caption="")
    return sample(row.pipeline, settings, shown, seed, row.use_motion, row.own_settings)[1:]


def measure(settings: GenerateConfig, folder: Path, row: Row, seed: int) -> dict[str, float]:
    """Return means over the generated views but the input's own, without writing anything."""
    example = read_example(folder, settings)
    return dict(evaluate_views(predict(settings, example, row, seed), example.truth[1:])["mean"])


# ---- the evaluator --------------------------------------------------------------------------------------------------


def samples_of(run: Path, row: Row, seed: int) -> Path:
    """Return the folder of a row's objects; it names the weights, so that those of two models never mix."""
    slug = re.sub(r"\W+", "_", row.name).strip("_")
    return run / "samples" / f"{slug}-{row.weights[:12] or 'none'}" / f"seed_{seed}"


def write_views(place: Path, videos: Tensor) -> None:
    """Write videos [V, F, 3, H, W] as view_1/00.png ..., whole or not at all; a finished folder stays."""
    if place.is_dir():
        return
    partial = place.with_name(place.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for view, frames in enumerate(videos, start=1):
        for number, frame in enumerate(frames):
            write_image(partial / f"view_{view}" / f"{number:02d}.png", frame)
    partial.rename(place)


def protocol_of(options: argparse.Namespace) -> ProtocolConfig:
    """Return the protocol synthetic, with the set-level FVD where the videos are long enough for I3D."""
    protocol = load_protocol("synthetic")
    # the truth folder also holds objects of a call with more --objects
    metrics = [*protocol.metrics, "warped_error"]
    protocol = dataclasses.replace(protocol, check_pairing=False, object_mismatch="shared", metrics=metrics)
    if options.frames >= MIN_FRAMES:
        protocol = dataclasses.replace(protocol, metrics=[*protocol.metrics, "fvd"], fvd="set")
    return protocol


def evaluated(run: Path, row: Row, seed: int, objects: list[str], options: argparse.Namespace) -> list[report.Line]:
    """Evaluate a row's samples of one seed, unless that is done, and return a line an object and one of the set."""
    place = samples_of(run, row, seed)
    path = place.with_name(f"metrics_{seed}_{len(objects)}") / "metrics.json"
    if not path.is_file():
        settings = EvaluateConfig(
            str(place), str(run / "truth"), str(path.parent), weights=options.weights, protocol=protocol_of(options)
        )
        evaluate(settings)
    content = json.loads(path.read_text(encoding="utf-8"))
    lines = [{"row": row.name, "object": name, "seed": seed, **content["objects"][name]["mean"]} for name in objects]
    whole = {name: value for name, value in content["mean"].items() if name.startswith("fvd")}
    return [*lines, {"row": row.name, "object": "all", "seed": seed, **whole}] if whole else lines


# ---- the section ----------------------------------------------------------------------------------------------------


def section(
    settings: GenerateConfig,
    lines: list[report.Line],
    rows: list[str],
    still: list[float],
    commits: set[str],
    options: argparse.Namespace,
) -> str:
    """Return the tables and all that one must know to read them."""
    azimuths = ", ".join(f"{azimuth:g}" for azimuth in cameras.orthogonal_azimuths(settings.num_views).tolist()[1:])
    size, model = settings.model.image_size, settings.model
    text = [
        f"## Videos from new sides: {options.set + ', ' if options.set else ''}{settings.num_frames} frames, "
        f"{settings.num_views} views",
        "",
        f"Means over the first {options.objects} test objects (none chosen) and {options.seeds} sampling "
        f"{'seeds' if options.seeds > 1 else 'seed'} ± "
        f"standard deviation over objects, {size} x {size} pixels, on white, by `fourdiffusion evaluate` under "
        f"`synthetic`. The views that count stand {azimuths} degrees from the input; the generated view at the input's "
        f"own place does not count. The model got the input video and the clip's caption; {model.scheduler}, "
        f"{model.num_inference_steps} {'steps' if model.num_inference_steps != 1 else 'step'}, "
        f"guidance {model.guidance_scale:g}. {report.legend(lines)} A still video would have {report.cell(still, 4)}.",
        "",
        report.table(lines, rows, report.measures(lines)),
        "",
        f"{MOTION} minus each other row on the same objects, mean ± standard error over objects:",
        "",
        report.paired_table(lines, MOTION, [row for row in rows if row != MOTION]),
        "",
        f"*{FRAMEWISE}*: the same network without motion layers, another noise for each frame. *{NO_CAPTION}*: an "
        f"empty prompt. *{COPIED}*: the input video shown at every view.",
    ]
    if OTHER in rows:
        text.append(f"*{OTHER}*: `{options.against}`, whose pictures are resized to {size} x {size} pixels.")
    if UNCURATED not in rows:
        text.append("Motion layers trained on uncurated clips were not at hand: that row of the paper is left out.")
    return "\n".join([*text, "", report.provenance(commits)])


def read_log(run: Path) -> list[report.Line]:
    """Return the lines written so far; one that a kill cut off is forgotten."""
    path = run / "log.jsonl"
    if not path.is_file():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    write_atomic(path, lambda partial: partial.write_text("".join(whole)))
    return [json.loads(line) for line in whole]


def _rows(settings: GenerateConfig, uncurated: Path | None, against: Path | None, seeds: int) -> list[Row]:
    device = resolve_device(settings.device)
    pipeline = open_pipeline(settings.model, device)
    weights = fingerprint(Path(str(settings.model.path)))
    rows = [Row(MOTION, pipeline, True, weights, range(seeds)), Row(FRAMEWISE, pipeline, False, weights, range(seeds))]
    rows.append(Row(NO_CAPTION, pipeline, True, weights, range(seeds), use_caption=False))
    if uncurated is not None:
        if not (uncurated / "config.json").is_file():
            raise UserError(f"--uncurated {uncurated}: no motion layers; give a folder such as runs/NAME/model/motion")
        other = open_pipeline(settings.model, device)
        other.load_motion(uncurated)
        # fingerprints follow each other: the motion layers' comes first, so that the folder's name tells them apart
        rows.append(Row(UNCURATED, other, True, fingerprint(uncurated) + weights, range(seeds)))
    if against is not None:
        other = open_pipeline(ModelConfig(path=str(against), dtype=settings.model.dtype), device)
        rows.append(Row(OTHER, other, True, fingerprint(against), range(seeds), own_settings=True))
    return [*rows, Row(COPIED, None, False, "", range(1))]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of test clips, rig=orbit")
    parser.add_argument("words", nargs="*", help="KEY=VALUE of fourdiffusion generate")
    parser.add_argument("--model", default="data/models/small", help="pipeline folder")
    parser.add_argument("--weights", help="folder of the metric networks' weights, as of fourdiffusion evaluate")
    parser.add_argument("--uncurated", type=Path, help="motion layers trained on uncurated clips, .../model/motion")
    parser.add_argument("--against", type=Path, help="pipeline folder of another model, which samples as it is made to")
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

"""Quality against training steps: held-out objects, sampled with the moving averages of the checkpoints a run has kept.

    fourdiffusion train experiment=tiny_motion keep_every=300 ...
    python scripts/benchmarks/training_curve.py .cache/measure runs/tiny_motion --objects 10 [KEY=VALUE of generate ...]

Works while the run goes on. Each measurement is written down at once, in curve/log.jsonl of the run folder; curve.png
there needs matplotlib. Step 0 is the model that the run began with, sampled frame by frame: a dashed line if
stage=motion.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Literal

import report
import yaml
from held_out import first_clips, read_example, sampling_settings
from small_tables import Row, measure, read_log
from tqdm import tqdm

from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion.loading import open_pipeline
from fourdiffusion.diffusion.objectives import DiffusionObjective
from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors
from fourdiffusion.runs import append_log, git_commit, open_run
from fourdiffusion.settings import GenerateConfig

AXES = {"psnr": "PSNR in dB", "temporal_error": "temporal error"}


def main() -> None:
    """Measures what is not measured yet, prints the means and draws them."""
    options = _options()
    stage, base = _read_run(options.run)
    settings = sampling_settings(options.clips, base, options.frames, options.views, options.words)
    folders = first_clips(options.clips, options.objects)
    read_example(folders[0], settings)  # what does not fit is said before anything is written
    if not any((options.run / "kept").glob("*.safetensors")):
        raise UserError(f"{options.run / 'kept'} holds no checkpoints: train with keep_every=STEPS")
    lines = measure_kept(options.run, stage, settings, [(x, seed) for x in folders for seed in range(options.seeds)])
    points = means(lines, {folder.name for folder in folders}, options.seeds)
    for step, values in points.items():
        print(f"{step:7d}  " + "  ".join(f"{name} {values[name]:.4f}" for name in AXES))
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture; pip install -e '.[scripts]', then run the same command again")
    else:
        plot(points, stage, options.run / "curve/curve.png")


def measure_kept(
    run: Path, stage: Literal["base", "motion"], settings: GenerateConfig, jobs: list[tuple[Path, int]]
) -> list[report.Line]:
    """All measurements of the run so far, those of these jobs (object, seed) among them."""
    pipeline = open_pipeline(settings.model, resolve_device(settings.device))
    trained = DiffusionObjective(pipeline, stage, 0.0, 0.0, False, None).trainable
    open_run(run / "curve", settings, free=set())
    lines = read_log(run / "curve")
    known = {(line["step"], line["object"], line["seed"]) for line in lines}
    checkpoints: list[tuple[int, Path | None]] = [(0, None)]
    checkpoints += [(int(path.stem), path) for path in sorted((run / "kept").glob("*.safetensors"))]
    for step, path in tqdm(checkpoints, desc="checkpoints"):
        missing = [(folder, seed) for folder, seed in jobs if (step, folder.name, seed) not in known]
        if path is not None and missing:
            tensors = load_tensors(path)[0]
            trained.load_state_dict({k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")})
        row = Row("", pipeline, stage == "motion" and step > 0, "", range(0))
        for folder, seed in missing:
            line = {"step": step, "object": folder.name, "seed": seed, "commit": git_commit()}
            lines.append(line | measure(settings, folder, row, seed))
            append_log(run / "curve", lines[-1])
    return lines


def means(lines: list[report.Line], objects: set[str], seeds: int) -> dict[int, dict[str, float]]:
    """Of the measures over these objects and the first seeds, by step."""
    points = {}
    for step in sorted({line["step"] for line in lines}):
        those = [line for line in lines if line["step"] == step and line["object"] in objects and line["seed"] < seeds]
        if len(those) == len(objects) * seeds:
            points[step] = {name: sum(line[name] for line in those) / len(those) for name in AXES}
    return points


def plot(points: dict[int, dict[str, float]], stage: str, path: Path) -> None:
    """A panel for each measure."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(AXES), figsize=(9, 3.5))
    for panel, (name, label) in zip(panels, AXES.items(), strict=True):
        steps = [step for step in points if step > 0 or stage == "base"]
        panel.plot(steps, [points[step][name] for step in steps], ".-")
        if stage == "motion":
            panel.axhline(points[0][name], color="grey", linestyle="--")
        panel.set(xlabel=f"steps of stage={stage}", ylabel=label)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"written: {path}")


def _read_run(run: Path) -> tuple[Literal["base", "motion"], str]:
    """The stage, and the model that it began with."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} holds no run of train: {path.name} is missing")
    settings = yaml.safe_load(path.read_text())["settings"]
    if settings.get("stage") not in ("base", "motion") or settings["model"]["path"] is None:
        raise UserError(f"{run} is no run of stage=base or stage=motion that began with a model: give one that is")
    return settings["stage"], settings["model"]["path"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of test clips, rig=orbit")
    parser.add_argument("run", type=Path, help="run folder of fourdiffusion train with keep_every")
    parser.add_argument("words", nargs="*", help="KEY=VALUE of fourdiffusion generate")
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--frames", type=int, default=8, help="of the clips")
    parser.add_argument("--views", type=int, default=4, help="that the model generates")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    report.run(main)

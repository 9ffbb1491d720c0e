"""Quality of fitted scenes against seconds: PSNR at novel views of every checkpoint, a curve a recipe and object.

    python scripts/benchmarks/quality_time.py .cache/measure \\
        --fit "experiment=small" --fit "experiment=small sds.source=off" --objects 1

The fits run one after the other, each in one go and with its own learning rates to the end: what it saves on its way is
set aside and measured afterwards. Leave the machine alone meanwhile. A table is printed that holds all recipes
against the last one; the run folder gets curves.csv, and curves.png where matplotlib is installed.
"""

import argparse
import csv
import importlib.util
import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

import report
from held_out import fingerprint, first_clips, fit_once, novel_means, write_input

from fourdiffusion.datasets.clips import read_clip
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.settings import EvaluateConfig
from fourdiffusion.files import load_tensors
from fourdiffusion.scene.scene import load_scene, save_scene

NEAR = 0.2  # dB
Point = dict[str, Any]  # "fit", "object", "step", "seconds", "psnr" and the other measures, "copied_psnr"


def main() -> None:
    """Fits, measures, and writes the curves."""
    options = _options()
    weights, points = fingerprint(Path(options.model)), []
    for folder in first_clips(options.clips, options.objects):
        clip = read_clip(folder)
        for number, fit in enumerate(options.fit):
            place = options.run / f"{folder.name}_{number}"
            words = [*write_input(place / "input", clip), f"model.path={options.model}", *shlex.split(fit)]
            words += [f"checkpoint_minutes={options.every / 60:.4f}", "preview_minutes=0"]
            keep_checkpoints(place, words, weights)
            points += [{"fit": fit, "object": folder.name, **point} for point in curve(place, folder)]
    path = options.run / "curves.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(points[0]))
        writer.writeheader()
        writer.writerows(points)
    print(table(points))
    print(f"{report.machine()}; written: {path}")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture; pip install -e '.[scripts]', then run the same command again")
    else:
        plot(points, options.run / "curves.png")


def keep_checkpoints(place: Path, words: list[str], weights: str) -> None:
    """Fits into place/run; place/checkpoints gets what it saves, each file named by the seconds since the start."""
    kept, newest = place / "checkpoints", place / "run/checkpoint.safetensors"
    note = place / "run.json"
    if note.is_file() and "seconds" not in json.loads(note.read_text()):
        raise UserError(
            f"the fit in {place} was stopped in between, so its seconds would say nothing: delete that folder"
        )
    kept.mkdir(parents=True, exist_ok=True)
    began = time.time()

    def watch() -> None:
        if not newest.is_file():
            return
        os.link(newest, kept / "new")  # fit replaces the file and never writes into it
        path = kept / f"{(kept / 'new').stat().st_mtime - began:09.2f}.safetensors"
        if path.exists():
            (kept / "new").unlink()
        else:
            (kept / "new").rename(path)

    fit_once(place / "run", words, weights, watch)


def curve(place: Path, truth: Path) -> list[Point]:
    """The checkpoints' measures at novel views, in order of time."""
    points = []
    for path in sorted((place / "checkpoints").glob("*.safetensors")):
        tensors, metadata = load_tensors(path)
        folder = place / "measured" / path.stem
        if not (folder / "metrics.json").is_file():
            scene = load_scene(place / "run")
            for name, module in (("scene.", scene.field), ("occupancy.", scene.occupancy)):
                module.load_state_dict({k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)})
            save_scene(folder / "scene", scene)
            evaluate(EvaluateConfig(str(folder), str(truth)))
        means, copied = novel_means(folder / "metrics.json")
        points.append({"step": metadata["step"], "seconds": float(path.stem), **means, "copied_psnr": copied["psnr"]})
    return points


def table(points: list[Point]) -> str:
    """Markdown: means over objects of each recipe, and when its curve first came near the last one's best point."""
    curves: dict[str, dict[str, list[Point]]] = {}
    for point in points:
        curves.setdefault(point["fit"], {}).setdefault(point["object"], []).append(point)
    goals = {name: max(point["psnr"] for point in line) - NEAR for name, line in curves[points[-1]["fit"]].items()}
    rows = [
        f"| recipe | PSNR in dB at the end | at its best | seconds | seconds to the last one's best less {NEAR} dB |",
        "|---|---|---|---|---|",
    ]
    for fit, lines in curves.items():
        psnr, seconds = (sum(line[-1][key] for line in lines.values()) / len(lines) for key in ("psnr", "seconds"))
        best = sum(max(p["psnr"] for p in line) for line in lines.values()) / len(lines)
        near = [[p["seconds"] for p in line if p["psnr"] >= goals[name]][:1] for name, line in lines.items()]
        reached = [first[0] for first in near if first]
        when = f"{sum(reached) / len(reached):.0f}" if reached else "never"
        never = f" ({len(near) - len(reached)} of {len(near)} never)" if 0 < len(reached) < len(near) else ""
        rows.append(f"| `{fit}` | {psnr:.2f} | {best:.2f} | {seconds:.0f} | {when}{never} |")
    return "\n".join(rows)


def plot(points: list[Point], path: Path) -> None:
    """A colour for each recipe, a line for each object; dashed, the copied input's mean."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    fits, objects = (list(dict.fromkeys(point[key] for point in points)) for key in ("fit", "object"))
    for number, fit in enumerate(fits):
        for name in objects:
            line = [point for point in points if point["fit"] == fit and point["object"] == name]
            x, y = [point["seconds"] for point in line], [point["psnr"] for point in line]
            axes.plot(x, y, ".-", color=f"C{number}", label=fit if name == objects[0] else None)
    copied = {point["object"]: point["copied_psnr"] for point in points}
    axes.axhline(sum(copied.values()) / len(copied), color="grey", linestyle="--", label="copied input")
    axes.set(xlabel="seconds since the command began", ylabel="PSNR at novel views, dB", title=report.machine())
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, dpi=120, bbox_inches="tight")
    print(f"written: {path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of test clips of 8 views, rig=orbit")
    parser.add_argument("--fit", action="append", required=True, help="KEY=VALUE words of one recipe; once for each")
    parser.add_argument("--every", type=float, default=15, help="seconds between two points")
    parser.add_argument("--model", default="data/models/small", help="pipeline folder")
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--run", type=Path, default=Path("runs/quality_time"))
    return parser.parse_args()


if __name__ == "__main__":
    report.run(main)

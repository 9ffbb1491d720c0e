"""One set of predictions under every shipped protocol: how far numbers of one name lie apart.

    python scripts/benchmarks/protocol_spread.py SAMPLES TRUTH --weights WEIGHTS --output docs/evaluate.md

SAMPLES and TRUTH are folders of objects, such as small_tables.py leaves: runs/NAME/samples/ROW/seed_0, runs/NAME/truth.
Two degraded copies are made: blurred, and with a flicker of 5 percent. A protocol that refuses is taken once more with
the rules for what does not match switched to "compare what both have"; its refusal stands in the table. Pictures keep
their own size unless --protocol-size is given. A measurement that is there is not made again.
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import report
from PIL import Image, ImageFilter

from fourdiffusion.errors import UserError
from fourdiffusion.evaluate import evaluate
from fourdiffusion.evaluate.settings import PACKAGE, EvaluateConfig, ProtocolConfig, load_protocol
from fourdiffusion.runs import git_commit

COPIES = ("as generated", "blurred", "flickering")
RULES = {"frame_mismatch": "first", "view_mismatch": "shared", "object_mismatch": "shared"}


def main() -> None:
    """Measure what is not there yet and write the section."""
    options = _options()
    objects = sorted(path.name for path in options.samples.iterdir() if path.is_dir())[: options.objects]
    sides = {name: options.run / name.replace(" ", "_") for name in COPIES}
    for name, place in sides.items():
        for each in objects:
            degraded(options.samples / each, place / each, name)
    for each in objects:
        degraded(options.truth / each, options.run / "truth" / each, COPIES[0])
    names = sorted(path.stem for path in (PACKAGE.parent / "configs" / "protocol").glob("*.yaml"))
    found: dict[str, dict[str, dict[str, float]]] = {}
    said: dict[str, str] = {}
    for name in names:
        protocol = load_protocol(name)
        if "cd_3d" in protocol.metrics or name in options.leave_out:
            continue
        if not options.protocol_size:
            protocol = dataclasses.replace(protocol, size=None)
        found[name], said[name] = measured(protocol, sides, options)
    report.write_section(options.output, "protocol_spread", section(found, said, objects, options))


def measured(
    protocol: ProtocolConfig, sides: dict[str, Path], options: argparse.Namespace
) -> tuple[dict[str, dict[str, float]], str]:
    """Return the means of each copy under a protocol, and what it refused or left out."""
    means, said = {}, ""
    for copy, place in sides.items():
        output = options.run / "out" / protocol.name / place.name
        try:
            content = evaluated(protocol, place, output, options)
        except UserError as error:
            said = f"refused: {str(error).split(': give ')[0].removeprefix(str(place)).lstrip(', ')}"
            try:
                content = evaluated(dataclasses.replace(protocol, **RULES), place, output, options)  # type: ignore[arg-type]
            except UserError as second:
                said = f"refused: {str(second).rsplit(': ', 1)[-1]}"
                continue
        means[copy] = content["mean"]
        missing = [line.split(":")[0] for line in content["missing"]]
        missing += [note.split(":")[0] for note in content["notes"] if ": missing (" in note]
        if missing and "missing" not in said:
            said = "; ".join([*([said] if said else []), f"missing {', '.join(dict.fromkeys(missing))}"])
    return means, said


def evaluated(protocol: ProtocolConfig, place: Path, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the report of a copy under a protocol."""
    path = output / "metrics.json"
    if not path.is_file():
        config = EvaluateConfig(str(place), str(options.run / "truth"), str(output), weights=options.weights)
        evaluate(dataclasses.replace(config, protocol=dataclasses.replace(protocol, check_pairing=False)))
    return json.loads(path.read_text(encoding="utf-8"))


def degraded(source: Path, place: Path, how: str) -> None:
    """Copy an object's frames: as they are, blurred by one pixel, or every second frame 5 percent darker."""
    if place.is_dir():
        return
    partial = place.with_name(place.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for view in sorted(path for path in source.iterdir() if path.is_dir()):
        (partial / view.name).mkdir(parents=True)
        for number, path in enumerate(sorted(view.glob("*.png"))):
            image = Image.open(path).convert("RGB")
            if how == "blurred":
                image = image.filter(ImageFilter.GaussianBlur(1))
            elif how == "flickering" and number % 2:
                image = Image.fromarray((np.asarray(image) * 0.95).round().astype(np.uint8))
            image.save(partial / view.name / path.name)
    partial.rename(place)


def section(
    found: dict[str, dict[str, dict[str, float]]], said: dict[str, str], objects: list[str], options: argparse.Namespace
) -> str:
    """Return the table and the spread of every family of numbers."""
    lines = [f"| protocol | number | {' | '.join(COPIES)} |", "|---" * (len(COPIES) + 2) + "|"]
    families: dict[str, list[tuple[float, str]]] = {}
    for protocol, copies in found.items():
        names = list(dict.fromkeys(name for values in copies.values() for name in values))
        for name in names:
            cells = [f"{copies[copy][name]:.4g}" if name in copies.get(copy, {}) else "" for copy in COPIES]
            lines.append(f"| `{protocol}` | {name} | {' | '.join(cells)} |")
            if COPIES[0] in copies and name in copies[COPIES[0]]:
                families.setdefault(name.split(" [")[0].split("_")[0], []).append((copies[COPIES[0]][name], protocol))
    spread = []
    for family in ("psnr", "ssim", "lpips", "fvd"):
        values = sorted(families.get(family, []))
        if len(values) > 1:
            low, high = values[0], values[-1]
            spread.append(f"{family.upper()} from {low[0]:.4g} (`{low[1]}`) to {high[0]:.4g} (`{high[1]}`)")
    said = said | {name: "not taken" for name in options.leave_out}
    notes = [f"* `{name}`: {text}" for name, text in said.items() if text]
    size = "the protocols' own sizes" if options.protocol_size else "the pictures' own size"
    return "\n".join(
        [
            f"{len(objects)} test objects of the synthetic world, the small model's videos from new sides and two "
            f"degraded copies of them, at {size}. Spread of one set of predictions: {'; '.join(spread)}.",
            "",
            *lines,
            "",
            *notes,
            "",
            report.provenance({git_commit()}),
        ]
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, help="folder of predicted objects, object/view_1/00.png")
    parser.add_argument("truth", type=Path, help="folder of true objects of the same names")
    parser.add_argument("--weights", help="folder of the metric networks' weights")
    parser.add_argument("--objects", type=int, default=5)
    parser.add_argument("--leave-out", nargs="*", default=[], help="protocols that are not taken")
    parser.add_argument("--protocol-size", action="store_true", help="resize as the protocols say; slow")
    parser.add_argument("--run", type=Path, default=Path("runs/protocol_spread"))
    parser.add_argument("--output", type=Path, default=Path("docs/evaluate.md"))
    return parser.parse_args()


if __name__ == "__main__":
    report.run(main)

"""What the measuring scripts share: tables, where their figures come from, and sections of the results page."""

import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.metrics.statistics import paired_difference

Line = dict[str, Any]  # one measurement: "row", "object", and a value for each measure that was taken
MEASURES = {  # heading and decimals
    "psnr": ("PSNR in dB ↑", 2),
    "ssim": ("SSIM ↑", 3),
    "gmsd": ("GMSD ↓", 3),
    "lpips_alex": ("LPIPS, Alex ↓", 3),
    "lpips_squeeze": ("LPIPS, Squeeze ↓", 3),
    "temporal_error": ("temporal error ↓", 4),
    "warped_error [TV-L1]": ("warped temporal error ↓", 4),
    "fvd [set]": ("FVD of the set ↓", 1),
    "seconds": ("seconds", 0),
}


def run(main: Callable[[], None]) -> None:
    """Ends the program as the command line does: 2 after a mistake of the user's, 130 after Ctrl-C."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        sys.exit(130)


def over_objects(lines: list[Line], row: str, measure: str) -> list[float]:
    """One value an object: the mean over the row's measurements of it (its seeds), those without the measure aside."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if line["row"] == row and line.get(measure) is not None:
            found.setdefault(line["object"], []).append(line[measure])
    return [statistics.fmean(values) for values in found.values()]


def cell(values: list[float], digits: int) -> str:
    """Mean and sample standard deviation; the mean alone of a single value, a dash of none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table(lines: list[Line], rows: list[str], measures: list[str]) -> str:
    """Markdown: a line for each row, a column for each measure, means ± standard deviations over objects."""
    text = ["| | " + " | ".join(MEASURES[name][0] for name in measures) + " |", "|---" * (len(measures) + 1) + "|"]
    for row in rows:
        cells = [cell(over_objects(lines, row, name), MEASURES[name][1]) for name in measures]
        text.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def paired_table(lines: list[Line], row: str, others: list[str]) -> str:
    """Return a Markdown table of ``row`` minus each other row: mean ± standard error over the objects of both."""
    names = [name for name in measures(lines) if not name.startswith(("fvd", "seconds"))]
    text = ["| | " + " | ".join(MEASURES[name][0] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for other in others:
        cells = []
        for name in names:
            values = [over_objects(lines, each, name) for each in (row, other)]
            if not all(values) or len(values[0]) != len(values[1]):
                cells.append("-")
                continue
            difference = paired_difference(*values)
            digits = MEASURES[name][1] + 1
            cells.append(f"{difference.mean:+.{digits}f} ± {difference.standard_error:.{digits}f}")
        text.append(f"| {other} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def measures(lines: list[Line]) -> list[str]:
    """Return those of MEASURES that were taken."""
    return [name for name in MEASURES if any(line.get(name) is not None for line in lines)]


def legend(lines: list[Line]) -> str:
    """What the less known measures are."""
    taken = measures(lines)
    lpips = "" if "lpips_alex" in taken else "; LPIPS is missing: no weights"
    warped = (
        " The warped one compares pixels along the truth's estimated motion." if "warped_error [TV-L1]" in taken else ""
    )
    fvd = ""
    if "fvd [set]" in taken:
        count = len({line["object"] for line in lines} - {"all"})
        fvd = (
            f" FVD is the Frechet distance of the two sets of I3D logits, of the videos of {count} objects; mean over "
            "seeds, comparable only among sets of as many videos, and without a standard error: a set is one number."
        )
    return (
        f"GMSD is gradient magnitude similarity deviation, a perceptual measure without weights{lpips}. "
        f"The temporal error is the mean absolute error of the differences between neighboring frames.{warped}{fvd}"
    )


def provenance(commits: set[str]) -> str:
    """How the figures were made: this command, the source's commits ("+" where files differed) and the machine."""
    command = shlex.join(["python", f"scripts/benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return f"`{command}`; commit {', '.join(sorted(commits))}; {machine()}."


def machine() -> str:
    """Processor, cores, GPU if there is one, torch's version."""
    names = []
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores, {gpu}torch {torch.__version__}"


def write_section(path: Path, name: str, body: str) -> None:
    """Puts a section into the page at ``path``, which is made if it is not there."""
    page = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n"
    page = replace_section(page, name, body)
    write_atomic(path, lambda partial: partial.write_text(page, encoding="utf-8"))
    print(f"{body}\n\nwritten: section {name} of {path}")


def replace_section(page: str, name: str, body: str) -> str:
    """The page with ``body`` between the two comments that mark the section, which is added at the end if it is new."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n{body.strip()}\n{end}"
    before, begun, rest = page.partition(begin)
    if not begun:
        return f"{page.rstrip()}\n\n{section}\n"
    _, ended, after = rest.partition(end)
    if not ended:
        raise UserError(f"the page has '{begin}' and no '{end}' behind it: restore that line, or delete the first")
    return before + section + after

"""Tables: measured rows beside published ones, as text, Markdown and LaTeX."""

import json
import math
from pathlib import Path
from typing import Any

from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.published import PUBLISHED, family, published_value
from fourdiffusion.evaluate.settings import ProtocolConfig, protocol_hash
from fourdiffusion.files import write_atomic
from fourdiffusion.metrics.statistics import paired_difference

HIGHER_IS_BETTER = ("psnr", "ssim", "clip_i", "clip_c", "clip_c_all", "clip_text", "alpha_iou", "f_score")


def read_others(paths: list[Path], protocol: ProtocolConfig) -> dict[str, dict[str, Any]]:
    """Return other methods' reports by name. UserError for one of another protocol, or no report at all."""
    others: dict[str, dict[str, Any]] = {}
    for path in paths:
        path = path / "metrics.json" if path.is_dir() else path
        try:
            report = read_json(path, "give a metrics.json of this verb")
            measured_under, name = report["protocol"], Path(report["prediction"]).name
            _ = report["mean"], report["objects"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"compare={path} is no metrics.json of this verb ({type(error).__name__})") from error
        if measured_under["sha256"] != protocol_hash(protocol):
            raise UserError(
                f"compare={path} was measured under {measured_under['name']}, other settings than now: "
                "measure it again under the same protocol"
            )
        others[name if name not in others else str(path)] = report
    return others


def table_rows(report: dict[str, Any], others: dict[str, dict[str, Any]], protocol: ProtocolConfig) -> dict[str, Any]:
    """Return {"columns": [metric], "rows": [{"method", "published", "values"}], "paired": [...], "source": text}."""
    columns = list(report["mean"])
    rows = [{"method": Path(report["prediction"]).name or "prediction", "published": False, "values": report["mean"]}]
    paired = []
    made = {name.replace("_", " "): other for name, other in report.get("baselines", {}).items()}
    for name, other in (made | others).items():
        rows.append({"method": name, "published": False, "values": other["mean"]})
        shared = [each for each in report["objects"] if each in other["objects"]]
        for metric in columns:
            values = [
                [side["objects"][each]["mean"].get(metric, math.nan) for each in shared] for side in (report, other)
            ]
            if shared and all(math.isfinite(value) for side in values for value in side):
                difference = paired_difference(*values)
                error = difference.standard_error
                paired.append(
                    {
                        "metric": metric,
                        "minus": name,
                        "mean": difference.mean,
                        "standard_error": error if math.isfinite(error) else None,
                        "num_objects": difference.num_objects,
                    }
                )
    source, published = PUBLISHED.get(protocol.name, ("", {}))
    for method, known in published.items():
        found = {column: published_value(known, column, columns) for column in columns}
        mine = {column: value for column, value in found.items() if value is not None}
        rows.append({"method": method, "published": True, "values": mine})
    name = protocol.name + (", changed" if report["protocol"]["changed"] else "")
    return {"columns": columns, "rows": rows, "paired": paired, "source": source, "protocol": name}


def write_tables(
    output: Path, report: dict[str, Any], others: dict[str, dict[str, Any]], protocol: ProtocolConfig
) -> list[str]:
    """Write table.json, table.md and table.tex, and return their names."""
    rows = table_rows(report, others, protocol)
    texts = {
        "table.json": json.dumps(rows, indent=1) + "\n",
        "table.md": markdown(rows),
        "table.tex": latex(rows),
    }
    for name, text in texts.items():
        write_atomic(output / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    return list(texts)


def markdown(rows: dict[str, Any]) -> str:
    """Return a Markdown table; arrows say what is better, published rows say so."""
    lines = [
        f"| {rows['protocol']} | {' | '.join(f'{name} {_arrow(name)}' for name in rows['columns'])} |",
        "|---" * (len(rows["columns"]) + 1) + "|",
    ]
    for row in rows["rows"]:
        name = f"{row['method']} (published)" if row["published"] else row["method"]
        lines.append(f"| {name} | {' | '.join(_cell(row, column) for column in rows['columns'])} |")
    if rows["source"]:
        lines += ["", f"Published rows: {rows['source']}."]
    if rows["paired"]:
        lines += ["", "| metric | minus | paired difference | standard error | objects |", "|---|---|---|---|---|"]
        for each in rows["paired"]:
            error = "" if each["standard_error"] is None else f"{each['standard_error']:.4g}"
            lines.append(
                f"| {each['metric']} | {each['minus']} | {each['mean']:.4g} | {error} | {each['num_objects']} |"
            )
    return "\n".join(lines) + "\n"


def latex(rows: dict[str, Any]) -> str:
    """Return a LaTeX tabular (booktabs); published rows carry a dagger."""
    arrows = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
    head = " & ".join(f"{_escape(name)} {arrows[_arrow(name)]}" for name in rows["columns"])
    lines = [rf"\begin{{tabular}}{{l{'r' * len(rows['columns'])}}}", r"\toprule", rf"Method & {head} \\", r"\midrule"]
    for row in rows["rows"]:
        name = _escape(row["method"]) + (r"$^\dagger$" if row["published"] else "")
        lines.append(" & ".join([name, *(_cell(row, column) for column in rows["columns"])]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if rows["source"]:
        lines.append(rf"% $^\dagger$ published: {rows['source']}")
    return "\n".join(lines) + "\n"


def text_table(report: dict[str, Any], others: dict[str, dict[str, Any]], protocol: ProtocolConfig) -> str:
    """Return the table for the terminal, with intervals over objects."""
    rows = table_rows(report, others, protocol)
    width = max(len(row["method"]) for row in rows["rows"]) + 14
    lines = ["".ljust(width) + "".join(f"{name:>22}" for name in rows["columns"])]
    for row in rows["rows"]:
        name = f"{row['method']} (published)" if row["published"] else row["method"]
        lines.append(name.ljust(width) + "".join(f"{_cell(row, column):>22}" for column in rows["columns"]))
    intervals = report["interval_95_over_objects"]
    if intervals:
        cells = [
            f"{intervals[name][0]:.4g} .. {intervals[name][1]:.4g}" if name in intervals else ""
            for name in rows["columns"]
        ]
        lines.append("95 percent, over objects".ljust(width) + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def run_table(name: str, parts: dict[str, dict[str, Any]]) -> str:
    """Return the means of each part of a run by role as lines of text, the copied input's in brackets."""
    measures = list(next(iter(parts.values()))["mean"])
    lines = [name.ljust(34) + "".join(f"{measure:>18}" for measure in measures)]
    for part, report in parts.items():
        baseline = report["baseline"]
        for role, means in report["mean_by_role"].items():
            cells = [f"{means[measure]:.3f}" if measure in means else "" for measure in measures]
            if baseline is not None:
                others = baseline["mean_by_role"][role]
                cells = [
                    f"{cell} ({others[measure]:.3f})" if measure in others else cell
                    for cell, measure in zip(cells, measures, strict=True)
                ]
            count = report["role"].count(role)
            lines.append(f"{part}, {role} views ({count})".ljust(34) + "".join(f"{cell:>18}" for cell in cells))
        for name, other in report["baselines"].items():
            for role, means in other["mean_by_role"].items():
                cells = [f"{means[measure]:.3f}" if measure in means else "" for measure in measures]
                lines.append(f"{name}, {role} views".ljust(34) + "".join(f"{cell:>18}" for cell in cells))
        if "between_fitted_times" in report:
            between = report["between_fitted_times"]
            cells = [f"{between['mean'][measure]:.3f}" if measure in between["mean"] else "" for measure in measures]
            label = f"{part}, between fitted times ({len(between['frames'])})"
            lines.append(label.ljust(34) + "".join(f"{cell:>18}" for cell in cells))
    if any(report["baseline"] for report in parts.values()):
        lines.append("in brackets: the input frame shown at every view")
    return "\n".join(lines)


def higher_is_better(metric: str) -> bool:
    """Whether a metric, by its name in a report, grows with quality."""
    return family(metric) in HIGHER_IS_BETTER and "spherical" not in metric


def _arrow(metric: str) -> str:
    return "↑" if higher_is_better(metric) else "↓"


def _cell(row: dict[str, Any], column: str) -> str:
    value = row["values"].get(column)
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _escape(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&").replace("#", r"\#")

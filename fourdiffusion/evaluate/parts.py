"""Measure runs of this project part by part: the scene and the generated videos, by view and role."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.measure import Networks, Pictures, prepare
from fourdiffusion.evaluate.page import MAX_FILMS, Film
from fourdiffusion.evaluate.runs import Part, compare_run
from fourdiffusion.evaluate.settings import ProtocolConfig
from fourdiffusion.evaluate.summary import Row, measure_row, summarize
from fourdiffusion.media.write import contact_sheet
from fourdiffusion.metrics.geometry import cross_view_error
from fourdiffusion.metrics.video import copied_input, group_means


def evaluate_runs(
    runs: dict[str, tuple[Path, Path]],
    protocol: ProtocolConfig,
    networks: Networks,
    device: torch.device,
    films: list[Film] | None,
    baselines: list[str] | None = None,
    steps: int = 1,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Measure scenes and generated videos at the truth's cameras; also the sheets to write, {file name: picture}.

    ``baselines`` are made and measured too; ``steps`` of a static scene.
    """
    notes: list[str] = []
    reports: dict[str, dict[str, Any]] = {}
    rows: dict[str, list[Row]] = {}
    sheets = {}
    for name, (folder, truth) in runs.items():
        parts, found = compare_run(folder, truth, device, baselines, steps)
        notes += found
        reports[name] = {}
        for part in (_restrict(part, protocol, notes) for part in parts):
            notes += [f"{part.name}: {note}" for note in part.notes]
            report, measured, others = _compare_part(name, part, protocol, networks, notes, films)
            reports[name][part.name] = report
            rows.setdefault(part.name, []).extend(measured)
            for baseline, found_rows in others.items():
                rows.setdefault(f"{part.name} {baseline}", []).extend(found_rows)
            prefix = "" if len(runs) == 1 else f"{name}/"
            sheets[f"{prefix}comparison_{part.name}.png"] = _sheet(part)
    chosen = "scene" if "scene" in rows else "videos"
    result = summarize(rows[chosen], protocol, {})
    result["baselines"] = {}
    for name, measured in rows.items():
        part_name, _, baseline = name.partition(" ")
        if baseline and part_name == chosen and {row.object for row in measured} == set(runs):
            summary = summarize(measured, protocol, {})
            result["baselines"][baseline] = {key: summary[key] for key in ("mean", "objects")}
    return {"runs": reports, "table_of": chosen} | result | {"notes": notes + result["notes"]}, sheets


def _restrict(part: Part, protocol: ProtocolConfig, notes: list[str]) -> Part:
    """The views and the first fitted frames that the protocol names; views go by their number in the truth's clip."""
    if protocol.frames is not None:
        if part.fitted.count(True) < protocol.frames and protocol.frame_mismatch == "error":
            count = part.fitted.count(True)
            raise UserError(f"{part.name}: {count} frames, {protocol.name} compares {protocol.frames}")
        seen = [sum(part.fitted[: number + 1]) for number in range(len(part.fitted))]
        last = next((number for number, count in enumerate(seen) if count == protocol.frames), len(seen) - 1)
        part = part.of_frames(last + 1)
    if protocol.views:
        chosen = [part.views.index(int(name)) for name in protocol.views if name.isdigit() and int(name) in part.views]
        if not chosen or (len(chosen) < len(protocol.views) and protocol.view_mismatch == "error"):
            raise UserError(
                f"{part.name}: {protocol.name} compares views {', '.join(protocol.views)}, here are "
                f"{', '.join(map(str, part.views))}: name them, protocol.views=[...]"
            )
        if left := [view for number, view in enumerate(part.views) if number not in chosen]:
            notes.append(f"{part.name}: views {', '.join(map(str, left))} are no part of {protocol.name}: left out")
        part = part.of_views(chosen)
    return part


def _compare_part(
    name: str,
    part: Part,
    protocol: ProtocolConfig,
    networks: Networks,
    notes: list[str],
    films: list[Film] | None,
) -> tuple[dict[str, Any], list[Row], dict[str, list[Row]]]:
    """All measures of one part by view and role, at fitted times; and the same of its baselines."""
    fitted = [number for number, known in enumerate(part.fitted) if known]
    truth = [_of_truth(part, view, protocol) for view in range(len(part.truth))]
    predicted = [_of_part(part, view, protocol) for view in range(len(part.rgb))]

    def rows_at(pictures: list[Pictures], frames: list[int]) -> list[Row]:
        views = list(zip(part.views, pictures, truth, strict=True))
        return [
            measure_row(name, str(view), (_frames(a, frames), _frames(b, frames)), protocol, networks, notes)
            for view, a, b in tqdm(views, desc="evaluate", unit="view", leave=False)
        ]

    measured = rows_at(predicted, fitted)
    if "cross_view_error" in protocol.metrics:
        _add_cross_view(measured, part, predicted, fitted, notes)
    if films is not None:
        for row, a, b in zip(measured, predicted, truth, strict=True):
            if len(films) < MAX_FILMS:
                pair = (_frames(a, fitted).rgb, _frames(b, fitted).rgb)
                films.append(Film(f"{name}, {part.name}", row.view, *pair, row.result.per_frame))
    report: dict[str, Any] = {
        "views": part.views,
        "azimuth_deg": part.azimuths_deg,
        "role": part.roles,
        "frames": part.frames,
        "fitted": part.fitted,  # means are over these frames
        "size": list(truth[0].rgb.shape[-2:]),
        "num_frames": len(part.frames),
    }
    result = _by_view(measured)
    between = [number for number, known in enumerate(part.fitted) if not known]
    if between:
        unseen = _by_view(rows_at(predicted, between))
        report["between_fitted_times"] = {"frames": [part.frames[number] for number in between]} | unseen
        order = sorted(range(len(part.frames)), key=(fitted + between).__getitem__)
        for metric, views in result["per_frame"].items():
            both = [a + b for a, b in zip(views, unseen["per_frame"][metric], strict=True)]
            result["per_frame"][metric] = [[values[place] for place in order] for values in both]
    rivals: dict[str, list[Pictures]] = {}
    if "input" in part.roles:
        front = truth[part.roles.index("input")]
        rivals["copied_input"] = [Pictures(copy, front.alpha) for copy in copied_input(front.rgb, len(truth))]
    else:
        notes.append("the truth has no view at azimuth 0, elevation 0: the copied-input baseline is left out")
    for baseline, pixels in part.baselines.items():
        rivals[baseline] = [_of_part(part, view, protocol, pixels) for view in range(len(pixels))]
    others = {baseline: rows_at(pictures, fitted) for baseline, pictures in rivals.items()}
    report |= _baseline_reports(others, part.roles)
    return report | {"mean_by_role": group_means(result, part.roles)} | result, measured, others


def _baseline_reports(rows: dict[str, list[Row]], roles: list[str]) -> dict[str, Any]:
    """Return what a part's report holds of its baselines; the copied input stands apart, as "baseline"."""
    reports = {}
    for name, measured in rows.items():
        by_view = _by_view(measured)
        reports[name] = {"mean_by_role": group_means(by_view, roles)} | by_view
    copied = reports.pop("copied_input", None)
    what = {"what": "the input frame shown at every view"}
    return {"baseline": None if copied is None else what | copied, "baselines": reports}


def _of_part(part: Part, view: int, protocol: ProtocolConfig, baseline: Tensor | None = None) -> Pictures:
    """A view of a part through the same steps as the truth: 8 bits, size, channels; of a baseline the color alone."""
    rgb = part.rgb[view] if baseline is None else baseline[view]
    if not bool(rgb.isfinite().all()):
        raise UserError(f"{part.name}, view {part.views[view]}: pixels are not finite: the fit has diverged, fit again")
    pixels = (rgb.clamp(0, 1) * 255).round().to(torch.uint8)
    opaque = torch.full_like(pixels[:, :1], 255)
    pictures = prepare(torch.cat([pixels, opaque], dim=1).permute(0, 2, 3, 1).numpy(), protocol, Path(part.name))
    if baseline is not None:
        return pictures
    if part.alpha is not None and part.alpha.shape[-2:] == pictures.rgb.shape[-2:]:
        pictures.alpha = part.alpha[view]
    if part.depth is not None and part.depth.shape[-2:] == pictures.rgb.shape[-2:]:
        pictures.depth = part.depth[view]
    return pictures


def _of_truth(part: Part, view: int, protocol: ProtocolConfig) -> Pictures:
    """A view of the truth with its depth, motion and caption, where the protocol leaves the pictures' size alone."""
    pictures = prepare(part.truth[view], protocol, Path(part.name))
    pictures.caption = part.caption
    if pictures.rgb.shape[-2:] == part.rgb.shape[-2:]:
        pictures.depth = None if part.truth_depth is None else part.truth_depth[view]
        pictures.motion = None if part.motion is None else part.motion[view]
    return pictures


def _frames(pictures: Pictures, frames: list[int]) -> Pictures:
    chosen = {
        name: value[frames] for name in ("rgb", "alpha", "depth") if (value := getattr(pictures, name)) is not None
    }
    follow = all(b - a == 1 for a, b in zip(frames[:-1], frames[1:], strict=True))
    motion = pictures.motion[frames[:-1]] if pictures.motion is not None and follow else None
    return dataclasses.replace(pictures, **({"alpha": None, "depth": None} | chosen), motion=motion)


def _add_cross_view(
    measured: list[Row], part: Part, predicted: list[Pictures], fitted: list[int], notes: list[str]
) -> None:
    """Give each row how far its view disagrees with the others about the true surface."""
    if part.truth_depth is None or part.c2w is None or len(part.views) < 2:
        notes.append(f"{part.name}: cross_view_error: missing (it needs two views, and the truth's depth, uncropped)")
        return
    if predicted[0].rgb.shape[-2:] != part.truth_depth.shape[-2:]:
        notes.append(f"{part.name}: cross_view_error: missing (pictures were resized): set protocol.size=null")
        return
    pictures = torch.stack([each.rgb[fitted] for each in predicted])
    errors = cross_view_error(pictures, part.truth_depth[:, fitted], part.c2w, part.fovy_deg).tolist()
    for row, error in zip(measured, errors, strict=True):
        row.result.per_view |= {"cross_view_error": error} if math.isfinite(error) else {}
    if not all(map(math.isfinite, errors)):
        notes.append(f"{part.name}: cross_view_error: some views share no surface with another one")


def _by_view(rows: list[Row]) -> dict[str, Any]:
    """Values as lists over views: {"mean": {metric}, "per_view": {metric: [V]}, "per_frame": {metric: [V][F]}}."""
    names = [name for name in rows[0].result.per_view if all(name in row.result.per_view for row in rows)]
    per_view = {name: [row.result.per_view[name] for row in rows] for name in names}
    return {
        "mean": {name: sum(values) / len(values) for name, values in per_view.items()},
        "per_view": per_view,
        "per_frame": {name: [row.result.per_frame[name] for row in rows] for name in rows[0].result.per_frame},
    }


def _sheet(part: Part) -> Tensor:
    """Two rows of frames a view: the truth above, the prediction below."""
    count = part.rgb.shape[1]
    columns = torch.linspace(0, count - 1, min(count, 8)).round().long().unique()
    pixels = torch.from_numpy(part.truth).permute(0, 1, 4, 2, 3)[:, columns].float() / 255
    truth = pixels[:, :, :3] * pixels[:, :, 3:] + 1 - pixels[:, :, 3:]
    rows = torch.stack([truth, part.rgb[:, columns]], dim=1).flatten(0, 1)
    labels = []
    for azimuth, role in zip(part.azimuths_deg, part.roles, strict=True):
        labels += [f"{azimuth:g}\N{DEGREE SIGN} truth ({role})", "prediction"]
    return contact_sheet(rows, labels, [f"frame {part.frames[int(i)]}" for i in columns])

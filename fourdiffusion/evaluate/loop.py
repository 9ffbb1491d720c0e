"""Verb `evaluate`: measure predictions against ground truth under a named protocol."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.device import resolve_device
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.collection import Collection, find_videos
from fourdiffusion.evaluate.measure import (
    Networks,
    Pictures,
    load_networks,
    matrix_clips,
    measure_video,
    prepare,
    thumbnail,
    versions,
)
from fourdiffusion.evaluate.page import Film, write_page
from fourdiffusion.evaluate.pairing import Pair, check_views, choose_frames, pair_videos
from fourdiffusion.evaluate.runs import Part, compare_run, is_run, view_roles
from fourdiffusion.evaluate.settings import (
    EvaluateConfig,
    ProtocolConfig,
    changed_settings,
    check_protocol,
    protocol_hash,
)
from fourdiffusion.evaluate.summary import Logits, Row, add_single_clip_fvd, summarize
from fourdiffusion.evaluate.tables import read_others, run_table, text_table, write_tables
from fourdiffusion.files import write_atomic
from fourdiffusion.media.write import contact_sheet, write_image
from fourdiffusion.metrics.i3d import MIN_FRAMES, resize_clip
from fourdiffusion.metrics.video import copied_input, group_means

__all__ = ["evaluate", "view_roles"]
MAX_FILMS = 64  # videos that the page shows: bounds memory


def evaluate(config: EvaluateConfig) -> None:
    """Write metrics.json, table.md, table.tex, for runs sheets of truth over prediction, with page=true report.html.

    Raises UserError where the sides cannot be compared: nothing is written then.
    """
    folder, reference = Path(config.prediction), _reference(config)
    protocol = config.protocol
    check_protocol(protocol)
    if not folder.is_dir():
        raise UserError(f"prediction={folder}: no such folder; give a run folder of fit or generate, or a clip folder")
    if not reference.is_dir():
        raise UserError(f"reference={reference}: no such folder; give a clip folder, or a folder of objects")
    others = read_others([Path(path) for path in config.compare], protocol)
    device = resolve_device(config.device)
    folders = [name for name in (config.weights, config.lpips) if name]
    for name in folders:
        if not Path(name).expanduser().is_dir():
            raise UserError(f"weights={name}: no such folder; docs/evaluate.md says what lies in it")
    networks = load_networks(protocol, folders, device)
    output = Path(config.output) if config.output else folder
    changed = changed_settings(protocol)
    head = {
        "prediction": str(folder),
        "reference": str(reference),
        "protocol": dataclasses.asdict(protocol) | {"sha256": protocol_hash(protocol), "changed": changed},
        "versions": versions(),
        "weights": networks.weights,
    }
    films: list[Film] = []
    sheets: dict[str, Tensor] = {}
    if runs := _runs(folder, reference):
        body, sheets = _evaluate_runs(runs, protocol, networks, device, films if config.page else None)
        printed = "\n".join(run_table(name, parts) for name, parts in body["runs"].items())
        if len(runs) == 1:
            body |= next(iter(body.pop("runs").values()))
    else:
        body = _evaluate_videos(folder, reference, protocol, networks, films if config.page else None)
        printed = ""
    if changed:
        body["notes"] = [f"{protocol.name} was changed: {', '.join(changed)}", *body["notes"]]
    report = head | {"missing": [missing.line() for missing in networks.missing]} | body
    for name, sheet in sheets.items():
        write_image(output / name, sheet)
    text = json.dumps(report, indent=1, allow_nan=True) + "\n"
    write_atomic(output / "metrics.json", lambda path: path.write_text(text))
    written = [str(output / "metrics.json"), *sheets, *write_tables(output, report, others, protocol)]
    if config.page:
        write_page(output / "report.html", report, films, protocol)
        written.append("report.html")
    print("\n".join([printed or text_table(report, others, protocol), *report["notes"], *report["missing"]]))
    print(f"written: {', '.join(written)}")


def _reference(config: EvaluateConfig) -> Path:
    if config.reference is not None and config.truth is not None and config.reference != config.truth:
        raise UserError(f"reference={config.reference} and truth={config.truth} are one setting: give one of them")
    chosen = config.reference if config.reference is not None else config.truth
    if chosen is None:
        raise UserError("a value is missing: add reference=...")
    return Path(chosen)


def _runs(folder: Path, reference: Path) -> dict[str, tuple[Path, Path]]:
    """Runs of this project and their truth, by name; empty where the prediction is somebody's frames."""
    if (reference / "transforms.json").is_file():
        found = None
        if not is_run(folder):
            try:
                found = find_videos(folder)
            except UserError:
                pass
        return {} if found else {reference.resolve().name: (folder, reference)}
    truths = {path.parent.name: path.parent for path in sorted(reference.glob("*/transforms.json"))}
    if not truths:
        return {}
    runs = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and is_run(path)}
    if not runs:
        return {}
    lacking, extra = sorted(set(truths) - set(runs)), sorted(set(runs) - set(truths))
    if lacking or extra:
        sides = [f"{folder} lacks {', '.join(lacking)}"] * bool(lacking)
        sides += [f"{reference} lacks {', '.join(extra)}"] * bool(extra)
        raise UserError(f"{'; '.join(sides)}: rename or add them, runs and clips are paired by their names")
    return {name: (runs[name], truths[name]) for name in truths}


# ---- anybody's frames -----------------------------------------------------------------------------------------------


def _evaluate_videos(
    folder: Path, reference: Path, protocol: ProtocolConfig, networks: Networks, films: list[Film] | None
) -> dict[str, Any]:
    """Measure a folder of objects against another one, one object in memory at a time."""
    sides: tuple[Collection, Collection] = (find_videos(folder), find_videos(reference))
    pairing = pair_videos(*sides, protocol)
    notes, rows = list(pairing.notes), []
    matrix: Logits = {axis: ([], []) for axis in protocol.fvd_axes if axis != "frames"}
    objects = list(dict.fromkeys(pair.object for pair in pairing.pairs))
    with tqdm(total=len(pairing.pairs), desc="evaluate", unit="video", leave=False) as bar:
        for name in objects:
            small: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
            clips: tuple[list[Tensor], list[Tensor]] = ([], [])
            for pair in (pair for pair in pairing.pairs if pair.object == name):
                prepared = _read_pair(pair, protocol, notes)
                bar.update()
                if prepared is None:
                    continue
                for side in (0, 1):
                    small[side][pair.view] = thumbnail(prepared[side])
                    if matrix and networks.i3d is not None:
                        clips[side].append(resize_clip(prepared[side].rgb, protocol.fvd_resize)[0].transpose(0, 1))
                row = _measure(name, pair.view, prepared, protocol, networks, notes)
                rows.append(row)
                if films is not None and len(films) < MAX_FILMS:
                    films.append(Film(name, pair.view, prepared[0].rgb, prepared[1].rgb, row.result.per_frame))
            if protocol.check_pairing and small[0]:
                check_views(name, *small)
            _add_matrix(clips, matrix, networks, notes, name)
    if not rows:
        raise UserError(f"{folder}: nothing is left to compare under {protocol.name}: {'; '.join(notes)}")
    result = summarize(rows, protocol, matrix)
    return result | {"notes": notes + result["notes"]}


def _read_pair(pair: Pair, protocol: ProtocolConfig, notes: list[str]) -> tuple[Pictures, Pictures] | None:
    """Decode both videos once and bring them to the protocol's frames and pictures; None where it drops them."""
    videos = pair.prediction.read(), pair.reference.read()
    *positions, found = choose_frames(pair, (len(videos[0]), len(videos[1])), protocol)
    notes += [note for note in found if note not in notes]
    if not positions[0]:
        return None
    sources = (pair.prediction.path, pair.reference.path)
    prepared = [
        prepare(video[chosen], protocol, path) for video, chosen, path in zip(videos, positions, sources, strict=True)
    ]
    transparent = [pictures.alpha is not None for pictures in prepared]
    if transparent[0] != transparent[1]:
        side, rule = ("prediction", "reference")[transparent[1]], protocol.alpha
        what = "composited on the background" if rule == "composite" else "dropped, its hidden colors count"
        note = f"{pair.object}: only the {side} has transparent pixels; alpha is {what} ({protocol.name})"
        notes += [note] if note not in notes else []
    return prepared[0], prepared[1]


def _measure(
    name: str,
    view: str,
    prepared: tuple[Pictures, Pictures],
    protocol: ProtocolConfig,
    networks: Networks,
    notes: list[str],
) -> Row:
    try:
        row = Row(name, view, measure_video(*prepared, protocol, networks))
    except (UserError, ValueError) as error:
        raise UserError(f"{name}, view {view}: {error}") from error
    add_single_clip_fvd(row, protocol)
    notes += [note for note in row.result.notes if note not in notes]
    return row


@torch.no_grad()
def _add_matrix(
    clips: tuple[list[Tensor], list[Tensor]], matrix: Logits, networks: Networks, notes: list[str], name: str
) -> None:
    """Add the logits of an object's clips along views, diagonal and raster."""
    if not clips[0] or networks.i3d is None:
        return
    if len({len(frames) for frames in clips[0]}) > 1:
        raise UserError(f"{name}: its views have different numbers of frames: clips along views need equal ones")
    for axis, sets in matrix.items():
        for side, own in zip(clips, sets, strict=True):
            chosen = matrix_clips(torch.stack(side), axis)
            if len(chosen[0]) < MIN_FRAMES:
                note = (
                    f"fvd along {axis}: missing (clips of {len(chosen[0])} pictures): I3D needs {MIN_FRAMES} at least"
                )
                notes += [note] if note not in notes else []
                continue
            logits = [networks.i3d(clip.transpose(0, 1)[None].to(networks.device)).cpu() for clip in chosen]
            own.append(torch.cat(logits))


# ---- runs of this project -------------------------------------------------------------------------------------------


def _evaluate_runs(
    runs: dict[str, tuple[Path, Path]],
    protocol: ProtocolConfig,
    networks: Networks,
    device: torch.device,
    films: list[Film] | None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Measure scenes and generated videos at the truth's cameras; also the sheets to write, {file name: picture}."""
    notes: list[str] = []
    reports: dict[str, dict[str, Any]] = {}
    rows: dict[str, list[Row]] = {}
    sheets = {}
    for name, (folder, truth) in runs.items():
        parts, found = compare_run(folder, truth, device)
        notes += found
        reports[name] = {}
        for part in (_restrict(part, protocol, notes) for part in parts):
            notes += [f"{part.name}: {note}" for note in part.notes]
            report, measured = _compare_part(name, part, protocol, networks, notes, films)
            reports[name][part.name] = report
            rows.setdefault(part.name, []).extend(measured)
            prefix = "" if len(runs) == 1 else f"{name}/"
            sheets[f"{prefix}comparison_{part.name}.png"] = _sheet(part)
    chosen = "scene" if "scene" in rows else "videos"
    result = summarize(rows[chosen], protocol, {})
    return {"runs": reports, "table_of": chosen} | result | {"notes": notes + result["notes"]}, sheets


def _restrict(part: Part, protocol: ProtocolConfig, notes: list[str]) -> Part:
    """The views and the first fitted frames that the protocol names; views go by their number in the truth's clip."""
    if protocol.frames is not None:
        if part.fitted.count(True) < protocol.frames and protocol.frame_mismatch == "error":
            count = part.fitted.count(True)
            raise UserError(f"{part.name}: {count} frames, {protocol.name} compares {protocol.frames}")
        seen = [sum(part.fitted[: number + 1]) for number in range(len(part.fitted))]
        last = next((number for number, count in enumerate(seen) if count == protocol.frames), len(seen) - 1)
        part.rgb, part.truth = part.rgb[:, : last + 1], part.truth[:, : last + 1]
        part.alpha = None if part.alpha is None else part.alpha[:, : last + 1]
        part.frames, part.fitted = part.frames[: last + 1], part.fitted[: last + 1]
    if protocol.views:
        chosen = [part.views.index(int(name)) for name in protocol.views if name.isdigit() and int(name) in part.views]
        if not chosen or (len(chosen) < len(protocol.views) and protocol.view_mismatch == "error"):
            raise UserError(
                f"{part.name}: {protocol.name} compares views {', '.join(protocol.views)}, here are "
                f"{', '.join(map(str, part.views))}: name them, protocol.views=[...]"
            )
        if left := [view for number, view in enumerate(part.views) if number not in chosen]:
            notes.append(f"{part.name}: views {', '.join(map(str, left))} are no part of {protocol.name}: left out")
        part.rgb, part.truth = part.rgb[chosen], part.truth[chosen]
        part.alpha = None if part.alpha is None else part.alpha[chosen]
        part.views, part.roles = [part.views[n] for n in chosen], [part.roles[n] for n in chosen]
        part.azimuths_deg = [part.azimuths_deg[n] for n in chosen]
    return part


def _compare_part(
    name: str,
    part: Part,
    protocol: ProtocolConfig,
    networks: Networks,
    notes: list[str],
    films: list[Film] | None,
) -> tuple[dict[str, Any], list[Row]]:
    """All measures of one part by view and role, at fitted times; and the same of the copied input."""
    fitted = [number for number, known in enumerate(part.fitted) if known]
    truth = [prepare(view, protocol, Path(part.name)) for view in part.truth]
    predicted = [_of_part(part, view, protocol) for view in range(len(part.rgb))]

    def rows_at(pictures: list[Pictures], frames: list[int]) -> list[Row]:
        return [
            _measure(name, str(view), (_frames(a, frames), _frames(b, frames)), protocol, networks, notes)
            for view, a, b in zip(part.views, pictures, truth, strict=True)
        ]

    measured = rows_at(predicted, fitted)
    if films is not None:
        for row, a, b in zip(measured, predicted, truth, strict=True):
            if len(films) < MAX_FILMS:
                shown = (_frames(a, fitted).rgb, _frames(b, fitted).rgb)
                films.append(Film(f"{name}, {part.name}", row.view, *shown, row.result.per_frame))
    report: dict[str, Any] = {
        "views": part.views,
        "azimuth_deg": part.azimuths_deg,
        "role": part.roles,
        "frames": part.frames,
        "fitted": part.fitted,  # means are over these frames
        "size": list(truth[0].rgb.shape[-2:]),
        "num_frames": len(part.frames),
        "baseline": None,
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
    if "input" in part.roles:
        front = truth[part.roles.index("input")]
        copies = copied_input(front.rgb, len(truth))
        baseline = _by_view(rows_at([Pictures(copy, front.alpha) for copy in copies], fitted))
        report["baseline"] = {
            "what": "the input frame shown at every view",
            "mean_by_role": group_means(baseline, part.roles),
        } | baseline
    else:
        notes.append("the truth has no view at azimuth 0, elevation 0: the copied-input baseline is left out")
    return report | {"mean_by_role": group_means(result, part.roles)} | result, measured


def _of_part(part: Part, view: int, protocol: ProtocolConfig) -> Pictures:
    """A view of a part through the same steps as the truth: 8 bits, size, channels."""
    if not bool(part.rgb[view].isfinite().all()):
        raise UserError(f"{part.name}, view {part.views[view]}: pixels are not finite: the fit has diverged, fit again")
    pixels = (part.rgb[view].clamp(0, 1) * 255).round().to(torch.uint8)
    opaque = torch.full_like(pixels[:, :1], 255)
    pictures = prepare(torch.cat([pixels, opaque], dim=1).permute(0, 2, 3, 1).numpy(), protocol, Path(part.name))
    if part.alpha is not None and part.alpha.shape[-2:] == pictures.rgb.shape[-2:]:
        pictures.alpha = part.alpha[view]
    return pictures


def _frames(pictures: Pictures, frames: list[int]) -> Pictures:
    return Pictures(pictures.rgb[frames], None if pictures.alpha is None else pictures.alpha[frames])


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

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
from fourdiffusion.evaluate.cache import FeatureCache, cache_folder
from fourdiffusion.evaluate.collection import Collection, find_videos
from fourdiffusion.evaluate.measure import (
    Networks,
    Pictures,
    load_networks,
    matrix_clips,
    prepare,
    thumbnail,
    versions,
)
from fourdiffusion.evaluate.page import MAX_FILMS, Film, write_page
from fourdiffusion.evaluate.pairing import Pair, check_views, choose_frames, pair_videos
from fourdiffusion.evaluate.parts import evaluate_runs
from fourdiffusion.evaluate.runs import is_run, view_roles
from fourdiffusion.evaluate.settings import (
    BASELINES,
    SURFACE_METRICS,
    EvaluateConfig,
    ProtocolConfig,
    changed_settings,
    check_protocol,
    protocol_hash,
)
from fourdiffusion.evaluate.summary import Logits, measure_row, summarize
from fourdiffusion.evaluate.surfaces import evaluate_surfaces, find_surfaces
from fourdiffusion.evaluate.tables import read_others, run_table, text_table, write_tables
from fourdiffusion.files import write_atomic
from fourdiffusion.media.write import write_image
from fourdiffusion.metrics.i3d import MIN_FRAMES, resize_clip

__all__ = ["evaluate", "view_roles"]


def evaluate(config: EvaluateConfig) -> None:
    """Write metrics.json, table.md, table.tex, for runs sheets of truth over prediction, with page=true report.html.

    Raises UserError where the sides cannot be compared: nothing is written then.
    """
    folder, reference = Path(config.prediction), Path(config.reference)
    protocol = config.protocol
    check_protocol(protocol)
    for name in config.baselines:
        if name not in BASELINES:
            raise UserError(f"baselines holds {name!r}: give some of {', '.join(BASELINES)}")
    if not folder.is_dir():
        raise UserError(f"prediction={folder}: no such folder; give a run folder of fit or generate, or a clip folder")
    if not reference.is_dir():
        raise UserError(f"reference={reference}: no such folder; give a clip folder, or a folder of objects")
    others = read_others([Path(path) for path in config.compare], protocol)
    device = resolve_device(config.device)
    folders = [config.weights] if config.weights else []
    for name in folders:
        if not Path(name).expanduser().is_dir():
            raise UserError(f"weights={name}: no such folder; docs/evaluate.md says what lies in it")
    networks = load_networks(protocol, folders, device)
    networks.cache = FeatureCache(cache_folder(config.feature_cache))
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
    folders_of_others = {name: Path(other["prediction"]) for name, other in others.items()}
    body, sheets, printed = _body(config, networks, device, films if config.page else None, folders_of_others)
    if changed:
        body["notes"] = [f"{protocol.name} was changed: {', '.join(changed)}", *body["notes"]]
    report = head | {"missing": [missing.line() for missing in networks.missing]} | body
    for name, sheet in sheets.items():
        write_image(output / name, sheet)
    text = json.dumps(report, indent=1, allow_nan=True) + "\n"
    write_atomic(output / "metrics.json", lambda path: path.write_text(text))
    written = [str(output / "metrics.json"), *sheets, *write_tables(output, report, others, protocol)]
    if config.page:
        write_page(output / "report.html", report, others, films, protocol)
        written.append("report.html")
    print("\n".join([printed or text_table(report, others, protocol), *report["notes"], *report["missing"]]))
    print(f"written: {', '.join(written)}")


def _body(
    config: EvaluateConfig,
    networks: Networks,
    device: torch.device,
    films: list[Film] | None,
    others: dict[str, Path],
) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Compare runs, meshes or videos, whichever lie there; return the report's body, sheets, and text to print."""
    folder, reference, protocol = Path(config.prediction), Path(config.reference), config.protocol
    if runs := _runs(folder, reference):
        body, sheets = evaluate_runs(runs, protocol, networks, device, films, config.baselines, config.baseline_steps)
        printed = "\n".join(run_table(name, parts) for name, parts in body["runs"].items())
        if len(runs) == 1:
            body |= next(iter(body.pop("runs").values()))
        return body, sheets, printed
    if made := [name for name in config.baselines if name != "copied_input"]:
        raise UserError(f"baselines={made}: they are made for runs of fit and generate, {folder} holds none")
    if (meshes := find_surfaces(folder)) and (true := find_surfaces(reference)):
        return evaluate_surfaces(meshes, true, (folder, reference), protocol), {}, ""
    body = _evaluate_videos(folder, reference, protocol, networks, films, others)
    if left := [name for name in protocol.metrics if name in SURFACE_METRICS]:
        body["notes"].append(f"{', '.join(left)}: missing (pictures): give both sides as folders of meshes")
    return body, {}, ""


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
    folder: Path,
    reference: Path,
    protocol: ProtocolConfig,
    networks: Networks,
    films: list[Film] | None,
    others: dict[str, Path],
) -> dict[str, Any]:
    """Measure a folder of objects against another one, one object in memory at a time.

    ``others`` are other methods' folders, whose videos are shown beside, by name.
    """
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
                row = measure_row(name, pair.view, prepared, protocol, networks, notes)
                rows.append(row)
                if films is not None and len(films) < MAX_FILMS:
                    beside = _shown_beside(pair, others, prepared[0], protocol)
                    films.append(Film(name, pair.view, prepared[0].rgb, prepared[1].rgb, row.result.per_frame, beside))
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
    for pictures, video, chosen in zip(prepared, (pair.prediction, pair.reference), positions, strict=True):
        pictures.caption = video.caption
        follow = all(b - a == 1 for a, b in zip(chosen[:-1], chosen[1:], strict=True))
        if video.motion is not None and follow and video.motion.shape[-2:] == pictures.rgb.shape[-2:]:
            pictures.motion = video.motion[chosen[:-1]]
    transparent = [pictures.alpha is not None for pictures in prepared]
    if transparent[0] != transparent[1]:
        side, rule = ("prediction", "reference")[transparent[1]], protocol.alpha
        what = "composited on the background" if rule == "composite" else "dropped, its hidden colors count"
        note = f"{pair.object}: only the {side} has transparent pixels; alpha is {what} ({protocol.name})"
        notes += [note] if note not in notes else []
    return prepared[0], prepared[1]


def _shown_beside(pair: Pair, others: dict[str, Path], shown: Pictures, protocol: ProtocolConfig) -> dict[str, Tensor]:
    """Frames of other methods' videos of this object and view; a method whose folder is gone or differs is left out."""
    beside = {}
    for name, folder in others.items():
        try:
            found = find_videos(folder)
            views = next(iter(found.objects.values())) if found.single else found.objects.get(pair.object, {})
            if pair.view not in views:
                continue
            prepared = _read_pair(dataclasses.replace(pair, prediction=views[pair.view]), protocol, [])
        except UserError:
            continue
        if prepared is not None and prepared[0].rgb.shape == shown.rgb.shape:
            beside[name] = prepared[0].rgb
    return beside


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

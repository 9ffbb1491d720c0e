"""From measured videos to the numbers of a table: averages, intervals, Frechet distances."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.measure import Networks, Pictures, VideoResult, measure_video
from fourdiffusion.evaluate.settings import ProtocolConfig
from fourdiffusion.metrics.frechet import consistent4d_distance, mean_distance, set_distance
from fourdiffusion.metrics.statistics import bootstrap_interval

FVD_NAMES = {"frames": "fvd [{}]", "views": "fvd_v [{}]", "diagonal": "fvd_diag [{}]", "raster": "fv4d [{}]"}
FEW_CLIPS = 400  # below the number of logits a covariance is singular


@dataclass
class Row:
    """One measured video."""

    object: str
    view: str
    result: VideoResult


Logits = dict[str, tuple[list[Tensor], list[Tensor]]]  # {axis: predicted and true [N, 400] of each object}


def add_single_clip_fvd(row: Row, protocol: ProtocolConfig) -> None:
    """Give a row the Frechet distance of its own clips, for the formulas that are taken of one pair of videos."""
    if row.result.logits is None or protocol.fvd not in ("consistent4d", "mean_only"):
        return
    predicted, true = row.result.logits
    if protocol.fvd == "mean_only":
        value = mean_distance(predicted, true)
    else:
        values = [consistent4d_distance(a, b) for a, b in zip(predicted, true, strict=True)]
        value = math.fsum(values) / len(values)
    row.result.per_view[f"fvd [{protocol.fvd}]"] = value


def measure_row(
    name: str,
    view: str,
    prepared: tuple[Pictures, Pictures],
    protocol: ProtocolConfig,
    networks: Networks,
    notes: list[str],
) -> Row:
    """Measure one video, [prediction, reference] prepared; UserError names it where it cannot be."""
    try:
        row = Row(name, view, measure_video(*prepared, protocol, networks))
    except (UserError, ValueError) as error:
        raise UserError(f"{name}, view {view}: {error}") from error
    add_single_clip_fvd(row, protocol)
    notes += [note for note in row.result.notes if note not in notes]
    return row


def summarize(rows: list[Row], protocol: ProtocolConfig, matrix: Logits) -> dict[str, Any]:
    """Return means, intervals and every video's values, ready for JSON.

    Args:
        matrix: logits of clips that do not run along one video (see ``measure.matrix_clips``).

    Raises:
        UserError: a set-level distance of one clip, where the protocol does not name a formula for it.
    """
    objects: dict[str, Any] = {}
    for row in rows:
        entry = objects.setdefault(row.object, {"mean": {}, "views": {}})
        entry["views"][row.view] = {"mean": row.result.per_view, "per_frame": row.result.per_frame}
    for entry in objects.values():
        entry["mean"] = _means([view["mean"] for view in entry["views"].values()])
    videos = [row.result.per_view for row in rows]
    mean = _means([entry["mean"] for entry in objects.values()] if protocol.averaging == "objects" else videos)
    intervals = {}
    for name in mean:
        values = [entry["mean"][name] for entry in objects.values() if name in entry["mean"]]
        interval = bootstrap_interval(values) if all(map(math.isfinite, values)) else None
        if interval is not None:
            intervals[name] = list(interval)
    notes: list[str] = []
    if protocol.fvd == "set":
        mean |= _set_level(rows, protocol, matrix, notes)
    return {
        "mean": mean,
        "interval_95_over_objects": intervals,
        "num_objects": len(objects),
        "num_videos": len(rows),
        "objects": objects,
        "notes": notes,
    }


def _means(entries: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every name over the entries that have it; a name that some lack is still a mean of those."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    values = {name: [entry[name] for entry in entries if name in entry] for name in names}
    return {name: math.fsum(each) / len(each) for name, each in values.items()}


def _set_level(rows: list[Row], protocol: ProtocolConfig, matrix: Logits, notes: list[str]) -> dict[str, float]:
    along = [row.result.logits for row in rows if row.result.logits is not None]
    sets: Logits = {"frames": ([pair[0] for pair in along], [pair[1] for pair in along])} | matrix
    found = {}
    for axis in protocol.fvd_axes:
        predicted, true = sets.get(axis, ([], []))
        if not predicted:
            continue
        a, b = torch.cat(predicted), torch.cat(true)
        if len(a) == 1 and protocol.fvd_of_one == "mean_only":
            found[FVD_NAMES[axis].format("mean_only")] = mean_distance(a, b)
            notes.append(f"{FVD_NAMES[axis].format('set')}: one clip a side, so {protocol.name} takes the mean's term")
            continue
        if len(a) == 1:
            raise UserError(
                f"{FVD_NAMES[axis].format('set')} of one clip is not defined: give several objects or views, or name a "
                "formula for one: protocol.fvd=mean_only or protocol.fvd=consistent4d"
            )
        name = FVD_NAMES[axis].format("set")
        found[name] = set_distance(a, b)
        if len(a) < FEW_CLIPS:
            notes.append(f"{name}: {len(a)} clips a side; compare it only with sets of as many clips")
    return found

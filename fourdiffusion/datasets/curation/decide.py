"""Keep or drop each clip, with reasons, from its scores. Pure functions."""

from __future__ import annotations

import fnmatch
from typing import Any

from fourdiffusion.datasets.curation.hashing import originals
from fourdiffusion.datasets.curation.settings import CurateConfig, Thresholds
from fourdiffusion.datasets.curation.test_sets import ids_in, test_sets_of

Line = dict[str, Any]  # of score_log.py


def reasons_of_scores(line: Line, limits: Thresholds) -> list[str]:
    """Return the reasons to drop a clip for its scores; [] to keep it."""
    if "error" in line:
        return ["unreadable"]
    found = []
    if line["num_frames"] < limits.min_frames:
        found.append("short")
    if line["opacity"] > limits.max_opacity:
        found.append("no_background")
    still = line["pixel_motion"] < limits.min_pixel_motion or line["silhouette_motion"] < limits.min_silhouette_motion
    if still:
        found.append("static")
    if line["turning"] > limits.max_turning:
        found.append("turning")
    elif not still and line["articulation"] < limits.min_articulation_share * line["pixel_motion"]:
        found.append("rigid")
    if line["outside"] > limits.max_outside:
        found.append("out_of_frame")
    if line["size"] < limits.min_size:
        found.append("small")
    if line["flicker"] > limits.max_flicker:
        found.append("flicker")
    if line["texture"] < limits.min_texture:
        found.append("plain")
    return found


def decide(lines: list[Line], config: CurateConfig, decisions: dict[str, str], listed: set[str] | None) -> list[Line]:
    """Return the rows of the manifest: each line with `keep`, `reasons`, `decision`, `duplicate_of` and `test_sets`.

    A manual decision ("keep" or "drop" by uid) overrides the scores; the reasons are still recorded. ``listed`` are the
    ids that a list allows, None without a list. No decision keeps an object of a test set: only ``allow_test_sets``
    does that.
    """
    rows = []
    for line in lines:
        found = reasons_of_scores(line, config.thresholds)
        texts = (line["uid"], line.get("source", ""))
        sets = test_sets_of(*texts)
        if any(name not in config.allow_test_sets for name in sets):
            found.insert(0, "test_set")
        if listed is not None and not listed.intersection([line["uid"], *ids_in(*texts)]):
            found.append("not_listed")
        license_name = line.get("license", "").lower()
        if config.licenses and not any(fnmatch.fnmatch(license_name, p.lower()) for p in config.licenses):
            found.append("license")
        rows.append(line | {"reasons": found, "test_sets": sets, "decision": decisions.get(line["uid"], "")})
    _mark_duplicates(rows, config.thresholds)
    for row in rows:
        row["keep"] = is_kept(row)
    return rows


def is_kept(row: Line) -> bool:
    """Return whether a row of the manifest is kept, by its reasons and the manual decision."""
    if "test_set" in row["reasons"] or "unreadable" in row["reasons"]:
        return False
    return row["decision"] == "keep" or (not row["reasons"] and row["decision"] != "drop")


def _mark_duplicates(rows: list[Line], limits: Thresholds) -> None:
    """Add `duplicate` to the reasons of clips that repeat another kept clip.

    A manually kept clip stays, else the one with the most motion.
    """
    candidates = [row for row in rows if is_kept(row)]
    candidates.sort(key=lambda row: (row["decision"] != "keep", -row["articulation"], row["uid"]))
    looks, motions = [row["look"] for row in candidates], [row["motion"] for row in candidates]
    repeated = originals(looks, motions, limits.duplicate_look, limits.duplicate_motion)
    for row in rows:
        row["duplicate_of"] = ""
    for row, original in zip(candidates, repeated, strict=True):
        if original is not None:
            row["duplicate_of"] = candidates[original]["uid"]
            row["reasons"].append("duplicate")

"""Which prediction belongs to which reference: by object, view and frame. What does not match is named."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.collection import Collection, Video
from fourdiffusion.evaluate.settings import ProtocolConfig


@dataclass
class Pair:
    """One view of one object on both sides."""

    object: str
    view: str
    prediction: Video
    reference: Video


@dataclass
class Pairing:
    """What is compared, and one line for everything that is not, or not as it stands."""

    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)


def pair_videos(prediction: Collection, reference: Collection, protocol: ProtocolConfig) -> Pairing:
    """Return the pairs in the order of the reference's objects and the protocol's views.

    UserError names objects and views that one side lacks, unless the protocol compares what both have.
    """
    notes: list[str] = []
    sides = (str(prediction.folder), str(reference.folder))
    if prediction.single and reference.single:
        name = next(iter(reference.objects))
        predicted, expected = {name: next(iter(prediction.objects.values()))}, reference.objects
    else:
        predicted, expected = prediction.objects, reference.objects
    objects = match_names(list(predicted), list(expected), sides, "object", protocol.object_mismatch, notes)
    pairs = []
    for name in objects:
        where = (f"{sides[0]}, {name}", f"{sides[1]}, {name}")
        a, b = predicted[name], expected[name]
        if protocol.views:
            for side, there in zip(where, (a, b), strict=True):
                lacking = [view for view in protocol.views if view not in there]
                if lacking and protocol.view_mismatch == "error":
                    raise UserError(
                        f"{side}: {protocol.name} compares views {', '.join(protocol.views)}, "
                        f"{', '.join(lacking)} missing; it has {', '.join(there)}"
                    )
            unused = [view for view in b if view not in protocol.views]
            if unused:
                notes.append(f"{where[1]}: views {', '.join(unused)} are no part of {protocol.name}: left out")
            a = {view: a[view] for view in protocol.views if view in a}
            b = {view: b[view] for view in protocol.views if view in b}
        views = match_names(list(a), list(b), where, "view", protocol.view_mismatch, notes)
        pairs += [Pair(name, view, a[view], b[view]) for view in views]
    return Pairing(pairs, notes)


def match_names(
    predicted: list[str], expected: list[str], sides: tuple[str, str], kind: str, rule: str, notes: list[str]
) -> list[str]:
    """Return the names on both sides in the reference's order, and note what is on one side only.

    UserError names it where ``rule`` is "error", or nothing is on both.
    """
    extra = [name for name in predicted if name not in expected]
    lacking = [name for name in expected if name not in predicted]
    problems = [f"{sides[0]} lacks {kind} {', '.join(lacking)}"] if lacking else []
    problems += [f"{sides[1]} lacks {kind} {', '.join(extra)}"] if extra else []
    both = [name for name in expected if name in predicted]
    if problems and (rule == "error" or not both):
        remedy = f"rename or add them, or compare what both have: protocol.{kind}_mismatch=shared"
        raise UserError(f"{'; '.join(problems)}: {remedy}")
    notes += [f"{problem}: left out" for problem in problems]
    return both


def choose_frames(
    pair: Pair, counts: tuple[int, int], protocol: ProtocolConfig
) -> tuple[list[int], list[int], list[str]]:
    """Return which frames of the prediction stand against which of the reference, and what to note about it.

    Args:
        counts: how many frames each side has.

    Returns:
        Two equally long lists of positions; both empty where the protocol drops the video.
    """
    where = f"{pair.object}, view {pair.view}"
    numbers = [
        list(video.frames) if video.frames is not None else list(range(count))
        for video, count in zip((pair.prediction, pair.reference), counts, strict=True)
    ]
    if protocol.frame_choice == "number" and protocol.clip_tail == "keep":
        return _by_number(pair, numbers[0], numbers[1], protocol)
    arranged, notes = [], []
    for side, video, own in zip(("prediction", "reference"), (pair.prediction, pair.reference), numbers, strict=True):
        positions = list(range(len(own)))[: protocol.frames]
        positions, note = _arrange(positions, video.path, protocol)
        arranged.append(positions)
        notes += [f"{where}, {side}: {note}"] if note else []
    a, b = arranged
    if not a or not b:
        return [], [], notes
    if len(a) != len(b):
        if protocol.frame_mismatch == "error":
            raise UserError(_count_message(pair, counts, protocol))
        shorter = min(len(a), len(b))
        notes.append(f"{where}: {len(a)} predicted frames against {len(b)}: the first {shorter} of each are compared")
        a, b = a[:shorter], b[:shorter]
    if protocol.frames is not None and len(a) < protocol.frames and protocol.frame_mismatch == "error":
        raise UserError(f"{pair.prediction.path}: {len(a)} frames, {protocol.name} compares {protocol.frames}")
    if [numbers[0][i] for i in a] != [numbers[1][i] for i in b] and len(set(a)) == len(a):
        notes.append(f"{where}: frames are paired by order, their numbers differ ({numbers[0][:2]}, {numbers[1][:2]})")
    return a, b, notes


def _by_number(
    pair: Pair, predicted: list[int], expected: list[int], protocol: ProtocolConfig
) -> tuple[list[int], list[int], list[str]]:
    predicted, expected = predicted[: protocol.frames], expected[: protocol.frames]
    both = [number for number in expected if number in set(predicted)]
    notes = []
    if predicted != expected:
        if protocol.frame_mismatch == "error" or not both:
            raise UserError(_count_message(pair, (len(predicted), len(expected)), protocol, predicted, expected))
        notes.append(
            f"{pair.object}, view {pair.view}: {len(predicted)} predicted frames against {len(expected)}: "
            f"the {len(both)} of equal numbers are compared"
        )
    if protocol.frames is not None and len(both) < protocol.frames and protocol.frame_mismatch == "error":
        raise UserError(f"{pair.reference.path}: {len(both)} frames, {protocol.name} compares {protocol.frames}")
    return [predicted.index(number) for number in both], [expected.index(number) for number in both], notes


def _arrange(positions: list[int], path: Path, protocol: ProtocolConfig) -> tuple[list[int], str]:
    """Pad, drop or cut a video's frames to whole clips, and say so."""
    length, count = protocol.clip_length, len(positions)
    if length is None or protocol.clip_tail == "keep" or count % length == 0:
        return positions, ""
    if count > length:
        kept = count // length * length
        return positions[:kept], f"{count} frames are no multiple of {length}: the last {count - kept} are left out"
    if protocol.clip_tail == "drop":
        return [], f"{count} frames are fewer than {length}: the video is left out"
    lacking = length - count
    if lacking > count:
        raise UserError(f"{path}: {count} frames cannot be padded to {length} by their reversed tail: give more frames")
    return positions + positions[::-1][:lacking], f"{count} frames are padded to {length} by their reversed tail"


def _count_message(
    pair: Pair,
    counts: tuple[int, int],
    protocol: ProtocolConfig,
    predicted: Sequence[int] = (),
    expected: Sequence[int] = (),
) -> str:
    reason = f"{counts[0]} frames against {counts[1]}"
    lacking = sorted(set(expected) - set(predicted)) or sorted(set(predicted) - set(expected))
    if lacking:
        reason += f", number {', '.join(map(str, lacking[:5]))}{', ...' if len(lacking) > 5 else ''} only on one side"
    return (
        f"{pair.object}, view {pair.view}: {reason}: give both the same frames, or name the rule: "
        "protocol.frame_mismatch=first, protocol.frame_choice=index"
    )


# ---- what looks exchanged -------------------------------------------------------------------------------------------

MARGIN_DB = 3.0  # how much better another reading of the prediction must fit before it is called a mistake


def check_views(object_name: str, predicted: dict[str, np.ndarray], true: dict[str, np.ndarray]) -> None:
    """UserError where a prediction fits the reference much better with its views or its color channels exchanged.

    Args:
        predicted, true: one small picture a view, float [h, w, 3] in [0, 1], on one background.
    """
    names = list(true)
    a, b = np.stack([predicted[name] for name in names]), np.stack([true[name] for name in names])
    straight = _psnr(a, b)
    swapped = _psnr(a[..., ::-1], b)
    if swapped > straight + MARGIN_DB:
        raise UserError(
            f"{object_name}: red and blue look exchanged ({straight:.1f} dB as it is, {swapped:.1f} dB exchanged): "
            "write RGB, or say protocol.check_pairing=false"
        )
    if len(names) < 2:
        return
    from scipy.optimize import linear_sum_assignment

    error = ((a[:, None] - b[None]) ** 2).mean(axis=(2, 3, 4))
    rows, columns = linear_sum_assignment(error)
    best = -10 * np.log10(max(float(error[rows, columns].mean()), 1e-10))
    if best > straight + MARGIN_DB:
        order = ", ".join(f"{names[row]} is {names[column]}" for row, column in zip(rows, columns, strict=True))
        raise UserError(
            f"{object_name}: views look exchanged ({straight:.1f} dB as they are named, {best:.1f} dB if {order}): "
            "rename them, or say protocol.check_pairing=false"
        )


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(max(float(((a - b) ** 2).mean()), 1e-10)))

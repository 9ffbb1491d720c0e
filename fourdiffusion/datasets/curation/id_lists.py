"""Lists of object ids: text, JSON and .npy files, joined by the number of lists that contain an id."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from fourdiffusion.datasets.curation.test_sets import shipped_ids
from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError

SHIPPED = ("paper926",)


def read_ids(source: str) -> list[str]:
    """Return the unique ids of a list, in its order.

    ``source`` is the name of a shipped list (paper926) or a file: text with one id a line (# begins a comment), JSON
    with a list of ids or an object whose keys are ids, or .npy with an array of text.

    Raises:
        UserError: the file is missing or not such a list. A .npy file with Python objects is never unpickled.
    """
    if source in SHIPPED:
        return list(shipped_ids(source))
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"lists={source}: no such file; give .txt, .json or .npy, or {', '.join(SHIPPED)}")
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            found = [str(item) for item in array.flatten().tolist()] if array.dtype.kind in "US" else None
            if array.dtype.kind == "S":
                found = [item.decode("ascii") for item in array.flatten().tolist()]
        elif path.suffix == ".json":
            content = read_json(path, "write it again")
            found = list(content) if isinstance(content, list | dict) else None
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            found = [line.split("#")[0].strip() for line in lines]
    except (ValueError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "save it with np.save(path, np.array(ids, dtype=str))" if path.suffix == ".npy" else "write it again"
        raise UserError(f"{path}: cannot be read as a list of ids ({reason}); {remedy}") from error
    if found is None or not all(isinstance(item, str) for item in found):
        raise UserError(f"{path}: is not a list of ids; give text, one id per line, a JSON list, or .npy of text")
    ids = [item.removesuffix(".glb") for item in found if item]
    if not ids:
        raise UserError(f"{path}: the list is empty; give one id a line")
    return list(dict.fromkeys(ids))


def join_lists(sources: list[str], at_least: int = 1) -> list[str]:
    """Return the ids that are in at least ``at_least`` of the lists, in the order of the lists."""
    if not 1 <= at_least <= len(sources):
        raise UserError(f"at_least={at_least} of {len(sources)} lists: give 1 to the number of lists")
    counts = Counter(uid for source in sources for uid in read_ids(source))
    return [uid for uid, count in counts.items() if count >= at_least]

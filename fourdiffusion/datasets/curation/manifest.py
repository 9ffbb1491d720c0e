"""`manifest.parquet`: one row per clip with its scores, reasons and decision; and `keep.txt`, the names of the kept
clips for `data pack ids=`.

The only module that imports pyarrow. `decisions.json` {uid: "keep" | "drop"} holds the manual decisions: every run
rewrites the manifest from it.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from fourdiffusion.datasets.curation.scores import Scores
from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic

MANIFEST, KEEP, DECISIONS = "manifest.parquet", "keep.txt", "decisions.json"
TEXTS = ("caption", "license", "author", "source", "duplicate_of", "look", "motion", "error")


def require_pyarrow() -> None:
    """Raise UserError if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("the manifest needs pyarrow: pip install 'fourdiffusion[data]'")


def write_manifest(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write manifest.parquet and keep.txt, each atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: list[tuple[str, Any]] = [
        ("uid", pa.string()), ("folder", pa.string()), ("keep", pa.bool_()), ("decision", pa.string()),
        ("reasons", pa.list_(pa.string())), ("test_sets", pa.list_(pa.string())),
    ]  # fmt: skip
    columns += [(f.name, pa.int64() if f.name == "num_frames" else pa.float64()) for f in fields(Scores)]
    columns += [(name, pa.string()) for name in TEXTS]
    table = pa.Table.from_pylist([{name: row.get(name) for name, _ in columns} for row in rows], pa.schema(columns))
    write_atomic(output / MANIFEST, lambda partial: pq.write_table(table, partial))
    text = "".join(f"{row['uid']}\n" for row in rows if row["keep"])
    write_atomic(output / KEEP, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a manifest.parquet; UserError if it is not one."""
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a manifest ({error}); run `data curate` again") from error


def read_decisions(output: Path) -> dict[str, str]:
    """Return the manual decisions, "keep" or "drop" by uid; {} if there are none."""
    path = output / DECISIONS
    if not path.exists():
        return {}
    found = read_json(path, "correct it, it holds manual decisions")
    if not isinstance(found, dict) or any(value not in ("keep", "drop") for value in found.values()):
        raise UserError(f'{path}: give an object of uid: "keep" or "drop"')
    return found


def write_decisions(output: Path, decisions: dict[str, str]) -> None:
    """Write decisions.json atomically."""
    text = json.dumps(dict(sorted(decisions.items())), indent=1) + "\n"
    write_atomic(output / DECISIONS, lambda partial: partial.write_text(text, encoding="utf-8"))

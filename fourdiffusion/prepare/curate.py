"""Verb `data curate`: scores, reasons, the manifest, and the review page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from fourdiffusion.datasets.clips import list_clips
from fourdiffusion.datasets.curation.captions import add_captions, read_caption_table
from fourdiffusion.datasets.curation.decide import decide
from fourdiffusion.datasets.curation.id_lists import join_lists
from fourdiffusion.datasets.curation.manifest import (
    DECISIONS,
    KEEP,
    MANIFEST,
    read_decisions,
    require_pyarrow,
    write_decisions,
    write_manifest,
)
from fourdiffusion.datasets.curation.page import serve
from fourdiffusion.datasets.curation.score_log import LOG, THUMBNAILS, score_all
from fourdiffusion.datasets.curation.settings import CurateConfig, check_test_sets
from fourdiffusion.datasets.curation.test_sets import contamination, ids_in
from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import refuse_foreign_files
from fourdiffusion.runs import lock_folder, terminable


def curate(config: CurateConfig) -> None:
    """Score new clips, write manifest and keep.txt, and serve the review page if requested."""
    for name in ("clips", "output"):
        if getattr(config, name) in ("", "???"):
            raise UserError(f"{name} is not set; give it, for example {name}=data/{name}")
    check_test_sets(config.allow_test_sets)
    require_pyarrow()
    output = Path(config.output)
    table = read_caption_table(Path(config.captions)) if config.captions else {}
    if config.captioner and not Path(config.captioner).is_dir():
        raise UserError(f"captioner={config.captioner}: no such folder; give that of a BLIP captioning model")
    listed = set(join_lists(config.lists, config.at_least)) if config.lists else None
    folders = list_clips(Path(config.clips))
    with terminable(), lock_folder(output, keep=LOG):
        _curate(config, output, folders, listed, table)


def _curate(
    config: CurateConfig, output: Path, folders: list[Path], listed: set[str] | None, captions: dict[str, str]
) -> None:
    """Score, decide and serve, in a locked output folder."""
    refuse_foreign_files(output, LOG, (THUMBNAILS, DECISIONS))
    (output / THUMBNAILS).mkdir(exist_ok=True)
    decisions = read_decisions(output)
    lines = add_captions(score_all(folders, output, config), captions, config.captioner)
    rows = decide(lines, config, decisions, listed)
    write_manifest(output, rows)
    report(rows, output)
    if config.page:

        def change(uid: str, decision: str) -> list[dict[str, Any]]:
            if decision:
                decisions[uid] = decision
            else:
                decisions.pop(uid, None)
            write_decisions(output, decisions)
            changed = decide(lines, config, decisions, listed)
            write_manifest(output, changed)
            return changed

        serve(rows, change, output / THUMBNAILS, config.port)


def report(rows: list[dict[str, Any]], output: Path) -> None:
    """Print how many clips are kept, the reasons for the others, and the test-set objects found."""
    kept = sum(row["keep"] for row in rows)
    print(f"{len(rows)} clips, {kept} kept: {output / MANIFEST}, {output / KEEP}")
    for reason, count in Counter(reason for row in rows for reason in row["reasons"]).most_common():
        print(f"  {count:6d} {reason}")
    decided = Counter(row["decision"] for row in rows if row["decision"])
    if decided:
        print(f"  decided by hand: {decided['keep']} keep, {decided['drop']} drop")
    found = contamination(uid for row in rows for uid in ids_in(row["uid"], row.get("source", "")))
    print("  objects of test sets: " + ", ".join(f"{len(ids)} {name}" for name, ids in found.items()))

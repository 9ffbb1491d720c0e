"""Verb `data objaverse`: download animated objects by uid lists for `data render`, without test objects."""

from __future__ import annotations

from pathlib import Path

from fourdiffusion.datasets.curation.captions import read_caption_table
from fourdiffusion.datasets.curation.id_lists import join_lists
from fourdiffusion.datasets.curation.objaverse_assets import fetch_objects, write_assets
from fourdiffusion.datasets.curation.settings import ObjaverseConfig, check_test_sets
from fourdiffusion.datasets.curation.test_sets import contamination
from fourdiffusion.errors import UserError


def objaverse(config: ObjaverseConfig) -> None:
    """Download missing objects and write assets.txt and MANIFEST.tsv."""
    if config.output in ("", "???"):
        raise UserError("output is not set; give it, for example output=data/objaverse")
    if not config.lists:
        raise UserError("lists is empty; give files of uids, for example lists=[paper926]")
    check_test_sets(config.allow_test_sets)
    uids = join_lists(config.lists, config.at_least)
    captions = read_caption_table(Path(config.captions)) if config.captions else {}
    found = contamination(uids)
    left_out = {uid for name, ids in found.items() if name not in config.allow_test_sets for uid in ids}
    print(f"{len(uids)} uids; objects of test sets: " + ", ".join(f"{len(ids)} {name}" for name, ids in found.items()))
    wanted = [uid for uid in uids if uid not in left_out]
    if config.limit:
        wanted = wanted[: config.limit]
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={output} cannot be written ({error.strerror}); give another folder") from error
    files, notes = fetch_objects(wanted, config.num_workers)
    write_assets(output, files, notes, captions)
    print(
        f"{output / 'assets.txt'}: {len(files)} objects, {len(left_out)} test objects left out, "
        f"{len(wanted) - len(files)} unknown to Objaverse"
    )

"""Download Objaverse objects (Deitke et al. 2023) through its package, as assets for `data render`.

The package keeps `~/.objaverse/hf-objaverse-v1/`: `object-paths.json.gz`, `metadata/000-000.json.gz` and
`glbs/000-000/<uid>.glb`; existing files are not downloaded again.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic

COLUMNS = ("path", "name", "caption", "license", "author", "source")
LICENSES = {  # of Sketchfab's API, as SPDX writes them
    "by": "CC-BY-4.0", "by-sa": "CC-BY-SA-4.0", "by-nd": "CC-BY-ND-4.0", "by-nc": "CC-BY-NC-4.0",
    "by-nc-sa": "CC-BY-NC-SA-4.0", "by-nc-nd": "CC-BY-NC-ND-4.0", "cc0": "CC0-1.0",
}  # fmt: skip


def fetch_objects(uids: list[str], num_workers: int) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """Return {uid: file} and {uid: annotation} of the known objects; download missing files."""
    if importlib.util.find_spec("objaverse") is None:
        raise UserError("Objaverse needs its package: pip install 'fourdiffusion[objaverse]'")
    import objaverse

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown uids: they are counted by the caller
            files = objaverse.load_objects(uids, download_processes=num_workers)
            notes = objaverse.load_annotations(list(files)) if files else {}
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"Objaverse cannot be read or downloaded ({reason}); check the connection, run again"
        ) from error
    return {uid: Path(path) for uid, path in files.items()}, notes


def write_assets(
    output: Path, files: dict[str, Path], notes: dict[str, dict[str, Any]], captions: dict[str, str]
) -> None:
    """Write assets.txt, a link <uid>.glb to each object, and MANIFEST.tsv with captions, licenses and authors.

    Through the links clips are named <uid>-<animation>, which identifies test objects.
    """
    rows = []
    for uid, path in files.items():
        link = output / f"{uid}.glb"
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.abspath(path))
        note = notes.get(uid, {})
        license_name = str(note.get("license") or "not stated")
        rows.append(
            {
                "path": link.name,
                "name": _one_line(note.get("name")),
                "caption": captions.get(uid) or _one_line(note.get("name")),
                "license": LICENSES.get(license_name, license_name),
                "author": _one_line((note.get("user") or {}).get("username")) or "not stated",
                "source": str(note.get("viewerUrl") or note.get("uri") or f"objaverse:{uid}"),
            }
        )
    write_atomic(output / "MANIFEST.tsv", lambda partial: _write_table(partial, rows))
    text = "".join(f"{row['path']}\n" for row in rows)
    write_atomic(output / "assets.txt", lambda partial: partial.write_text(text, encoding="utf-8"))


def _write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _one_line(text: object) -> str:
    return " ".join(str(text or "").split())

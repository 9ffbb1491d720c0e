"""One contact sheet a kind of object, of curated clips: docs/curated_*.webp.

    python scripts/build/kind_sheets.py CLIPS CURATED/keep.txt ASSETS/MANIFEST.tsv docs

A row shows one clip from four sides, the front first, at the first frame and at the one that differs most from it.
"""

import argparse
import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.datasets.clips import open_clip
from fourdiffusion.datasets.curation.scores import choose_views, pair_differences, signed_pictures
from fourdiffusion.media.write import contact_sheet

SHEETS = {
    "animals": ("quadruped", "amphibian", "reptile", "dinosaur", "insect", "invertebrate"),
    "fish": ("fish", "sea mammal"),
    "birds": ("bird", "bat"),
    "people": ("biped",),
    "monsters": ("monster",),
    "machines": ("machine", "prop"),
}
SIDES = (0.0, 90.0, 180.0, 270.0)  # degrees


def kinds_of_objects(manifest: Path) -> dict[str, str]:
    """Return {object as `data render` names it: kind} of a MANIFEST.tsv."""
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {re.sub(r"[^A-Za-z0-9_.-]+", "-", row["path"].rpartition(".")[0]): row["kind"] for row in rows}


def row_of(folder: Path) -> Tensor:
    """Return the pictures [8, 3, H, W] of one clip on light gray: four sides at two times."""
    clip = open_clip(folder)
    level = choose_views(clip.c2w, 360)
    azimuths = cameras.azimuth_deg(clip.c2w[level])
    views = [level[int(((azimuths - side + 180) % 360 - 180).abs().argmin())] for side in SIDES]
    rgba = clip.pictures[views, :]
    later = int(pair_differences(signed_pictures(rgba[:1])[0])[0].argmax())
    shown = torch.cat([rgba[:, 0], rgba[:, later]]).float() / 255
    return shown[:, :3] * shown[:, 3:] + 0.92 * (1 - shown[:, 3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("keep", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = kinds_of_objects(arguments.manifest)
    names: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # by kind and object
    for uid in arguments.keep.read_text(encoding="utf-8").split():
        owner = max((each for each in kinds if uid.startswith(f"{each}-")), key=len, default=None)
        if owner is not None:
            names[kinds[owner]][owner].append(uid)
    for sheet, members in SHEETS.items():
        generator = np.random.default_rng(arguments.seed)
        objects = [uids for kind in members for uids in names[kind].values()]
        chosen = [objects[k] for k in generator.permutation(len(objects))[: arguments.rows]]
        uids = [uids[int(generator.integers(len(uids)))] for uids in chosen]
        rows = torch.stack([row_of(arguments.clips / uid) for uid in uids])
        columns = [f"{side:.0f}\N{DEGREE SIGN}" for side in SIDES] * 2
        picture = contact_sheet(rows, [uid.split("-", 1)[1][-28:] for uid in uids], columns, gap=2, min_side=1)
        pixels = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        path = arguments.output / f"curated_{sheet}.webp"
        Image.fromarray(pixels).save(path, quality=70, method=6)
        print(f"{path}: {len(objects)} objects, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()

"""Settings of `data curate` and `data objaverse`. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from fourdiffusion.errors import UserError

TEST_SETS = ("consistent4d", "objaversedy", "motion80")


@dataclass
class Thresholds:
    """A clip outside one of these is dropped for the reason in brackets; scores: `datasets/curation/scores.py`."""

    min_frames: int = 8  # [short]
    max_opacity: float = 0.98  # share of covered pixels [no_background]
    min_pixel_motion: float = 0.1  # [static]
    min_silhouette_motion: float = 0.02  # [static]
    min_articulation_share: float = 0.25  # of the motion, beyond a similarity transform of each picture [rigid]
    max_turning: float = 0.6  # rotation of camera or object as a whole [turning]
    max_outside: float = 0.05  # share of pictures that cut the object off [out_of_frame]
    min_size: float = 0.2  # of the object, as a share of the picture's side [small]
    max_flicker: float = 0.4  # [flicker]
    min_texture: float = 0.1  # bits [plain]
    duplicate_look: int = 8  # of 192 bits of the mean pictures; duplicates differ by at most this [duplicate]
    duplicate_motion: int = 4  # of 64 bits of the pictures' deviations, likewise


@dataclass
class CurateConfig:
    """Score clips, drop those unfit for training, and review them by hand on the page."""

    clips: str = "???"  # folder of clips
    output: str = "???"  # folder of manifest.parquet, keep.txt, scores, thumbnails and decisions
    page: bool = False  # then serve the review page with a keep/drop switch for every clip
    port: int = 8100  # of the page, on 127.0.0.1; 0: any free one
    max_views: int = 8  # read and scored of a clip, evenly spaced
    max_frames: int = 32  # likewise
    num_workers: int = 1  # scoring processes
    lists: list[str] = field(default_factory=list)  # keep ids of these only: .txt, .json or .npy files, or paper926
    at_least: int = 1  # number of lists that must contain an id
    licenses: list[str] = field(default_factory=list)  # patterns such as CC0* or CC-BY-4*; empty: any, unknown ones too
    allow_test_sets: list[str] = field(default_factory=list)  # do not drop consistent4d | objaversedy | motion80
    captions: str = ""  # table of captions by uid (.csv as Cap3D's); a clip's own caption where it has none
    captioner: str = ""  # folder of a transformers BLIP captioning model, for clips without a caption
    thresholds: Thresholds = field(default_factory=Thresholds)


@dataclass
class ObjaverseConfig:
    """Fetch animated objects of Objaverse by uid lists, with captions, authors and licenses for `data render`."""

    lists: list[str] = field(default_factory=list)  # .txt, .json or .npy files of uids, or paper926
    output: str = "???"  # folder of assets.txt and MANIFEST.tsv; the objects stay in the package's cache
    at_least: int = 1  # number of lists that must contain a uid
    captions: str = ""  # table of captions by uid (.csv as Cap3D's); the object's name where it has none
    allow_test_sets: list[str] = field(default_factory=list)  # do not leave out consistent4d | objaversedy | motion80
    num_workers: int = 1  # parallel downloads
    limit: int = 0  # only the first N; 0: all


def check_test_sets(names: list[str]) -> None:
    """Raise UserError for an unknown name in ``allow_test_sets``."""
    for name in names:
        if name not in TEST_SETS:
            raise UserError(f"allow_test_sets={name} is unknown; choose among {', '.join(TEST_SETS)}")

"""Settings of the data preparation verbs. This module imports no torch."""

from dataclasses import dataclass

SPLITS = ("train", "test")
RIGS = ("two_orthogonal", "orbit")
PLANS = ("seen", "unseen")
FAULTS = ("static", "turning", "leaving", "broken")


@dataclass
class SynthConfig:
    """Clips number first_seed .. first_seed + num_clips - 1 of a split, then the faulty ones; splits share no seed."""

    output: str  # folder of the clips; made if it is not there
    num_clips: int = 100
    split: str = "train"  # train | test
    first_seed: int = 0  # counted inside the split
    num_views: int = 8
    num_frames: int = 8
    size: int = 64  # pixels, square
    rig: str = "two_orthogonal"  # two_orthogonal: sets of four, each turned at random | orbit: evenly from azimuth 0
    elevation_deg: float = 0.0
    plans: str = "seen"  # seen: the body plans of training | unseen: others, with split=test
    num_faulty: int = 0  # so many clips more, each with a fault that curation would find
    depth: bool = False  # also write 16-bit depth
    num_workers: int = 1  # processes; the files are the same for any number

"""Settings of the data preparation verbs. This module imports no torch."""

from dataclasses import dataclass, field

from fourdiffusion.diffusion.settings import ModelConfig

SPLITS = ("train", "test")
RIGS = ("two_orthogonal", "orbit")
PLANS = ("seen", "unseen")
FRAMES = ("png", "webp", "mp4")
FAULTS = ("static", "turning", "leaving", "broken")


@dataclass
class SynthConfig:
    """Clips number first_seed .. first_seed + num_clips - 1 of a split, then the faulty ones; splits share no seed."""

    output: str  # folder of the clips; created if missing
    num_clips: int = 100
    split: str = "train"  # train | test
    first_seed: int = 0  # index within the split
    num_views: int = 8
    num_frames: int = 8
    size: int = 64  # pixels, square
    rig: str = "two_orthogonal"  # two_orthogonal: sets of four, each rotated at random | orbit: evenly from azimuth 0
    elevation_deg: float = 0.0
    plans: str = "seen"  # seen: the body plans of training | unseen: others, with split=test
    num_faulty: int = 0  # additional clips, each with a fault that curation detects
    depth: bool = False  # also write 16-bit depth
    num_workers: int = 1  # processes; the files do not depend on it


@dataclass
class PackConfig:
    """Clips packed into WebDataset shards, optionally with cached latents and embeddings."""

    clips: str  # folder of clips in any supported layout (docs/data.md)
    output: str  # folder of the shards; a second run resumes
    ids: str | None = None  # text file with one clip folder name per line: pack only these
    manifest: str | None = None  # manifest.parquet of `data curate`: its kept clips with its captions, in place of ids
    frames: str = "png"  # png: lossless | webp: lossless unless quality is given | mp4: H.264 on white, no alpha
    quality: int | None = None  # of frames=webp; null: lossless
    clips_per_shard: int = 100  # clips in one tar
    num_readers: int = 1  # processes x workers that read the tars in sequence: at least as many shards are written
    latents: bool = False  # also store VAE latents, image tokens and text states of model.path
    latents_dtype: str = "float16"  # float16 | float32
    encode_batch: int = 8  # batch size of the encoders in pictures
    device: str = "auto"  # of the encoders: auto | cpu | cuda
    model: ModelConfig = field(default_factory=ModelConfig)

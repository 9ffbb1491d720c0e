"""Settings of the training data. This module imports no torch."""

from dataclasses import dataclass, field


@dataclass
class DataConfig:
    """Which clips, and how samples are taken from them."""

    path: str = "???"  # folder of clips, or folder or address (s3://, https://) of shards that `data pack` wrote
    num_views: int = 4
    num_frames: int = 8
    frame_stride: int = 1  # between the frames of a sample (the paper: 4)
    augment: bool = False  # mirror half of the samples, shuffle the color channels of half
    cache_mib: int = 4096  # decoded pictures kept in memory by each data loading process
    latents: bool = False  # read the shards' cached latents and embeddings in place of pictures
    # test sets whose objects may be trained on: consistent4d | objaversedy | motion80
    allow_test_sets: list[str] = field(default_factory=list)

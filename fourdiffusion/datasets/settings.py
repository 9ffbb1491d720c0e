"""Settings of the training data. This module imports no torch."""

from dataclasses import dataclass


@dataclass
class DataConfig:
    """Which clips, and how samples are cut out of them."""

    path: str = "???"  # folder of clips, or folder or address (s3://, https://) of shards that `data pack` wrote
    latents: bool = False  # read the shards' cached latents and embeddings in place of pictures
    num_views: int = 4
    num_frames: int = 8
    frame_stride: int = 1  # between the frames of a sample (the paper: 4)
    augment: bool = False  # mirror half of the samples, shuffle the color channels of half
    cache_mib: int = 4096  # decoded pictures kept in memory by each data loading process

"""Perceptual hashes of clips, and which clips are near-duplicates of each other.

A clip's *look* is its mean picture over frames and views around the object, independent of the pose and of the first
camera's azimuth; its *motion* is the standard deviation over the frames. Both are hashed as in pHash: the lowest
frequencies of a discrete cosine transform, compared with their median.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import dctn
from torch import Tensor

SIDE = 8  # frequencies along each side: 64 bits per picture
MARGIN = 0.02  # above the median, relative to the largest frequency


def look_and_motion(signed: Tensor) -> tuple[str, str]:
    """Return the two hashes of signed pictures [V, F, 4, h, w] (scores.py) as hexadecimal text, 192 and 64 bits."""
    mean = signed.mean(dim=(0, 1)).numpy()  # [4, h, w]
    light, chroma = mean[:3].mean(axis=0), mean[0] - mean[2]
    spread = signed.std(dim=1).mean(dim=(0, 1)).numpy() if signed.shape[1] > 1 else np.zeros(mean.shape[1:])
    look = "".join(_bits(picture) for picture in (mean[3], light, chroma))
    return look, _bits(spread)


def _bits(picture: np.ndarray) -> str:
    """Return 64 bits of a picture [h, w] as hexadecimal text."""
    low = dctn(picture, norm="ortho")[:SIDE, :SIDE].flatten()
    floor = MARGIN * np.abs(low[1:]).max()  # frequencies that are zero by symmetry must not depend on noise
    return np.packbits(low > np.median(low[1:]) + floor).tobytes().hex()


def originals(looks: list[str], motions: list[str], max_look: int, max_motion: int) -> list[int | None]:
    """Return for each clip the earlier clip that it nearly repeats, or None.

    Two clips repeat each other if both hashes differ by at most the given bits. Only clips that are not duplicates
    themselves are returned: a clip that repeats only a duplicate is kept.
    """
    if not looks:
        return []
    both = _packed(looks), _packed(motions)
    found: list[int | None] = []
    for k in range(len(looks)):
        look, motion = (np.bitwise_count(bits[:k] ^ bits[k]).sum(axis=1, dtype=np.int32) for bits in both)
        near = np.flatnonzero((look <= max_look) & (motion <= max_motion))
        found.append(next((int(i) for i in near if found[i] is None), None))
    return found


def _packed(hashes: list[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), -1)

"""Alpha compositing."""

from torch import Tensor


def composite(rgba: Tensor, background: Tensor | float = 1.0) -> Tensor:
    """Composite straight RGBA [..., 4, H, W] over a background (a gray, or a tensor broadcast to [..., 3, H, W])."""
    if rgba.shape[-3] != 4:
        raise ValueError(f"composite needs 4 channels [..., 4, H, W], got {list(rgba.shape)}")
    alpha = rgba[..., 3:, :, :]
    return rgba[..., :3, :, :] * alpha + background * (1 - alpha)

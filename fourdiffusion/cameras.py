"""Cameras, rays, and the camera vectors that condition the UNet.

The conventions of the whole project:

* World: z is up; azimuth increases from +x towards +y, elevation towards +z. Public functions take degrees.
* Camera (OpenGL): x right, y up, z back, so a camera looks along its own -z. ``c2w`` is the 4x4 camera-to-world matrix.
* The input video has azimuth 0; the four generated views have azimuth 0, 90, 180 and 270, in this order.
* The scene is in the cube [-1, 1]^3; the default camera is 1.1 from the origin and has a field of view of 45 degrees.
* Images are square unless stated; the field of view is the same in x and y; row 0 is the top; rays pass through pixel
  centers.
"""

import math

import torch
from torch import Tensor

FOVY_DEG = 45.0  # method.md section 2 (released configuration)
DISTANCE = 1.1


def orbit(
    azimuth_deg: Tensor | float, elevation_deg: Tensor | float = 0.0, distance: Tensor | float = DISTANCE
) -> Tensor:
    """Return cameras on a sphere that look at the origin.

    Args:
        azimuth_deg, elevation_deg: degrees, broadcast against each other to [...]. Elevation inside (-90, 90).
        distance: from the origin, in scene units, broadcast likewise.

    Returns:
        Camera-to-world matrices [..., 4, 4], float32.
    """
    values = (torch.as_tensor(value, dtype=torch.float32) for value in (azimuth_deg, elevation_deg, distance))
    azimuth, elevation, radius = torch.broadcast_tensors(*values)
    if bool((elevation.abs() >= 90).any()):
        raise ValueError(f"elevation must lie inside (-90, 90) degrees, got {elevation.tolist()}")
    azimuth, elevation = azimuth * (math.pi / 180), elevation * (math.pi / 180)
    sin_a, cos_a, sin_e, cos_e = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    zero = torch.zeros_like(sin_a)
    right = torch.stack([-sin_a, cos_a, zero], dim=-1)
    up = torch.stack([-sin_e * cos_a, -sin_e * sin_a, cos_e], dim=-1)
    back = torch.stack([cos_e * cos_a, cos_e * sin_a, sin_e], dim=-1)
    c2w = torch.eye(4).expand(*azimuth.shape, 4, 4).clone()
    c2w[..., :3, :] = torch.stack([right, up, back, radius[..., None] * back], dim=-1)
    return c2w


def orthogonal_azimuths(num_views: int, offset_deg: float = 0.0) -> Tensor:
    """Return the azimuths [V] of evenly spaced views, starting at ``offset_deg``, degrees; V = 4 is orthogonal."""
    return torch.arange(num_views) * (360.0 / num_views) + offset_deg


def rays(c2w: Tensor, fovy_deg: Tensor | float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return one ray through the center of each pixel.

    Args:
        c2w: [..., 4, 4].
        fovy_deg: vertical field of view in degrees, a number or [...].
        height, width: image size in pixels; pixels are square.

    Returns:
        origins [..., H, W, 3] and unit directions [..., H, W, 3], in world space.
    """
    fovy = torch.as_tensor(fovy_deg, dtype=c2w.dtype, device=c2w.device).expand(c2w.shape[:-2])
    half = (fovy * (math.pi / 360)).tan()[..., None, None]
    y = (1 - (torch.arange(height, device=c2w.device) + 0.5) * (2 / height))[:, None] * half
    x = ((torch.arange(width, device=c2w.device) + 0.5) * (2 / width) - 1) * (width / height) * half
    x, y = torch.broadcast_tensors(x, y)
    local = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
    directions = torch.einsum("...ij,...hwj->...hwi", c2w[..., :3, :3], local)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    origins = c2w[..., None, None, :3, 3].expand_as(directions)
    return origins, directions


def conditioning(c2w: Tensor) -> Tensor:
    """Return the camera vector of the UNet: the matrix flattened by rows, its translation scaled to length 1.

    [..., 4, 4] -> [..., 16]
    """
    unit = c2w.clone()
    unit[..., :3, 3] = c2w[..., :3, 3] / c2w[..., :3, 3].norm(dim=-1, keepdim=True)
    return unit.flatten(-2)


def azimuth_deg(c2w: Tensor) -> Tensor:
    """Return the azimuth of the camera's position in degrees, in [-180, 180]; [..., 4, 4] -> [...]."""
    return torch.atan2(c2w[..., 1, 3], c2w[..., 0, 3]) * (180 / math.pi)


def turn(c2w: Tensor, angle_deg: Tensor | float) -> Tensor:
    """Rotate cameras about the z axis: every azimuth increases by ``angle_deg``. [..., 4, 4] -> [..., 4, 4]."""
    angle = torch.as_tensor(angle_deg, dtype=c2w.dtype, device=c2w.device) * (math.pi / 180)
    rotation = torch.eye(4, dtype=c2w.dtype, device=c2w.device).repeat(*angle.shape, 1, 1)
    rotation[..., 0, 0] = rotation[..., 1, 1] = angle.cos()
    rotation[..., 1, 0], rotation[..., 0, 1] = angle.sin(), -angle.sin()
    return rotation @ c2w


def mirror(c2w: Tensor) -> Tensor:
    """Return the cameras of the left-right mirrored images, in a world mirrored in y. [..., 4, 4] -> [..., 4, 4]."""
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=c2w.dtype, device=c2w.device)
    flip = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=c2w.dtype, device=c2w.device)
    return signs[:, None] * c2w * flip


def find(c2w: Tensor, camera: Tensor) -> int | None:
    """Return the index of the camera among [N, 4, 4] that equals ``camera`` [4, 4] to 1e-2; None if there is none."""
    distances = (c2w - camera).abs().amax(dim=(1, 2))
    return int(distances.argmin()) if distances.min() <= 1e-2 else None

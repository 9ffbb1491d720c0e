"""Bake a scene's colors into a texture: the surface unwrapped by xatlas, each texel colored at its place in space.

A texture holds detail between the vertices. Letters: T the side of a texture in texels.
"""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from fourdiffusion.errors import UserError
from fourdiffusion.scene.export.surface import Mesh, surface_colors
from fourdiffusion.scene.scene import Scene


def require_xatlas() -> None:
    """Raise UserError where xatlas is not installed."""
    try:
        import xatlas  # noqa: F401
    except ImportError as error:
        raise UserError("texture_size= needs xatlas: pip install 'fourdiffusion[atlas]', or leave it out") from error


def textured(scene: Scene, meshes: list[Mesh], times: Tensor, size: int, label: str | None = None) -> list[Mesh]:
    """Return the meshes with texture coordinates and a texture [T, T, 3] each; vertices are split at seams.

    Args:
        times: [F] of the meshes.
        size: T.
        label: shows a progress bar of this name.
    """
    bar = tqdm(meshes, desc=label, disable=label is None, leave=False)
    return [_textured(scene, mesh, time, size) for mesh, time in zip(bar, times, strict=True)]


def _textured(scene: Scene, mesh: Mesh, time: Tensor, size: int) -> Mesh:
    import xatlas

    source, faces, uv = xatlas.parametrize(mesh.vertices, mesh.faces)
    unwrapped = replace(
        mesh, vertices=mesh.vertices[source], faces=faces, normals=mesh.normals[source], colors=mesh.colors[source]
    )
    row, column, corners, weights = texels(uv, faces, size)
    points = (unwrapped.vertices[corners] * weights[..., None]).sum(1)
    normals = (unwrapped.normals[corners] * weights[..., None]).sum(1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    colors = surface_colors(scene, torch.from_numpy(points), torch.from_numpy(normals), time)
    texture = np.zeros((size, size, 3), dtype=np.uint8)
    texture[row, column] = (colors * 255).round()
    empty = np.ones((size, size), dtype=bool)
    empty[row, column] = False
    # texels outside the charts take the nearest color: filtering across a seam must not darken it
    _, nearest = ndimage.distance_transform_edt(empty, return_indices=True)
    return replace(unwrapped, uv=uv.astype(np.float32), texture=texture[nearest[0], nearest[1]])


def texels(uv: np.ndarray, faces: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the texels that faces cover: rows [N], columns [N], their faces' corners [N, 3] and weights [N, 3].

    ``uv`` [V, 2] in [0, 1] has its origin in the texture's first row, as glTF's. A texel's point is where its center
    lies in its face; centers just outside a face's edge take the nearest point of it.
    """
    image = Image.new("I", (size, size), 0)
    draw = ImageDraw.Draw(image)
    pixels = uv * size - 0.5  # centers of texels at whole numbers
    for number, corners in enumerate(pixels[faces].reshape(-1, 6).tolist(), start=1):
        draw.polygon(corners, fill=number)
    covered = np.asarray(image)
    row, column = np.nonzero(covered)
    corners = faces[covered[row, column] - 1]
    a, b, c = (pixels[corners[:, i]] for i in range(3))
    point = np.stack([column, row], axis=1) - a
    ab, ac = b - a, c - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    area = np.where(np.abs(area) > 1e-12, area, 1e-12)
    of_b = (point[:, 0] * ac[:, 1] - point[:, 1] * ac[:, 0]) / area
    of_c = (ab[:, 0] * point[:, 1] - ab[:, 1] * point[:, 0]) / area
    weights = np.stack([1 - of_b - of_c, of_b, of_c], axis=1).clip(0, 1)
    return row, column, corners, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

"""Render rays for training, in memory that need not grow with their number.

Letters: R rays, F frames, V views, H W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.scene import losses
from fourdiffusion.scene.renderer import render
from fourdiffusion.scene.scene import Scene

BACKGROUND = torch.ones(3)  # white, as in the release


@dataclass(frozen=True)
class Rays:
    """Rays of any cameras and times."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3], unit
    times: Tensor  # [R] in [0, 1]
    jitter: Tensor  # [R] in [0, 1): shift of the ray's samples, in steps

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: Tensor | slice) -> "Rays":
        return Rays(self.origins[index], self.directions[index], self.times[index], self.jitter[index])


def view_rays(c2w: Tensor, times: Tensor, side: int, generator: torch.Generator) -> Rays:
    """Return jittered rays of square images, ordered F, V, H, W, on the CPU.

    Args:
        c2w: cameras [V, 4, 4].
        times: [F] in [0, 1].
        side: H and W.
        generator: of the jitter.
    """
    origins, directions = cameras.rays(c2w, cameras.FOVY_DEG, side, side)
    origins, directions = (x.expand(len(times), *x.shape).reshape(-1, 3) for x in (origins, directions))
    jitter = torch.rand(len(origins), generator=generator)
    return Rays(origins, directions, times.repeat_interleave(len(c2w) * side * side), jitter)


class RenderPass:
    """Rays rendered on white. Losses are computed from the tensors below, and their gradient is carried to the scene::

        p = RenderPass(scene, rays, chunk)
        loss = f(p.rgb, p.opacity)
        loss.backward()  # to p.rgb and p.opacity
        p.backward()  # from there to the scene's parameters

    Up to ``chunk`` rays keep their graph from the first call to the second. More rays are rendered without a graph
    first and again with one in ``backward``, chunk after chunk: memory does not grow with their number, the gradient
    is the same.

    Args:
        scene: whose parameters get the gradient.
        rays: on any device.
        chunk: largest number of rays with a graph; 0 is all of them.
        with_normals: also compute ``facing_away``; costs four more densities a sample.
    """

    rgb: Tensor  # [R, 3] in [0, 1], a leaf
    opacity: Tensor  # [R] in [0, 1], a leaf
    facing_away: Tensor | None  # [R], a leaf, see losses.facing_away; None without normals

    def __init__(self, scene: Scene, rays: Rays, chunk: int = 0, with_normals: bool = False):
        if chunk < 0 or not len(rays):
            raise ValueError(
                f"a render pass takes at least one ray and chunk >= 0, got {len(rays)} rays, chunk={chunk}"
            )
        self._scene, self._rays, self._with_normals = scene, rays, with_normals
        size = chunk or len(rays)
        self._parts = [slice(first, first + size) for first in range(0, len(rays), size)]
        whole = len(self._parts) == 1
        with torch.set_grad_enabled(whole):
            rendered = [self._render(part) for part in self._parts]
        self._graph = rendered[0] if whole else None
        columns = zip(*rendered, strict=True)
        self._leaves = [torch.cat([value.detach() for value in column]).requires_grad_() for column in columns]
        self.rgb, self.opacity = self._leaves[:2]
        self.facing_away = self._leaves[2] if with_normals else None

    def backward(self) -> None:
        """Add the gradient that lies at ``rgb``, ``opacity`` and ``facing_away`` to that of the scene's parameters."""
        for part in self._parts:
            rendered = self._graph or self._render(part)
            pairs = [
                (value, leaf.grad[part])
                for value, leaf in zip(rendered, self._leaves, strict=True)
                if leaf.grad is not None and value.requires_grad
            ]
            if pairs:
                values, gradients = zip(*pairs, strict=True)
                torch.autograd.backward(values, gradients)
        self._graph = None

    def _render(self, part: slice) -> list[Tensor]:
        scene, device = self._scene, self._scene.occupancy.density.device
        rays = self._rays[part]
        directions = rays.directions.to(device)
        out = render(
            scene.field, scene.occupancy, rays.origins.to(device), directions, rays.times.to(device),
            BACKGROUND.to(device), scene.renderer, rays.jitter.to(device), scene.field.density, self._with_normals,
        )  # fmt: skip
        if out.normals is None:
            return [out.rgb, out.opacity]
        away = losses.facing_away(out.weights, out.normals, directions, out.ray_index, len(rays))
        return [out.rgb, out.opacity, away]

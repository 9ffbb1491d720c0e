"""Render rays for training, in chunks if memory must not grow with their number.

Letters: R rays, F frames, V views, H W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.scene import losses
from fourdiffusion.scene.rays import random_rays
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


def view_rays(
    c2w: Tensor, times: Tensor, side: int, generator: torch.Generator, fovy_deg: Tensor | float = cameras.FOVY_DEG
) -> Rays:
    """Return jittered rays of square images, ordered F, V, H, W, on the CPU.

    Args:
        c2w: cameras [V, 4, 4].
        times: [F] in [0, 1].
        side: H and W.
        generator: of the jitter.
        fovy_deg: field of view in degrees, a number or [V].
    """
    origins, directions = cameras.rays(c2w, fovy_deg, side, side)
    origins, directions = (x.expand(len(times), *x.shape).reshape(-1, 3) for x in (origins, directions))
    jitter = torch.rand(len(origins), generator=generator)
    return Rays(origins, directions, times.repeat_interleave(len(c2w) * side * side), jitter)


def random_pixel_rays(
    c2w: Tensor, times: Tensor, side: int, num_rays: int, generator: torch.Generator, focus: Tensor | None = None,
    fovy_deg: Tensor | float = cameras.FOVY_DEG,
) -> tuple[Rays, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return jittered rays of random pixels of V views at F times, and the frame, view, row and column of each, [R].

    Only these rays are computed. The arguments are those of ``view_rays`` and ``random_rays``.
    """
    origins, directions, at, index = random_rays(c2w, fovy_deg, times, side, num_rays, generator, focus)
    rays = Rays(origins, directions, at, torch.rand(num_rays, generator=generator))
    place, column = index // side, index % side
    place, row = place // side, place % side
    return rays, place // len(c2w), place % len(c2w), row, column


class RenderPass:
    """Rays rendered on a background. Losses of the tensors below propagate their gradient to the scene::

        p = RenderPass(scene, rays, chunk)
        loss = f(p.rgb, p.opacity)
        loss.backward()  # to p.rgb and p.opacity
        p.backward()  # from there to the scene's parameters

    Up to ``chunk`` rays keep their graph until ``backward``. More rays are first rendered without a graph, and again
    with one in ``backward``, chunk by chunk: memory does not grow with their number, and the gradient is the same.

    Args:
        scene: its parameters get the gradient.
        rays: on any device.
        chunk: largest number of rays with a graph; 0 is all of them.
        with_normals: also compute ``facing_away``; by finite differences with four more densities per sample.
        with_distortion: also compute ``distortion``.
        background: [3] or [R, 3] in [0, 1]; None: white.
    """

    rgb: Tensor  # [R, 3] in [0, 1], a leaf
    opacity: Tensor  # [R] in [0, 1], a leaf
    facing_away: Tensor | None  # [R], a leaf, see losses.facing_away; None unless requested
    distortion: Tensor | None  # [R], a leaf, see losses.distortion; None unless requested

    def __init__(
        self, scene: Scene, rays: Rays, chunk: int = 0, with_normals: bool = False, with_distortion: bool = False,
        background: Tensor | None = None,
    ):  # fmt: skip
        if chunk < 0 or not len(rays):
            raise ValueError(
                f"a render pass takes at least one ray and chunk >= 0, got {len(rays)} rays, chunk={chunk}"
            )
        self._scene, self._rays = scene, rays
        self._with_normals, self._with_distortion = with_normals, with_distortion
        self._background = BACKGROUND if background is None else background
        size = chunk or len(rays)
        self._parts = [slice(first, first + size) for first in range(0, len(rays), size)]
        whole = len(self._parts) == 1
        with torch.set_grad_enabled(whole):
            rendered = [self._render(part) for part in self._parts]
        self._graph = rendered[0] if whole else None
        self._leaves = {
            name: torch.cat([values[name].detach() for values in rendered]).requires_grad_() for name in rendered[0]
        }
        self.rgb, self.opacity = self._leaves["rgb"], self._leaves["opacity"]
        self.facing_away, self.distortion = self._leaves.get("facing_away"), self._leaves.get("distortion")

    def backward(self) -> None:
        """Propagate the gradient of the leaves to the scene's parameters."""
        for part in self._parts:
            rendered = self._graph or self._render(part)
            pairs = [
                (rendered[name], leaf.grad[part])
                for name, leaf in self._leaves.items()
                if leaf.grad is not None and rendered[name].requires_grad
            ]
            if pairs:
                values, gradients = zip(*pairs, strict=True)
                torch.autograd.backward(values, gradients)
        self._graph = None

    def _render(self, part: slice) -> dict[str, Tensor]:
        scene, device = self._scene, self._scene.occupancy.density.device
        rays = self._rays[part]
        directions, background = rays.directions.to(device), self._background
        background = (background if background.ndim == 1 else background[part]).to(device)
        out = render(
            scene.field, scene.occupancy, rays.origins.to(device), directions, rays.times.to(device),
            background, scene.renderer, rays.jitter.to(device), scene.field.density, self._with_normals,
        )  # fmt: skip
        values = {"rgb": out.rgb, "opacity": out.opacity}
        if out.normals is not None:
            values["facing_away"] = losses.facing_away(out.weights, out.normals, directions, out.ray_index, len(rays))
        if self._with_distortion:
            values["distortion"] = losses.distortion(out.weights, out.distances, out.lengths, out.ray_index, len(rays))
        return values

"""Gradients of a scene from what is said about its pictures, in memory that need not grow with their number.

Letters: R rays, F frames, V views.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.scene import losses
from fourdiffusion.scene.renderer import RenderOutput, render
from fourdiffusion.scene.scene import Scene

BACKGROUND = torch.ones(3)  # white, as in the release

Rays = tuple[Tensor, Tensor, Tensor, Tensor]  # origins [R, 3], unit directions [R, 3], times [R], jitter [R] in steps
Teacher = Callable[[Tensor], tuple[Tensor, Tensor]]  # colours [R, 3] -> a loss and its gradient [R, 3]


def view_rays(c2w: Tensor, times: Tensor, side: int, generator: torch.Generator) -> Rays:
    """Jittered rays of square pictures from cameras [V, 4, 4] at times [F], in the order F, V, H, W; on the CPU."""
    origins, directions = cameras.rays(c2w, cameras.FOVY_DEG, side, side)
    origins, directions = (x.expand(len(times), *x.shape).reshape(-1, 3) for x in (origins, directions))
    return (
        origins,
        directions,
        times.repeat_interleave(len(c2w) * side * side),
        torch.rand(len(origins), generator=generator),
    )


def render_rays(scene: Scene, rays: Rays, with_normals: bool = False) -> RenderOutput:
    """The rays on the background, with gradient."""
    device = scene.occupancy.density.device
    origins, directions, times, jitter = (x.to(device) for x in rays)
    return render(
        scene.field, scene.occupancy, origins, directions, times, BACKGROUND.to(device), scene.renderer, jitter,
        scene.field.density, with_normals,
    )  # fmt: skip


def backward(terms: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
    """Back-propagates the weighted sum; returns the terms without their graphs."""
    torch.stack([weights[name] * value for name, value in terms.items()]).sum().backward()
    return {name: value.detach() for name, value in terms.items()}


def teach(scene: Scene, rays: Rays, weights: dict[str, float], chunk: int, teacher: Teacher) -> dict[str, Tensor]:
    """The teacher's loss, named "sds", and the regularisers on all rays, back-propagated with their weights.

    More than ``chunk`` rays (0: any number) are rendered without a graph first, then again with one, chunk after chunk:
    memory does not grow with their number, and the gradient is the same.
    """
    num_rays = len(rays[0])
    parts = [slice(first, first + (chunk or num_rays)) for first in range(0, num_rays, chunk or num_rays)]
    whole = len(parts) == 1
    with_normals = weights["orientation"] > 0

    def run(part: slice, normals: bool) -> RenderOutput:
        origins, directions, times, jitter = rays
        return render_rays(scene, (origins[part], directions[part], times[part], jitter[part]), normals)

    colours, hits, seen = [], 0, None
    for part in parts:
        with torch.set_grad_enabled(whole):
            seen = run(part, with_normals and whole)
        colours.append(seen.rgb.detach())
        hits += int((seen.opacity > 0).sum())
    value, gradient = teacher(torch.cat(colours))
    sums: dict[str, Tensor] = {}
    for part in parts:
        out = seen if whole and seen is not None else run(part, with_normals)
        share = len(out.rgb) / num_rays
        terms = {}
        if out.normals is not None:
            directions = rays[1][part].to(out.rgb.device)[out.ray_index]
            facing_away = losses.orientation(out.weights, out.normals, directions, out.opacity)
            terms["orientation"] = facing_away * max(int((out.opacity > 0).sum()), 1) / max(hits, 1)
        if weights["opacity"]:
            terms["opacity"] = losses.opacity_entropy(out.opacity) * share
        if weights["sparsity"]:
            terms["sparsity"] = losses.sparsity(out.opacity) * share
        surrogate = (out.rgb * gradient[part]).sum()  # its gradient is the teacher's
        backward({"sds": surrogate, **terms}, weights)
        for name, term in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(term)).detach() + term.detach()
    return {"sds": value, **sums}

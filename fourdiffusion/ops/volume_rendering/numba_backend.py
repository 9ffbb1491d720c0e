"""Marching on a CPU by a numba kernel: float32; weighting and summing are those of the torch backend."""

import torch
from torch import Tensor

from fourdiffusion.ops.parallel import run_jobs
from fourdiffusion.ops.volume_rendering.torch_backend import accumulate, lattice, render_weights

__all__ = ["accumulate", "march", "render_weights"]
BLOCK = 1024  # rays per job


def march(
    origins: Tensor, directions: Tensor, step: float, radius: float, jitter: Tensor | None, occupied: Tensor | None,
    bounds: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Cut rays into samples: see ``ops.volume_rendering.march``. Equal for any number of threads."""
    from fourdiffusion.ops.volume_rendering import numba_kernels

    near, far, jitter, first, count = lattice(origins, directions, step, radius, jitter, occupied, bounds)
    cells = (torch.ones(1, 1, 1, dtype=torch.bool) if occupied is None else occupied).numpy()
    rays = tuple(value.contiguous().numpy() for value in (origins, directions, near, far, jitter, first, count))
    starts = range(0, len(origins), BLOCK)
    packed: list[tuple[Tensor, ...]] = [()] * len(starts)

    def work(job: int) -> None:
        part = slice(starts[job], starts[job] + BLOCK)
        size = int(count[part].sum())
        found = (torch.empty(size, dtype=torch.int64), torch.empty(size), torch.empty(size))
        outputs = tuple(value.numpy() for value in found)
        kept = numba_kernels.march(starts[job], *(value[part] for value in rays), step, radius, cells, *outputs)
        packed[job] = tuple(value[:kept] for value in found)

    run_jobs(work, len(starts))
    ray_index, t_start, t_end = (torch.cat(parts) for parts in zip(*packed, strict=True))
    return ray_index, t_start, t_end

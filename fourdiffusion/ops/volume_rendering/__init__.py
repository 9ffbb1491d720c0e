"""Ray marching, rendering weights and sums along rays, packed: the samples of all rays are in one list.

A sample n belongs to ray ``ray_index[n]``; ray_index is sorted, and within a ray the samples are ordered near to far.
A ray may have no samples. Three backends: "torch" (any device and float type), "numba" (CPU, float32: march, several
times faster; the rest is torch's) and "nerfacc" (GPU, float32; its march differs at the ends of a ray, see
nerfacc_backend.py). "auto" takes the device's own if it applies, else torch; a backend given by name raises ValueError
if it does not apply.
"""

from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from fourdiffusion.ops.backends import INSTALL, append_flag, choose, installed, tell_step_down
from fourdiffusion.ops.volume_rendering import numba_backend, torch_backend

BACKENDS = ("numba", "nerfacc", "torch")  # "auto" takes the first that applies
NATIVE_DEVICES = {"numba": "cpu", "nerfacc": "cuda"}


def obstacle(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Return why a backend does not apply to rays of that type on that device; None if it does."""
    if backend == "torch":
        return None
    if not installed(backend):
        return f"needs {backend}, which is not installed: {INSTALL[backend]}"
    if device.type != NATIVE_DEVICES[backend] or dtype != torch.float32:
        return f"serves float32 on {NATIVE_DEVICES[backend]} only, not {dtype} on {device}; torch serves all"
    return _nerfacc_failure() if backend == "nerfacc" else None


@cache
def _nerfacc_failure() -> str | None:
    """Return why the installed nerfacc does not run on this GPU, None if it does. The first call takes minutes."""
    try:
        difference = _nerfacc_backend().trial()
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # AttributeError: no compiler was found
        reason = str(error).partition("\n")[0]
        return f"has no kernels to load ({reason}): it compiles them with nvcc, of torch's own CUDA version"
    return None if difference < 1e-3 else f"gives wrong results on this GPU: off by {difference:.1e}"


def _nerfacc_backend() -> ModuleType:
    # Its kernels are compiled on import. In C++20, torch's standard, they conflict with std::lerp.
    append_flag("NVCC_APPEND_FLAGS", f"--pre-include={Path(__file__).with_name('nerfacc_lerp.h')}")
    from fourdiffusion.ops.volume_rendering import nerfacc_backend

    return nerfacc_backend


def resolve_backend(setting: str, name: str, device: torch.device) -> str:
    """Return the backend of ``name`` on a device. ValueError if it does not apply."""
    taken = choose(setting, name, BACKENDS, lambda backend: obstacle(backend, device))
    native = next((backend for backend, kind in NATIVE_DEVICES.items() if kind == device.type), None)
    tell_step_down(setting, name, taken, native, lambda backend: obstacle(backend, device))
    return taken


def _module(backend: str, x: Tensor) -> ModuleType:
    """Return the module of the backend for x."""
    taken = choose("backend", backend, BACKENDS, lambda name: obstacle(name, x.device, x.dtype))
    return {"torch": lambda: torch_backend, "numba": lambda: numba_backend, "nerfacc": _nerfacc_backend}[taken]()


def march(
    origins: Tensor, directions: Tensor, step: float, radius: float, jitter: Tensor | None, occupied: Tensor | None,
    backend: str = "auto", bounds: str = "ball",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Split the part of each ray inside the bounds into intervals of length ``step``; keep those in occupied cells.

    The intervals of a ray start ``jitter`` steps before it enters the bounds; the first and last one are clipped to
    them, so that the intervals cover the part exactly. Skipping only drops intervals: with all cells occupied the
    result is the same as without a grid.

    Args:
        origins, directions: [R, 3], directions of length 1.
        step, radius: in scene units.
        jitter: [R] in [0, 1], or None for 0.
        occupied: bool [G, G, G] over the cube [-radius, radius]^3, axes x, y, z; None keeps everything. An interval
            is in the cell of its midpoint.
        bounds: "ball" |x| <= radius, or "cube" [-radius, radius]^3.

    Returns:
        ray_index [N] int64, t_start [N], t_end [N].
    """
    module = _module(backend, origins) if len(origins) else torch_backend
    return module.march(origins, directions, step, radius, jitter, occupied, bounds)


def render_weights(
    sigma: Tensor, t_start: Tensor, t_end: Tensor, ray_index: Tensor, num_rays: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return weights and transmittance of the samples (Max 1995; NeRF, Mildenhall et al. 2020, eq. 3).

    T_n = exp(-sum of sigma_m delta_m over the ray's samples m before n), w_n = T_n (1 - exp(-sigma_n delta_n)).

    Args:
        sigma, t_start, t_end: [N], sigma per scene unit.
        ray_index: [N] int64, sorted.

    Returns:
        weights [N] and transmittance [N] (up to the start of the sample).
    """
    return _module(backend, sigma).render_weights(sigma, t_start, t_end, ray_index, num_rays)


def accumulate(
    weights: Tensor, values: Tensor | None, ray_index: Tensor, num_rays: int, backend: str = "auto"
) -> Tensor:
    """Return sums of weights * values over each ray: weights [N], values [N, C] or None for ones -> [R, C], or [R]."""
    return _module(backend, weights).accumulate(weights, values, ray_index, num_rays)

"""What a step's samples take of a GPU's memory with the torch grids, which keep every corner of every level.

tiny-cuda-nn keeps far less, so nothing is refused there.
"""

import math

import torch

from fourdiffusion.errors import UserError
from fourdiffusion.fit.settings import FitConfig
from fourdiffusion.ops.backends import INSTALL

# Bytes that autograd keeps for one sample and one level of both grids with 2 features: counted on DynamicField, whose
# 16 levels keep 5264 bytes a sample, and 18557 where the density is differentiated in the points as well.
FIELD, ANALYTIC = 5264 / 16, 18_557 / 16
SHARE = 0.8  # of the memory, for samples: the rest holds networks, grids and pictures


def bytes_of_a_step(config: FitConfig) -> int:
    """Return the most that the samples of one render pass keep for the gradient with ``grid_backend=torch``.

    Counted for a fresh scene: every sample of a ray that crosses the scene, as nothing is empty yet.
    """
    sds = config.sds
    rays = config.num_views * config.num_frames * max(sds.resolutions) ** 2
    return round(min(rays, sds.ray_chunk or rays) * _bytes_of_a_ray(config))


def _bytes_of_a_ray(config: FitConfig) -> float:
    space, renderer, passes = config.scene.field.space, config.scene.renderer, FIELD
    if config.loss.lambda_orientation > 0:
        passes += ANALYTIC if renderer.normals == "analytic" else 4 * FIELD  # four densities more
    samples = 2 * renderer.radius / renderer.step
    return samples * passes * space.num_levels * space.features_per_level / 2


def check_memory(config: FitConfig, backends: dict[str, str], device: torch.device) -> None:
    """UserError where the torch grids cannot hold the samples of a step on a GPU."""
    if device.type != "cuda" or backends["grid_backend"] != "torch":
        return
    total, needed = torch.cuda.get_device_properties(device).total_memory, bytes_of_a_step(config)
    if needed > SHARE * total:
        raise UserError(
            f"scene.grid_backend=torch needs about {needed / 2**30:.0f} GiB for the samples of one render pass, this "
            f"GPU has {total / 2**30:.0f}: install tinycudann ({INSTALL['tinycudann']}), or give "
            f"sds.ray_chunk={_fitting_chunk(config, total)}"
        )


def _fitting_chunk(config: FitConfig, total: int) -> int:
    """Return the largest power of two of rays whose samples fit."""
    return 1 << max(10, int(math.log2(SHARE * total / _bytes_of_a_ray(config))))

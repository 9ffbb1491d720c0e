"""Settings of a scene. This module imports no torch."""

import dataclasses
from dataclasses import dataclass, field

from fourdiffusion.ops.settings import HashGridConfig


@dataclass
class FieldConfig:
    """Sizes of a scene; defaults as published (16 levels, 2^19 entries, 16 -> 4096, 64 wide)."""

    radius: float = 1.0  # of the cube [-radius, radius]^3
    space: HashGridConfig = field(default_factory=HashGridConfig)
    spacetime: HashGridConfig = field(default_factory=HashGridConfig)
    hidden_width: int = 64
    blob_scale: float = 10.0  # blob_scale * (1 - |x| / blob_std) is added to the raw density: it starts at the origin
    blob_std: float = 0.5


@dataclass
class RendererConfig:
    """How rays are sampled; defaults as published if the paper states them."""

    num_samples: int = 256  # across 2 * radius
    step_scale: float = 1.0  # the step is step_scale * 2 * radius / num_samples; the released code: sqrt(3)
    bounds: str = "ball"  # of the samples: ball |x| <= radius | cube [-radius, radius]^3 (the released code)
    radius: float = 1.0
    occupancy_resolution: int = 32
    occupancy_threshold: float = 0.01  # opacity of one step below which a cell counts as empty (instant-ngp, nerfacc)
    occupancy_decay: float = 0.95  # of a cell's stored density per round over all times
    # Samples below one of these are dropped before the pass with gradients; 0 keeps all. The released code has the
    # first two, 0.01 and 1e-4; the third drops more at an equal error of the picture (docs/speed.md).
    prune_alpha: float = 0.0  # opacity of the sample
    early_stop: float = 0.0  # transmittance at the sample
    prune_weight: float = 0.0  # rendering weight of the sample, the product of both
    normals: str = "difference"  # difference: over a tetrahedron | analytic: the density's own gradient
    normal_epsilon: float = 0.01  # offset of the finite differences, scene units

    @property
    def step(self) -> float:
        """Length of a sample's interval, scene units."""
        return self.step_scale * 2 * self.radius / self.num_samples

    @property
    def prunes(self) -> bool:
        """Return whether samples are dropped."""
        return self.prune_alpha > 0 or self.early_stop > 0 or self.prune_weight > 0


@dataclass
class SceneConfig:
    """The dynamic NeRF and how it is rendered."""

    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    renderer: RendererConfig = dataclasses.field(default_factory=RendererConfig)
    grid_backend: str = "auto"  # of the hash grids: auto | torch | numba | tinycudann; not part of the scene
    ray_backend: str = "auto"  # of sampling and rendering: auto | torch | numba | nerfacc; not part of the scene

"""The dynamic radiance field (4Diffusion section 4.2): density and color of any point at any time."""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import softplus

from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError
from fourdiffusion.files import first_non_finite, save_tensors, write_atomic
from fourdiffusion.ops.fused_field import FieldShape, fused_field
from fourdiffusion.ops.hash_grid import HashGrid, summed_encodings
from fourdiffusion.ops.hash_grid.layout import levels
from fourdiffusion.ranges import from_values
from fourdiffusion.scene.settings import FieldConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CLASS_NAME = "DynamicField"


class DynamicField(nn.Module):
    """feature(x, t) = hash3(x) + hash4(x, t); with one small MLP each for density and color.

    Args:
        config: sizes.
        seed: of the initial weights.
        backend: of the hash grids, see ops.hash_grid; not part of the scene.
    """

    def __init__(self, config: FieldConfig, seed: int = 0, backend: str = "auto"):
        super().__init__()
        if config.radius <= 0 or config.blob_std <= 0 or config.hidden_width < 1:
            raise ValueError(f"radius, blob_std and hidden_width of a field must be positive: {config}")
        self.config = config
        self.space = HashGrid(3, config.space, 3 * seed, backend)
        self.spacetime = HashGrid(4, config.spacetime, 3 * seed + 1, backend)
        if self.space.num_features != self.spacetime.num_features:
            raise ValueError(
                f"the two grids' features are summed, but space has {self.space.num_features} and spacetime "
                f"{self.spacetime.num_features}: give them the same num_levels * features_per_level"
            )
        generator = torch.Generator().manual_seed(3 * seed + 2)
        self.density_mlp = _Perceptron(self.space.num_features, config.hidden_width, 1, generator)
        self.colour_mlp = _Perceptron(self.space.num_features, config.hidden_width, 3, generator)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, 3] in [-radius, radius], t [N] in [0, 1] -> sigma [N] >= 0 per scene unit, rgb [N, 3] in (0, 1)."""
        self._check_points(x, t)
        if self._fused(x, t):
            return fused_field(x, t, *self._operands(), self.density_mlp.weights(), self.colour_mlp.weights())
        features = self._features(x, t)
        return self._activate(self.density_mlp(features), x), self.colour_mlp(features).sigmoid()

    def density(self, x: Tensor, t: Tensor) -> Tensor:
        """Return only sigma of ``forward``, at about two thirds of its cost: x [N, 3], t [N] -> [N]."""
        self._check_points(x, t)
        if self._fused(x, t):
            return fused_field(x, t, *self._operands(), self.density_mlp.weights(), None)[0]
        return self._activate(self.density_mlp(self._features(x, t)), x)

    def _fused(self, x: Tensor, t: Tensor) -> bool:
        """Return whether the fused kernels apply: float32 on a CPU, both grids by numba, no gradient of the points."""
        return (
            len(x) > 0
            and x.dtype == t.dtype == torch.float32
            and not (torch.is_grad_enabled() and (x.requires_grad or t.requires_grad))
            and all(grid.backend_for(x.detach()) == "numba" for grid in (self.space, self.spacetime))
        )

    def _operands(self) -> tuple[FieldShape, Tensor, Tensor]:
        config = self.config
        shape = FieldShape(self.space.levels, self.spacetime.levels, config.radius, config.blob_scale, config.blob_std)
        return shape, self.space.params, self.spacetime.params

    @staticmethod
    def _check_points(x: Tensor, t: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != 3 or t.shape != x.shape[:1]:
            raise ValueError(f"a field takes x [N, 3] and t [N], got {list(x.shape)} and {list(t.shape)}")

    def _features(self, x: Tensor, t: Tensor) -> Tensor:
        unit = (x + self.config.radius) / (2 * self.config.radius)
        return summed_encodings(torch.cat([unit, t[:, None]], dim=1), (self.space, self.spacetime))

    def _activate(self, raw: Tensor, x: Tensor) -> Tensor:
        # Magic3D's density bias (Lin et al. 2023), with softplus.
        return softplus(raw.squeeze(1) + self.config.blob_scale * (1 - x.norm(dim=-1) / self.config.blob_std))

    def parameter_groups(self, grid_rate: float = 1e-2, mlp_rate: float = 1e-3) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer; the default rates are the published ones."""
        grids = [self.space.params, self.spacetime.params]
        mlps = [*self.density_mlp.parameters(), *self.colour_mlp.parameters()]
        return [{"params": grids, "lr": grid_rate}, {"params": mlps, "lr": mlp_rate}]

    def save(self, folder: Path) -> None:
        """Write config.json and the weights, each file atomically."""
        config = json.dumps({"_class_name": CLASS_NAME, **asdict(self.config)}, indent=2) + "\n"
        write_atomic(folder / CONFIG_FILE, lambda partial: partial.write_text(config, encoding="utf-8"))
        save_tensors(folder / WEIGHTS_FILE, self.state_dict(), {})

    @classmethod
    def load(cls, folder: Path, backend: str = "auto") -> "DynamicField":
        """Load a field written by ``save``. UserError for other folders."""
        path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        if not path.is_file():
            raise UserError(f"{folder} is not a scene: {path.name} is missing; give the scene/ folder of a fitted run")
        if not weights.is_file():
            raise UserError(f"{folder} is not a complete scene: {WEIGHTS_FILE} is missing; fit it again")
        try:
            config = _parse_config(read_json(path, "fit the scene again"))
            sizes = _table_sizes(config)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a scene's configuration ({error}); fit the scene again") from error
        try:
            tensors = load_file(weights)
            for name, size in sizes.items():  # before tensors of this size are allocated
                if name in tensors and size not in (tensors[name].shape[0], tensors[name].numel()):
                    raise RuntimeError(f"{name} is {list(tensors[name].shape)}, {path.name} asks for {size}")
            scene = cls(config, backend=backend)
            scene.load_state_dict(tensors)
        except (SafetensorError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{weights} does not hold the weights of this scene ({reason}); fit it again") from error
        if culprit := first_non_finite(scene.state_dict()):
            raise UserError(f"{weights}: {culprit} holds numbers that are NaN or infinite; fit the scene again")
        return scene


class _Perceptron(nn.Module):
    """The weights of one MLP without biases: ``hidden`` [H, C] and ``output`` [O, H], initialized as nn.Linear."""

    def __init__(self, num_inputs: int, width: int, num_outputs: int, generator: torch.Generator):
        super().__init__()
        self.hidden = nn.Parameter(torch.empty(width, num_inputs))
        self.output = nn.Parameter(torch.empty(num_outputs, width))
        for weight in (self.hidden, self.output):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """relu(x @ hidden.T) @ output.T: [N, C] -> [N, O]."""
        return (x @ self.hidden.t()).relu() @ self.output.t()

    def weights(self) -> tuple[Tensor, Tensor]:
        return self.hidden, self.output


def _parse_config(values: Any) -> FieldConfig:
    """Return the configuration of a config.json's content; raises several exception types if it is invalid."""
    name = values.pop("_class_name")
    if name != CLASS_NAME:
        raise ValueError(f"it describes a {name}, not a {CLASS_NAME}")
    if missing := {field.name for field in fields(FieldConfig)} - set(values):
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    return from_values(FieldConfig, values)


def _table_sizes(config: FieldConfig) -> dict[str, int]:
    """Return the expected shapes of the tables and of the MLPs, by the names of the weights."""
    grids = {"space": (3, config.space), "spacetime": (4, config.spacetime)}
    sizes = {
        f"{name}.params": int(levels(dims, grid).offset[-1]) * grid.features_per_level
        for name, (dims, grid) in grids.items()
    }
    return sizes | {f"{name}.hidden": config.hidden_width for name in ("density_mlp", "colour_mlp")}

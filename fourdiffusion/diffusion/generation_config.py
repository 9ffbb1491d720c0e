"""``generation_config.json``: the sampling defaults stored with the weights. This module imports no torch."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from fourdiffusion.diffusion.settings import GenerationConfig, ModelConfig, override
from fourdiffusion.errors import UserError

NAME = "generation_config.json"
SCHEDULERS = ("ddim", "dpm++", "unipc", "euler")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
LONG_VIDEO = ("windows", "interleaved")
RANGES: dict[str, tuple[float, float]] = {
    "image_size": (8, 4096),
    "num_inference_steps": (1, 999),  # 1000 leading steps, shifted by one, would end past the noise schedule
    "guidance_scale": (0, 100),
    "window": (1, 1000),
}


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """Return the sampling defaults of the pipeline in ``folder``; None if the folder has no such file.

    Raises:
        UserError: the file is not a JSON object, has an unknown key, or a value of another type or out of range.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or delete it for the release's") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}: it must be one JSON object")
    default = GenerationConfig()
    known = {field.name for field in fields(GenerationConfig)}
    for key, value in content.items():
        if key not in known:
            raise UserError(f"{path}: there is no setting '{key}', only {', '.join(sorted(known))}")
        if not _fits(value, getattr(default, key), key):
            raise UserError(f"{path}: {key}={value!r} is not of the type of {getattr(default, key)!r}")
    config = replace(default, **{key: _as(value, getattr(default, key)) for key, value in content.items()})
    check_generation_config(config, f"{path}: ")
    return config


def _fits(value: Any, default: Any, key: str) -> bool:
    if key == "timestep_spacing":
        return value is None or isinstance(value, str)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return type(value) is type(default)


def _as(value: Any, default: Any) -> Any:
    return float(value) if isinstance(default, float) else value


def write_generation_config(folder: Path, config: GenerationConfig) -> None:
    """Write the sampling defaults of the pipeline in ``folder``."""
    (folder / NAME).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")


def check_generation_config(config: GenerationConfig, prefix: str = "model.") -> None:
    """Raise UserError, which begins with ``prefix``, for a value that is invalid for every model."""
    for name, choices in (
        ("scheduler", SCHEDULERS),
        ("timestep_spacing", TIMESTEP_SPACINGS),
        ("long_video", LONG_VIDEO),
    ):
        value = getattr(config, name)
        if value not in choices and not (name == "timestep_spacing" and value is None):
            raise UserError(f"{prefix}{name}={value} is not one of {', '.join(choices)}")
    for name, (low, high) in RANGES.items():
        value = getattr(config, name)
        if not low <= value <= high:  # also true for NaN
            raise UserError(f"{prefix}{name}={value}: give {low:g} to {high:g}")


def sampling_settings(config: ModelConfig) -> GenerationConfig:
    """Return the sampling settings of the model of ``config.path``: its defaults, overridden by the user's settings.

    Reads no weights. A folder without the file has the release's defaults.

    Raises:
        UserError: there is no model at ``config.path``, a value that no model can be sampled with, or an image size
            that is not the model's.
    """
    if config.path is None or not (Path(config.path) / "model_index.json").is_file():
        raise UserError(f"model.path={config.path} holds no model: give a pipeline folder (one with model_index.json)")
    own = read_generation_config(Path(config.path))
    settings = override(own or GenerationConfig(), config)
    check_generation_config(settings)
    if own is not None and settings.image_size != own.image_size:
        raise UserError(
            f"model.image_size={settings.image_size}: the model in model.path={config.path} makes pictures of "
            f"{own.image_size} pixels: leave model.image_size out, or load other weights"
        )
    return settings


def with_sampling_settings(config: ModelConfig) -> ModelConfig:
    """Return ``config`` with the model's value for each sampling setting that is None; see ``sampling_settings``."""
    return replace(config, **asdict(sampling_settings(config)))

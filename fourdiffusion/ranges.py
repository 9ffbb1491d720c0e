"""Inclusive bounds of the numeric settings, checked before a verb starts.

One table for each settings class, by field; a class inherits its bases' bounds, and a list's bounds are those of its
entries. They reject meaningless values (a negative count, NaN, infinity), not unwise ones. A verb may have further
checks for settings that depend on each other.
"""

import dataclasses
import typing
from typing import Any

from fourdiffusion.errors import UserError, check_ranges

_SEED = (0, 2**62)
_STEPS = (0, 10**9)
_COUNT = (1, 10**6)
_PIXELS = (8, 8192)
_FRAMES = (1, 10_000)
_VIEWS = (1, 360)
_LATITUDE = (-89.0, 89.0)
_DEGREES = (-36_000.0, 36_000.0)
_WEIGHT = (0.0, 1e9)
_RATE = (0.0, 10.0)
_FRACTION = (0.0, 1.0)
_GUIDANCE = (0.0, 1000.0)
_MINUTES = (0.0, 1e6)
_WIDTH = (1, 65_536)
_LAYERS = (1, 1000)

Range = tuple[float, float]

RANGES: dict[str, dict[str, Range]] = {  # {settings class: {field: (least, greatest)}}
    "InputVideo": {
        "num_frames": _FRAMES,
        "start": (0.0, 1e6),
        "end": (0.0, 1e6),
        "fps": (1e-3, 1000.0),
        "stride": _FRAMES,
        "source_fps": (1e-3, 1000.0),
    },
    "GenerateConfig": {
        "num_views": _VIEWS,
        "elevation_deg": _LATITUDE,
        "seed": _SEED,
    },
    "FitViewsConfig": {
        "azimuths_deg": _DEGREES,
        "elevation_deg": _LATITUDE,
        "fovy_deg": (1.0, 170.0),
        "distance": (1e-3, 1e6),
        "num_frames": _FRAMES,
        "frame_stride": _FRAMES,
        "held_out": (0, 10_000),
        "seed": _SEED,
        "max_steps": (1, 10**7),
        "num_rays": (1, 10**7),
        "foreground_share": _FRACTION,
        "lambda_alpha": _WEIGHT,
        "lambda_lpips": _WEIGHT,
        "patch_size": (16, 4096),
        "grid_lr": _RATE,
        "mlp_lr": _RATE,
        "lr_decay": (1e-6, 1.0),
        "occupancy_every": _COUNT,
        "checkpoint_minutes": _MINUTES,
        "log_every": _COUNT,
    },
    "RenderConfig": {
        "size": (1, 8192),
        "orbit_pictures": (1, 100_000),
        "num_azimuths": _VIEWS,
        "elevation_deg": _LATITUDE,
        "num_frames": _FRAMES,
        "width": (1, 8192),
        "azimuth_deg": _DEGREES,
        "distance": (1e-3, 1e3),
        "time": _FRACTION,
        "fps": (0.1, 1000.0),
        "seconds": (1e-3, 1e5),
        "turns": (-1000.0, 1000.0),
    },
    "AppConfig": {"port": (1, 65_535), "jobs": (1, 64)},
    "ExportConfig": {
        "num_frames": _FRAMES,
        "fps": (0.1, 1000.0),
        "resolution": (4, 2048),
        "iso_level": (1e-9, 1e9),
        "min_component": _FRACTION,
        "texture_size": (64, 4096),
        "scale": (1e-9, 1e9),
        "size": (1, 8192),
        "azimuth_deg": _DEGREES,
        "elevation_deg": _LATITUDE,
        "num_views": _VIEWS,
    },
    "ViewConfig": {
        "port": (1, 65_535),
        "size": _PIXELS,
        "fps": (0.1, 1000.0),
        "moving_seconds": (1e-3, 60.0),
        "num_frames": _FRAMES,
    },
    "LightConfig": {
        "azimuth_deg": _DEGREES,
        "elevation_deg": (-90.0, 90.0),
        "strength": (0.0, 1e6),
        "angle_deg": (0.0, 180.0),
    },
    "RenderAssetsConfig": {
        "limit": (0, 10**9),
        "samples": (1, 65_536),
        "threads": (0, 1024),
        "supersampling": (1, 31),
        "width": _PIXELS,
        "height": _PIXELS,
        "num_views": _VIEWS,
        "num_random_views": (0, 360),
        "elevation_deg": _LATITUDE,
        "random_elevation_deg": _LATITUDE,
        "distance": (1e-3, 1e3),
        "fovy_deg": (1.0, 170.0),
        "fovy_jitter_deg": (0.0, 90.0),
        "num_frames": _FRAMES,
        "fps": (0.1, 1000.0),
        "stride": _FRAMES,
        "cube_side": (1e-3, 2.0),
        "frame_margin": (0.0, 0.9),
        "heading_deg": _DEGREES,
        "min_movement": _FRACTION,
        "max_travel": (1.0, 1e6),
        "max_seconds": (1e-3, 1e5),
        "ambient": (0.0, 1e6),
        "seed": _SEED,
        "num_workers": (1, 1024),
        "timeout_s": (1e-3, 1e6),
    },
    "ModelConfig": {
        "num_inference_steps": (1, 1000),
        "guidance_scale": _GUIDANCE,
        "window": _FRAMES,
        "image_size": _PIXELS,
        "channels": _WIDTH,
        "blocks_per_level": _LAYERS,
        "head_dim": _WIDTH,
        "context_dim": _WIDTH,
        "num_image_tokens": _WIDTH,
        "resampler_layers": _LAYERS,
        "resampler_heads": _LAYERS,
        "resampler_head_dim": _WIDTH,
        "norm_groups": _WIDTH,
        "beta_end": (1e-6, 0.999),
        "motion_heads": _LAYERS,
        "max_frames": _FRAMES,
        "latent_channels": _WIDTH,
        "vae_channels": _WIDTH,
        "vae_blocks_per_level": _LAYERS,
        "vae_norm_groups": _WIDTH,
        "vocab_size": (1, 10**7),
        "text_length": (2, 100_000),
        "text_layers": _LAYERS,
        "text_heads": _LAYERS,
        "image_encoder_size": _PIXELS,
        "image_patch": (1, 8192),
        "image_dim": _WIDTH,
        "image_layers": _LAYERS,
        "image_heads": _LAYERS,
    },
    "DataConfig": {
        "num_views": _VIEWS,
        "num_frames": _FRAMES,
        "frame_stride": _FRAMES,
        "cache_mib": (0, 10**7),
    },
    "DistillationConfig": {
        "weight": _WEIGHT,
        "guidance_scale": _GUIDANCE,
        "guidance_scale_end": _GUIDANCE,
        "guidance_rescale": _FRACTION,
        "start_step": _STEPS,
        "every": (1, 10**9),
        "t_start": _FRACTION,
        "t_min_end": _FRACTION,
        "t_max_end": _FRACTION,
        "ramp_steps": _STEPS,
        "resolutions": _PIXELS,
        "resolution_milestones": _STEPS,
        "elevation_max_deg": (0.0, 89.0),
        "ray_chunk": (0, 10**9),
        "image_chunk": (0, 10**6),
    },
    "LossConfig": {
        "anchor_view": (0, 359),
        "lambda_lpips": _WEIGHT,
        "lambda_dssim": _WEIGHT,
        "lambda_rgb": _WEIGHT,
        "rgb_rays": (1, 10**9),
        "lambda_input": _WEIGHT,
        "lambda_mask": _WEIGHT,
        "input_rays": (1, 10**9),
        "input_max_side": _PIXELS,
        "lambda_empty": _WEIGHT,
        "lambda_distortion": _WEIGHT,
        "lambda_orientation": _WEIGHT,
        "lambda_orientation_end": _WEIGHT,
        "orientation_ramp_steps": _STEPS,
        "orientation_frames": (0, 10_000),
        "lambda_opacity": _WEIGHT,
        "opacity_start_step": _STEPS,
        "lambda_sparsity": _WEIGHT,
        "sparsity_start_step": _STEPS,
    },
    "CameraConfig": {
        "fovy": (1.0, 120.0),
        "distance": (1e-3, 1e6),
        "elevation": _LATITUDE,
        "view": (0, 10_000),
    },
    "FitConfig": {
        "num_frames": _FRAMES,
        "num_views": _VIEWS,
        "seed": _SEED,
        "max_steps": _STEPS,
        "grid_lr": _RATE,
        "mlp_lr": _RATE,
        "lr_decay": (1e-9, 1.0),
        "occupancy_every": (1, 10**9),
        "checkpoint_minutes": _MINUTES,
        "preview_minutes": _MINUTES,
        "log_every": (1, 10**9),
    },
    "HashGridConfig": {
        "num_levels": (1, 64),
        "features_per_level": (1, 16),
        "log2_hashmap_size": (1, 30),
        "base_resolution": (1, 4096),
        "per_level_scale": (1.0, 16.0),
    },
    "FieldConfig": {
        "radius": (1e-3, 1e3),
        "hidden_width": _WIDTH,
        "blob_scale": (0.0, 1e4),
        "blob_std": (1e-6, 1e3),
    },
    "RendererConfig": {
        "num_samples": (1, 100_000),
        "step_scale": (1e-3, 1e3),
        "prune_alpha": _FRACTION,
        "prune_weight": _FRACTION,
        "radius": (1e-3, 1e3),
        "occupancy_resolution": (1, 1024),
        "occupancy_threshold": _FRACTION,
        "occupancy_decay": _FRACTION,
        "early_stop": _FRACTION,
        "normal_epsilon": (1e-6, 1.0),
    },
    "EvaluateConfig": {"baseline_steps": (1, 10**6)},
    "ProtocolConfig": {
        "frames": _FRAMES,
        "size": _PIXELS,
        "background": _FRACTION,
        "clip_length": _FRAMES,
        "mesh_points": (1, 10**7),
        "mesh_icp_points": (1, 10**7),
        "f_threshold": (1e-9, 1e9),
    },
    "PackConfig": {
        "quality": (1, 100),
        "clips_per_shard": _COUNT,
        "num_readers": _COUNT,
        "encode_batch": _COUNT,
    },
    "SynthConfig": {
        "num_clips": (0, 10**7),
        "first_seed": (0, 10**9),
        "num_views": _VIEWS,
        "num_frames": _FRAMES,
        "size": _PIXELS,
        "elevation_deg": _LATITUDE,
        "num_faulty": (0, 10**7),
        "num_workers": (1, 1024),
    },
    "Thresholds": {
        "min_frames": (1, 10_000),
        "max_opacity": _FRACTION,
        "min_pixel_motion": (0.0, 4.0),
        "min_silhouette_motion": _FRACTION,
        "min_articulation_share": _FRACTION,
        "max_turning": _FRACTION,
        "max_outside": _FRACTION,
        "min_size": _FRACTION,
        "max_flicker": (0.0, 4.0),
        "min_texture": (0.0, 6.0),
        "duplicate_look": (-1, 192),
        "duplicate_motion": (-1, 64),
    },
    "CurateConfig": {
        "port": (0, 65_535),
        "max_views": (1, 360),
        "max_frames": (2, 10_000),
        "num_workers": (1, 1024),
        "at_least": (1, 1000),
    },
    "ObjaverseConfig": {
        "at_least": (1, 1000),
        "num_workers": (1, 1024),
        "limit": (0, 10**9),
    },
    "TrainConfig": {
        "seed": _SEED,
        "max_steps": _STEPS,
        "batch_size": _COUNT,
        "micro_batch_size": _COUNT,
        "learning_rate": _RATE,
        "weight_decay": (0.0, 10.0),
        "lr_warmup_steps": _STEPS,
        "lr_decay_steps": _STEPS,
        "max_grad_norm": (1e-9, 1e9),
        "max_loss_rise": (0.0, 1e9),
        "ema_decay": _FRACTION,
        "projection_steps": _STEPS,
        "lora_rank": (0, 4096),
        "cond_drop_prob": _FRACTION,
        "text_drop_prob": _FRACTION,
        "timestep_shift": (1e-3, 1e3),
        "min_snr_gamma": (1e-3, 1e6),
        "kl_weight": _WEIGHT,
        "lpips_weight": _WEIGHT,
        "crop_size": _PIXELS,
        "num_workers": (0, 1024),
        "log_every": (1, 10**9),
        "checkpoint_every": (1, 10**9),
        "checkpoint_minutes": (0.0, 1e6),
        "keep_every": _STEPS,
        "keep_last": _STEPS,
        "vae_batch_size": _COUNT,
        "validation_every": _STEPS,
        "validation_clips": _COUNT,
        "validation_num_inference_steps": (1, 1000),
        "validation_guidance_scale": _GUIDANCE,
    },
}

# Choices of string settings, by class; also checked if a verb does not use them. null is always valid.
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "ModelConfig": {
        "scheduler": ("ddim", "dpm++", "unipc", "euler"),
        "timestep_spacing": ("leading", "trailing", "linspace"),
        "long_video": ("windows", "interleaved"),
        "dtype": ("float32", "bfloat16", "float16", "auto"),
        "storage_dtype": ("float32", "bfloat16", "float16"),
        "offload": ("none", "model"),
        "prediction_type": ("epsilon", "v_prediction", "velocity"),
    },
    "RendererConfig": {"bounds": ("ball", "cube")},
}

# Settings that are paths, by class: the command line resolves them with media.paths.user_path.
PATHS: dict[str, set[str]] = {
    "InputVideo": {"video", "mask", "matting_model"},
    "GenerateConfig": {"output"},
    "RenderConfig": {"scene", "output"},
    "ExportConfig": {"scene", "output"},
    "ViewConfig": {"scene", "output"},
    "AppConfig": {"output"},
    "FitViewsConfig": {"views", "output", "lpips_weights"},
    "PackConfig": {"clips", "output", "ids", "manifest"},
    "CurateConfig": {"clips", "output", "captions", "captioner", "lists"},
    "ObjaverseConfig": {"output", "captions", "lists"},
    "ConvertConfig": {"imagedream", "motion", "output", "tokenizer", "checkpoint"},
    "RenderAssetsConfig": {"assets", "output", "manifest", "hdri"},
    "SynthConfig": {"output"},
    "ModelConfig": {"path"},
    "DataConfig": {"path"},
    "TrainConfig": {"output", "lpips_weights", "validation_data", "init_motion"},
    "FitConfig": {"output"},
    "CameraConfig": {"file"},
    "LossConfig": {"lpips_weights"},
    "EvaluateConfig": {"prediction", "reference", "truth", "output", "weights", "lpips", "compare", "feature_cache"},
}
# Paths that may also be the address of shards (``s3://``, ``https://``).
ADDRESSES: dict[str, set[str]] = {"DataConfig": {"path"}, "TrainConfig": {"validation_data"}}


def check_numbers(settings: Any, prefix: str = "") -> None:
    """Raise UserError for the first number outside its bounds in a settings dataclass, including nested ones."""
    for field in dataclasses.fields(settings):
        key, value = prefix + field.name, getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{key}.")
            continue
        owners = (RANGES.get(owner.__name__, {}) for owner in type(settings).__mro__)
        bounds = next((found[field.name] for found in owners if field.name in found), None)
        for number in value if isinstance(value, list) else [value]:
            if bounds is not None and isinstance(number, int | float):
                check_ranges({key: (number, *bounds)})


def from_values(settings: type[Any], values: Any) -> Any:
    """Return a settings dataclass from the values of a JSON file, nested ones included.

    Raises ValueError if it is not a mapping, for an unknown key, a missing required field (default "???"), a value of
    another type, and a number outside its bounds.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}, not an object")
    types = typing.get_type_hints(settings)
    if unknown := sorted(str(key) for key in values if key not in types):
        raise ValueError(f"there is no setting {unknown[0]}")
    given: dict[str, Any] = {}
    for name, value in values.items():
        of = types[name]
        if dataclasses.is_dataclass(of):
            given[name] = from_values(typing.cast(type[Any], of), value)
            continue
        kinds = tuple(typing.get_origin(kind) or kind for kind in typing.get_args(of) or (of,))
        number = float in kinds and type(value) is int and abs(value) < 1e300
        if type(value) not in kinds and not number:
            raise ValueError(f"{name}={str(value)[:40]!r} is not {' or '.join(kind.__name__ for kind in kinds)}")
        given[name] = float(value) if number else value
    found = settings(**given)
    try:
        check_numbers(found)
    except UserError as error:
        raise ValueError(str(error)) from error
    return found

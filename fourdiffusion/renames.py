"""Former names of settings and of keys in files: old command lines, run folders and clips remain valid.

One table for each settings class that had other names in version 0.1.0. The keys are dotted, as on the command
line.
"""

from typing import Any

_MODEL = {
    "model.sampler": "model.scheduler",
    "model.spacing": "model.timestep_spacing",
    "model.sampling_steps": "model.num_inference_steps",
    "model.guidance": "model.guidance_scale",
    "model.distillation_negative": "model.distillation_negative_prompt",
    "model.storage": "model.storage_dtype",
    "model.vocabulary": "model.vocab_size",
    "model.prediction": "model.prediction_type",
}
UNET_CONFIG = {"prediction": "prediction_type"}  # keys of a pipeline folder's unet/config.json
VALUES = {"velocity": "v_prediction"}  # of prediction_type
SETTINGS: dict[str, dict[str, str]] = {  # {settings class: {former key: key}}
    "GenerateConfig": _MODEL,
    "ConvertConfig": _MODEL,
    "DoctorConfig": _MODEL,
    "EvaluateConfig": {"truth": "reference", "lpips": "weights"},
    "FitConfig": _MODEL
    | {
        "steps": "max_steps",
        "grid_rate": "grid_lr",
        "mlp_rate": "mlp_lr",
        "rate_decay": "lr_decay",
        "sds.guidance": "sds.guidance_scale",
        "sds.guidance_end": "sds.guidance_scale_end",
        "sds.rescale": "sds.guidance_rescale",
        "sds.in_pixels": "sds.pixel_space",
        "sds.start": "sds.start_step",
        "sds.max_step": "sds.t_start",
        "sds.min_step_end": "sds.t_min_end",
        "sds.max_step_end": "sds.t_max_end",
        "sds.resolution_steps": "sds.resolution_milestones",
        "loss.perceptual": "loss.lambda_lpips",
        "loss.lpips": "loss.lpips_weights",
        "loss.d_ssim": "loss.lambda_dssim",
        "loss.views": "loss.lambda_rgb",
        "loss.views_rays": "loss.rgb_rays",
        "loss.input_view": "loss.use_input_view",
        "loss.orientation_start": "loss.lambda_orientation",
        "loss.orientation_end": "loss.lambda_orientation_end",
        "loss.orientation_ramp": "loss.orientation_ramp_steps",
        "loss.opacity": "loss.lambda_opacity",
        "loss.opacity_from": "loss.opacity_start_step",
        "loss.sparsity": "loss.lambda_sparsity",
        "loss.sparsity_from": "loss.sparsity_start_step",
    },
    "TrainConfig": _MODEL
    | {
        "steps": "max_steps",
        "drop_probability": "cond_drop_prob",
        "drop_camera": "cond_drop_camera",
        "grad_clip": "max_grad_norm",
        "warmup_steps": "lr_warmup_steps",
        "decay_steps": "lr_decay_steps",
        "crop": "crop_size",
        "sample_every": "validation_every",
        "sample_data": "validation_data",
        "sample_steps": "validation_num_inference_steps",
        "sample_guidance": "validation_guidance_scale",
        "data.cache_clips": "data.cache_mib",
    },
}


def current_name(settings_class: str, key: str) -> str:
    """Return the current name of a dotted settings key; a key that was never renamed is returned unchanged."""
    return SETTINGS.get(settings_class, {}).get(key, key)


def current_value(key: str, value: Any) -> Any:
    """Return the current value of a dotted settings key, given under its former or current name."""
    return VALUES.get(value, value) if key.endswith((".prediction", ".prediction_type")) else value


def current_unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a unet/config.json with current names and values."""
    renamed = {UNET_CONFIG.get(key, key): value for key, value in config.items()}
    if isinstance(kind := renamed.get("prediction_type"), str):
        renamed["prediction_type"] = VALUES.get(kind, kind)
    return renamed

"""Settings of the diffusion model and the defaults stored with its weights. This module imports no torch."""

from dataclasses import dataclass, fields, replace
from typing import Any

from fourdiffusion.errors import UserError
from fourdiffusion.renames import VALUES

NEGATIVE_PROMPT = (  # the sampler's, method.md section 5
    "uniform low no texture ugly, boring, bad anatomy, blurry, pixelated,  obscure, unnatural colors, "
    "poor lighting, dull, and unclear."
)
DISTILLATION_NEGATIVE_PROMPT = (  # the 4D stage's, likewise
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
    "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
    "bad proportions"
)
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class GenerationConfig:
    """Default sampling settings of a model: ``generation_config.json`` in its folder.

    The defaults are the release's (method.md sections 1 and 5).
    """

    image_size: int = 256  # side of the square images in pixels
    scheduler: str = "ddim"
    timestep_spacing: str | None = None  # None: of scheduler/scheduler_config.json
    num_inference_steps: int = 100
    guidance_scale: float = 5.0
    negative_prompt: str = NEGATIVE_PROMPT
    distillation_negative_prompt: str = DISTILLATION_NEGATIVE_PROMPT
    window: int = 8
    long_video: str = "windows"


@dataclass
class ModelConfig:
    """Weights, precision and sampling of a model; None is the model's own value.

    A loaded model's own values are those of its ``generation_config.json`` and of its weights; for a new model
    (``train``, ``convert``) they are the release's.
    """

    path: str | None = None  # pipeline folder; None: a new, untrained model of the sizes below
    scheduler: str | None = None  # ddim | dpm++ | unipc | euler, compared in docs/pipeline.md
    timestep_spacing: str | None = None  # leading | trailing | linspace
    num_inference_steps: int | None = None  # sampling steps
    guidance_scale: float | None = None  # of classifier-free guidance in sampling; 1: no unconditional branch
    negative_prompt: str | None = None  # of sampling
    distillation_negative_prompt: str | None = None  # of SDS
    window: int | None = None  # frames denoised together, as many as in training
    long_video: str | None = None  # how videos longer than window are split: windows | interleaved
    # generate and fit: of all networks: float32 | bfloat16 | float16 | auto: the faster of the first two here
    dtype: str = "float32"
    # generate and fit: dtype in which UNet, motion layers and encoders are stored; they compute in dtype
    storage_dtype: str | None = None
    channels_last: bool = False  # generate and fit: memory layout of UNet and VAE; convolutions may run faster
    compile: bool = False  # generate and fit: torch.compile of the UNet; minutes at the first step
    offload: str = "none"  # generate and fit: none | model: encoders and UNet stay in CPU memory until they run
    image_size: int | None = None  # side of the square images in pixels
    channels: list[int] | None = None  # of the UNet's levels
    attention_levels: list[bool] | None = None  # which levels have attention
    blocks_per_level: int | None = None
    head_dim: int | None = None
    context_dim: int | None = None
    num_image_tokens: int | None = None
    resampler_layers: int | None = None
    resampler_heads: int | None = None
    resampler_head_dim: int | None = None
    norm_groups: int | None = None  # of the UNet's and the motion layers' group normalization
    prediction_type: str | None = None  # meaning of the UNet's output: epsilon | v_prediction
    beta_end: float | None = None  # of the noise schedule; the release's keeps some signal at its last level
    positions: bool | None = None  # position embeddings of the image tokens in attention
    motion_heads: int | None = None
    max_frames: int | None = None  # length of the motion layers' position table
    latent_channels: int | None = None
    vae_channels: list[int] | None = None
    vae_blocks_per_level: int | None = None
    vae_norm_groups: int | None = None
    vae_attention: bool | None = None
    vocab_size: int | None = None
    text_length: int | None = None
    text_layers: int | None = None
    text_heads: int | None = None
    image_encoder_size: int | None = None
    image_patch: int | None = None
    image_dim: int | None = None
    image_layers: int | None = None
    image_heads: int | None = None


@dataclass(frozen=True)
class Architecture:
    """Sizes of the networks, by the names of ModelConfig. The defaults are the release's (method.md section 1)."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    blocks_per_level: int = 2
    head_dim: int = 64
    context_dim: int = 1024
    num_image_tokens: int = 16
    resampler_layers: int = 4
    resampler_heads: int = 12
    resampler_head_dim: int = 64
    norm_groups: int = 32
    prediction_type: str = "epsilon"
    beta_end: float = 0.0120
    positions: bool = False
    motion_heads: int = 8
    max_frames: int = 32
    latent_channels: int = 4
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_blocks_per_level: int = 2
    vae_norm_groups: int = 32
    vae_attention: bool = True
    vocab_size: int = 49408
    text_length: int = 77
    text_layers: int = 23
    text_heads: int = 16
    image_encoder_size: int = 224
    image_patch: int = 14
    image_dim: int = 1280
    image_layers: int = 32
    image_heads: int = 16


def architecture(config: ModelConfig) -> Architecture:
    """Return the sizes of a new model: the settings', or the release's if they are None.

    UserError for incompatible sizes.
    """
    given: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(Architecture)}
    if config.prediction_type is not None:
        given["prediction_type"] = VALUES.get(config.prediction_type, config.prediction_type)
    sizes: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if value is not None
    }
    found = Architecture(**sizes)
    _check_sizes(found)
    return found


def _check_sizes(sizes: Architecture) -> None:
    if sizes.prediction_type not in PREDICTION_TYPES:
        raise UserError(f"model.prediction_type={sizes.prediction_type} is not one of {', '.join(PREDICTION_TYPES)}")
    for name in ("channels", "vae_channels"):
        if not getattr(sizes, name):
            raise UserError(f"model.{name}=[]: give at least one level")
    if len(sizes.attention_levels) != len(sizes.channels):
        raise UserError(
            f"model.attention_levels={list(sizes.attention_levels)} and model.channels={list(sizes.channels)} differ "
            "in length"
        )
    divisors = (
        ("channels", "norm_groups"),
        ("channels", "motion_heads"),
        ("vae_channels", "vae_norm_groups"),
        ("context_dim", "text_heads"),
        ("image_dim", "image_heads"),
        ("image_encoder_size", "image_patch"),
    )
    last = len(sizes.channels) - 1
    for level, width in enumerate(sizes.channels):
        if (sizes.attention_levels[level] or level == last) and width % sizes.head_dim:
            raise UserError(f"model.channels={width} is not a multiple of model.head_dim={sizes.head_dim}: change it")
    for name, divisor in divisors:
        value, by = getattr(sizes, name), getattr(sizes, divisor)
        for number in value if isinstance(value, tuple) else [value]:
            if number % by:
                raise UserError(f"model.{name}={number} is not a multiple of model.{divisor}={by}: change one of them")


def override(own: GenerationConfig, config: ModelConfig) -> GenerationConfig:
    """Return the sampling settings of a model, overridden by the user's."""
    given = {field.name: getattr(config, field.name) for field in fields(GenerationConfig)}
    return replace(own, **{key: value for key, value in given.items() if value is not None})

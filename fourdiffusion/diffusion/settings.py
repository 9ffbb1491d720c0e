"""Settings of the diffusion model. This module imports no torch."""

from dataclasses import dataclass, field

NEGATIVE_PROMPT = (  # the sampler's, method.md section 5
    "uniform low no texture ugly, boring, bad anatomy, blurry, pixelated,  obscure, unnatural colors, "
    "poor lighting, dull, and unclear."
)
DISTILLATION_NEGATIVE_PROMPT = (  # the 4D stage's, likewise
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
    "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
    "bad proportions"
)


@dataclass
class ModelConfig:
    """Where the weights are, and the sizes of a model made from nothing. The sizes' defaults are the release's."""

    path: str | None = None  # pipeline folder; None makes a fresh, untrained model of the sizes below
    scheduler: str = "ddim"  # ddim | dpm++ | unipc | euler, compared in docs/pipeline.md
    timestep_spacing: str | None = None  # of its steps: leading | trailing | linspace; None: the sampler's own
    num_inference_steps: int = 100
    guidance_scale: float = 5.0  # of the sampler
    negative_prompt: str = NEGATIVE_PROMPT  # of the sampler
    distillation_negative_prompt: str = DISTILLATION_NEGATIVE_PROMPT  # of the 4D stage
    window: int = 8  # frames that the model sees together, as many as it was trained with
    long_video: str = "windows"  # how longer videos are cut: windows | interleaved
    dtype: str = "float32"  # of all networks in generate and fit: float32 | bfloat16 | float16
    storage_dtype: str | None = (
        None  # generate and fit: UNet, motion layers and towers lie in this, and compute in dtype
    )
    channels_last: bool = False  # generate and fit: memory layout of UNet and VAE; convolutions may run faster
    compile: bool = False  # generate and fit: torch.compile of the UNet; minutes at the first step
    offload: str = "none"  # generate and fit: none | model: towers and UNet wait in the CPU's memory for their turn
    image_size: int = 256  # pixels
    channels: list[int] = field(default_factory=lambda: [320, 640, 1280, 1280])
    attention_levels: list[bool] = field(default_factory=lambda: [True, True, True, False])
    blocks_per_level: int = 2
    head_dim: int = 64
    context_dim: int = 1024
    num_image_tokens: int = 16
    resampler_layers: int = 4
    resampler_heads: int = 12
    resampler_head_dim: int = 64
    norm_groups: int = 32  # of the UNet's and the motion layers' group normalisation
    prediction: str = "epsilon"  # what the UNet's output means: epsilon | velocity
    beta_end: float = 0.0120  # of the noise schedule; the release's leaves a little of the clip at its last level
    positions: bool = False  # whether attention is told where in the picture a token stands
    motion_heads: int = 8
    max_frames: int = 32
    latent_channels: int = 4
    vae_channels: list[int] = field(default_factory=lambda: [128, 256, 512, 512])
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

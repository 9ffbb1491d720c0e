"""Settings of a training run. This module imports no torch."""

from dataclasses import dataclass, field

from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.diffusion.settings import ModelConfig

STAGES = ("vae", "clip", "base", "motion")


@dataclass
class TrainConfig:
    """Settings of one training run. Defaults are the paper's where it states them (4Diffusion, section 5)."""

    stage: str = "motion"  # vae | clip | base | motion
    output: str = "runs/train"
    seed: int = 0
    max_steps: int = 30_000
    batch_size: int = 32  # clips of one optimizer step, over all processes and micro-batches
    micro_batch_size: int | None = None  # clips that one process holds at once; null: its whole share, no accumulation
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    lr_warmup_steps: int = 0
    lr_decay_steps: int = 0  # the last steps, over which the learning rate falls to zero
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    cond_drop_prob: float = 0.1  # p of Eq. 7: how often the image prompt is zeroed; the paper does not publish it
    text_drop_prob: float = 0.1  # how often the caption is empty; independent of the image prompt
    cond_drop_camera: bool = True  # zero the camera together with the image prompt
    timestep_shift: float = 1.0  # above 1: more of the noisy steps (Esser et al. 2024, section 5.3.2)
    min_snr_gamma: float | None = None  # bounds the weight of easy steps (after Hang et al. 2023); null: plain loss
    kl_weight: float = 1e-4  # stage=vae
    lpips_weight: float = 0.0  # stage=vae: of LPIPS on SqueezeNet 1.1, for which lpips_weights must hold the files
    lpips_weights: str | None = None  # folder of LPIPS' trunk and heads; null: the libraries' caches
    crop_size: int | None = None  # stage=vae: side of one random crop per step, in pixels; null: whole pictures
    mixed_precision: str = "no"  # no | bf16 | fp16
    frozen_dtype: str = "float32"  # of the networks that the stage does not train; needs mixed_precision to match
    gradient_checkpointing: bool = False
    cpu: bool = False  # even where there is a GPU
    num_workers: int = 0  # data loading processes
    log_every: int = 20
    checkpoint_every: int = 500
    checkpoint_minutes: float = 0.0  # also save after so many minutes; 0: by steps alone
    keep_every: int = 0  # steps between checkpoints that stay, in kept/; 0: none
    validation_every: int = 1000  # validation pictures; 0: none
    validation_data: str | None = None  # folder of clips for these; null: the training clips
    validation_num_inference_steps: int = 25
    validation_guidance_scale: float = 3.0
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # and wandb; log.jsonl is always written
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)

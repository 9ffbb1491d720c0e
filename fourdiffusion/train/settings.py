"""Settings of a training run. This module imports no torch."""

from dataclasses import dataclass, field

from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.diffusion.settings import ModelConfig

STAGES = ("vae", "clip", "base", "motion")
OPTIMIZERS = ("adamw", "adamw_8bit")


@dataclass
class TrainConfig:
    """Settings of one training run. Defaults are the paper's where it states them (4Diffusion, section 5)."""

    stage: str = "motion"  # vae | clip | base | motion
    output: str = "runs/train"
    seed: int = 0
    max_steps: int = 30_000
    batch_size: int = 32  # clips of one optimizer step, over all processes and micro-batches
    micro_batch_size: int | None = None  # clips that one process holds at once; null: its whole share, no accumulation
    optimizer: str = "adamw"  # adamw | adamw_8bit (needs a GPU and the package bitsandbytes)
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    lr_warmup_steps: int = 0
    lr_decay_steps: int = 0  # the last steps, over which the learning rate falls to zero
    max_grad_norm: float = 1.0
    max_loss_rise: float = 5.0  # a mean loss so many times its least ends the run with a diagnosis; 0: never
    ema_decay: float = 0.999
    init_motion: str | None = None  # stage=motion: AnimateDiff's mm_sd_v15_v2.ckpt, a run, or a motion/ folder
    projection_steps: int = 0  # stage=motion: the first steps train the layers' input and output projections alone
    lora_rank: int = 0  # stage=motion: of LoRA on the UNet's attention (needs the package peft); 0: none, as the paper
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
    compile: bool = False  # torch.compile of the UNet with its motion layers; minutes at the first step
    vae_batch_size: int = 8  # pictures that the frozen VAE encodes at a time
    cpu: bool = False  # even where there is a GPU
    num_workers: int = 0  # data loading processes
    log_every: int = 20
    checkpoint_every: int = 500
    checkpoint_minutes: float = 0.0  # also save after so many minutes; 0: by steps alone
    keep_every: int = 0  # steps between checkpoints that stay, in kept/; 0: none
    keep_last: int = 0  # how many of these stay; 0: all
    keep_best: bool = True  # the one of least validation loss stays as kept/best.safetensors
    validation_every: int = 1000  # steps between validation losses and pictures; 0: none
    validation_data: str | None = None  # folder of held-out clips for these; null: the training clips
    validation_clips: int = 4  # of which the validation loss is the mean
    validation_num_inference_steps: int = 25
    validation_guidance_scale: float = 3.0
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # and wandb; log.jsonl is always written
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)

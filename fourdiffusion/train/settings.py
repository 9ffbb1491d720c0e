"""Settings of a training run. This module imports no torch."""

from dataclasses import dataclass, field

from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.diffusion.settings import ModelConfig

STAGES = ("vae", "clip", "base", "motion")


@dataclass
class TrainConfig:
    """Settings of one training run. Defaults are the paper's where it gives them (method.md section 1)."""

    stage: str = "motion"  # vae | clip | base | motion
    output: str = "runs/train"
    seed: int = 0
    max_steps: int = 30_000
    batch_size: int = 2  # clips a process and step; the paper: 32 over 16 GPUs
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    lr_warmup_steps: int = 0
    lr_decay_steps: int = 0  # the last steps, over which the learning rate falls to zero
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    cond_drop_prob: float = 0.1  # of the image prompt, and of the text
    cond_drop_camera: bool = True  # the camera goes where the image prompt goes
    timestep_shift: float = 1.0  # above 1: more of the noisy steps (Esser et al. 2024, section 5.3.2)
    min_snr_gamma: float | None = None  # bounds the weight of easy steps (after Hang et al. 2023); None: plain loss
    kl_weight: float = 1e-4  # stage=vae
    crop_size: int | None = None  # stage=vae: side of one random crop a step, in pixels; None: whole pictures
    mixed_precision: str = "no"  # no | bf16 | fp16
    gradient_checkpointing: bool = False
    cpu: bool = False  # even where there is a GPU
    num_workers: int = 0  # data loading processes
    log_every: int = 20
    checkpoint_every: int = 500
    keep_every: int = 0  # steps between checkpoints that stay, in kept/; 0: none
    validation_every: int = 1000  # validation pictures; 0: none
    validation_data: str | None = None  # folder of clips for these; None: the training clips
    validation_num_inference_steps: int = 25
    validation_guidance_scale: float = 3.0
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # and wandb; log.jsonl is always written
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)

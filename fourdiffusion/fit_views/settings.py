"""Settings of a fit to multi-view video. This module imports no torch."""

from dataclasses import dataclass, field

from fourdiffusion.scene.settings import SceneConfig

BACKGROUNDS = ("auto", "random", "white", "black")


@dataclass
class FitViewsConfig:
    """Settings of a fit to simultaneous videos from known cameras, without a model."""

    views: str = "???"  # clip folder in any supported layout (docs/data.md), or its transforms.json
    output: str = "runs/fit_views"
    azimuths_deg: list[float] | None = None  # of view_0, view_1, ...: for layouts without cameras
    elevation_deg: float | None = None  # of all cameras, likewise; null: the layout's, else 0
    fovy_deg: float | None = None  # vertical field of view, likewise; null: the layout's, else 45
    distance: float | None = None  # from the cameras to the object, likewise; null: the layout's, else 1.1
    num_frames: int | None = None  # use the first N frames; null: all
    frame_stride: int = 1  # take every N-th frame
    held_out: list[int] = field(default_factory=list)  # indices of views that are not fitted but evaluated at the end
    background: str = "auto"  # behind alpha: random (over all colors) | white | black | auto: random with alpha
    recenter: bool = True  # move and scale the cameras' world so that the object fills the scene's cube
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    max_steps: int = 4000
    num_rays: int = 4096  # per step
    foreground_share: float = 0.75  # share of the rays drawn on or near the object; the others anywhere
    lambda_alpha: float = 0.1  # weight of the squared error of opacity against alpha, next to that of colors
    lambda_lpips: float = 0.0  # weight of LPIPS on a random square patch per step; needs weights (docs/weights.md)
    lpips_net: str = "vgg"  # vgg | alex | squeeze
    lpips_weights: str | None = None  # folder of these; null: torchvision's download cache and the package lpips
    patch_size: int = 48  # side of the patch in pixels
    grid_lr: float = 2e-2  # learning rates
    mlp_lr: float = 3e-3
    lr_decay: float = 0.03  # both rates fall exponentially to this fraction
    occupancy_every: int = 16
    checkpoint_minutes: float = 5.0
    log_every: int = 50  # steps; the log has each term's mean over them
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # also wandb; log.jsonl is always written
    scene: SceneConfig = field(default_factory=SceneConfig)

"""Settings of a fit. This module imports no torch."""

from dataclasses import dataclass, field

from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.media.settings import InputVideo
from fourdiffusion.scene.settings import SceneConfig

DSSIM_BORDERS = ("inside", "zeros")
LPIPS_INPUTS = ("signed", "unsigned")
GUIDANCES = ("fourdm", "per_frame", "off")


@dataclass
class DistillationConfig:
    """4D-aware SDS (Eq. 10). Defaults: paper and released configuration, method.md section 2."""

    source: str = "fourdm"  # fourdm | per_frame (the frozen image model, "without 4D-SDS") | off
    weight: float = 1.0
    guidance_scale: float = 5.0
    guidance_scale_end: float | None = None  # linearly towards this over ramp_steps; None: constant
    guidance_rescale: float = 0.2  # r
    pixel_space: bool = (
        False  # compare renders with decoded clean pictures, not latents with latents (not in the paper)
    )
    start_step: int = 0  # first step with SDS
    every: int = 1  # run SDS every N steps
    t_start: float = 0.98  # t is uniform between two ramps, in fractions of the schedule
    t_min_end: float = 0.02
    t_max_end: float = 0.25
    ramp_steps: int = 5000
    resolutions: list[int] = field(default_factory=lambda: [64, 192, 256])  # of the renders, in pixels
    resolution_milestones: list[int] = field(default_factory=lambda: [0, 5000, 10_000])
    elevation_max_deg: float = 5.0  # uniform from 0
    ray_chunk: int = 0  # rays rendered with gradient at a time; 0: all. In chunks a ray is rendered twice
    image_chunk: int = 0  # pictures encoded with gradient at a time; 0: all. In chunks a picture is encoded twice


@dataclass
class LossConfig:
    """Weights of the other terms; 0 turns one off."""

    anchor: bool = True
    anchor_view: int | None = None  # None: the generated view most like the input
    lambda_lpips: float = 200.0  # anchor loss, Eq. 11: LPIPS; without its weights a distance of VAE latents
    lpips_weights: str | None = (
        None  # folder of LPIPS' weights; None: where torchvision and the package lpips keep them
    )
    lpips_input: str = "signed"  # colors reach LPIPS in [-1, 1], as it was trained | unsigned: in [0, 1] (released)
    lambda_dssim: float = 100.0
    dssim_border: str = "inside"  # windows that lie inside the picture | zeros: beyond the border too (released)
    anchor_matte: bool = False  # plain background of the anchor view becomes that of the render (released)
    lambda_rgb: float = 0.0  # squared error on random rays of all generated views (not in the paper)
    rgb_rays: int = 4096
    use_input_view: bool = False  # the input itself stands in for the view generated from its place (not in the paper)
    # The input at its own resolution, on random rays (not in the paper): squared error over all backgrounds, and
    # squared error of the opacity against its matte.
    lambda_input: float = 0.0
    lambda_mask: float = 0.0
    input_rays: int = 4096
    input_max_side: int = 512  # pixels: a larger crop is scaled down to this
    lambda_empty: float = 0.0  # opacity where a generated view shows plain background (not in the paper)
    lambda_distortion: float = 0.0  # mip-NeRF 360, eq. 15, on the photometric rays (not in the paper)
    lambda_orientation: float = 10.0
    lambda_orientation_end: float = 1000.0
    orientation_ramp_steps: int = 5000
    orientation_frames: int = 0  # random frames of a step whose normals are looked at; 0: all. Released: 1
    lambda_opacity: float = 100.0  # binary entropy; the paper: always
    opacity_start_step: int = 0
    lambda_sparsity: float = 100.0  # the paper: only after 10 000 steps
    sparsity_start_step: int = 10_000


@dataclass
class CameraConfig:
    """The camera that the input video was seen through; it looks at the origin, with the world's z up.

    What is not given is as in the training data: the square crop is seen through 45 degrees, from elevation 0. Sizes
    follow from the crop in any case, so that a distance only says how long the world's unit is.
    """

    fovy: float | None = None  # vertical field of view of the whole frame, degrees; null: the crop has 45
    distance: float | None = None  # from the origin, in the world's units; null: unknown, the world is the scene's
    elevation: float | None = None  # degrees above the xy plane; null: 0
    file: str | None = None  # transforms.json that holds the camera; in place of the three above
    view: int | None = None  # number of the input's view in that file; null: the one at azimuth 0, or the only one


@dataclass
class FitConfig(InputVideo):
    """Settings of one fit."""

    output: str = "runs/fit"
    prompt: str = ""  # what the object is
    author: str | None = None  # named in exported files
    license: str | None = None  # named in exported files, for example CC-BY-4.0
    num_views: int = 4
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    max_steps: int = 35_000
    grid_lr: float = 1e-2  # learning rates
    mlp_lr: float = 1e-3
    lr_decay: float = 1.0  # both rates fall exponentially to this fraction
    occupancy_every: int = 16  # steps in which the occupancy grid looks at 8 frames, one or two of them at a time
    checkpoint_minutes: float = 5.0
    preview_minutes: float = 2.0  # 0: none
    log_every: int = 10  # steps; the log has each term's mean over them
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # and wandb; log.jsonl is always written
    camera: CameraConfig = field(default_factory=CameraConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    scene: SceneConfig = field(default_factory=SceneConfig)
    sds: DistillationConfig = field(default_factory=DistillationConfig)
    loss: LossConfig = field(default_factory=LossConfig)

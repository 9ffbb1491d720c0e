"""Settings of the verbs that are one module each. This module imports no torch."""

from dataclasses import dataclass, field

from fourdiffusion.diffusion.settings import ModelConfig


@dataclass
class GenerateConfig:
    """Settings of one sampling run."""

    video: str = "???"  # mp4, gif, webm, a folder or a glob of frames
    output: str = "runs/generate"
    prompt: str = ""  # what the object is
    num_frames: int = 8
    num_views: int = 4
    elevation_deg: float = 0.0  # of the generated views
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    alpha: str = "auto"  # what tells the object from the background: auto | file | plain | rembg
    crop: str = "object"  # object: framed as in the training data | frame: the frame as it is
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class RenderConfig:
    """Which pictures of a scene to make."""

    scene: str = "???"  # the run folder of a fit, or its scene/
    output: str | None = None  # folder for the pictures; the run folder if not given
    size: int = 128  # side of a picture in pixels
    orbit_pictures: int = 72  # of the orbit video, over one turn
    num_azimuths: int = 8  # rows of the contact sheet
    elevation_deg: float = 0.0  # from where the orbit and the contact sheet look
    num_frames: int = 8  # moments shown, where the run does not hold its input's
    device: str = "auto"  # auto | cpu | cuda


@dataclass
class ConvertConfig:
    """``imagedream`` (and ``motion``) go into a pipeline folder, the motion layers of ``model.path`` into a file."""

    imagedream: str | None = None  # sd-v2.1-base-4view-ipmv.pt or .safetensors, or an ImageDream diffusers folder
    motion: str | None = None  # 4dm.ckpt or .safetensors; null: untrained motion layers, for training
    output: str = "???"  # the pipeline folder to make; on the way back a .ckpt or .safetensors file
    tokenizer: str | None = None  # folder of CLIP's vocab.json and merges.txt; null: looked for beside the file
    dtype: str = "float32"  # of the written weights: float32 | bfloat16 | float16
    # Sizes of the release; on the way back model.path is the pipeline folder whose motion layers are written.
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class DoctorConfig:
    """Whose weights to look for."""

    model: ModelConfig = field(default_factory=ModelConfig)

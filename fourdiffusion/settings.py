"""Settings of the verbs that are one module each. This module imports no torch."""

from dataclasses import dataclass, field

from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.media.settings import InputVideo


@dataclass
class GenerateConfig(InputVideo):
    """Settings of one sampling run."""

    output: str = "runs/generate"
    prompt: str = ""  # describes the object
    num_views: int = 4
    elevation_deg: float = 0.0  # of the generated views
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class RenderConfig:
    """Render pictures of a scene along a camera path:

    overview: orbit.mp4, contact_sheet.png and the input beside the scene | still: one picture | fixed: a static
    camera over time | orbit: around the object at one time | orbit_time: around it over time |
    bullet_time: over time, with an orbit at a stopped time | FILE.json: cameras and times of a file
    """

    scene: str = "???"  # the run folder of a fit, or its scene/
    output: str | None = None  # folder of overview, file or folder of the others; null: in the run folder
    size: int = 128  # height of a picture in pixels
    orbit_pictures: int = 72  # of overview's orbit video, over one turn
    num_azimuths: int = 8  # rows of overview's contact sheet
    elevation_deg: float = 0.0  # of the camera
    num_frames: int = 8  # times to show if the run does not have its input's
    device: str = "auto"  # auto | cpu | cuda
    path: str = "overview"  # overview | still | fixed | orbit | orbit_time | bullet_time | FILE.json
    format: str | None = None  # mp4 | webm | gif | png; null: as output ends, else png for a still and mp4
    channel: str = "rgb"  # rgb | alpha | depth | normal
    background: str = "white"  # white | gray | black | #rrggbb | transparent (webm, gif and png)
    width: int | None = None  # of a picture in pixels; null: size
    azimuth_deg: float = 0.0  # start of the path; 0 is the input view
    distance: float = 1.1  # camera distance from the origin, scene units
    time: float | None = None  # in [0, 1], of still and orbit (null: 0), and of the stop of bullet_time (null: 0.5)
    fps: float = 12.0  # pictures per second of a video
    seconds: float | None = None  # length of a video; null: 4 seconds, or the file's
    turns: float = 1.0  # orbits around the object; negative: reversed
    between_frames: bool = False  # render times between the run's frames, which are not fitted


@dataclass
class ConvertConfig:
    """Convert ``imagedream`` (and ``motion``) to a pipeline folder, or motion layers of ``model.path`` to a file."""

    imagedream: str | None = None  # sd-v2.1-base-4view-ipmv.pt or .safetensors, or an ImageDream diffusers folder
    motion: str | None = None  # 4dm.ckpt or .safetensors; null: untrained motion layers, for training
    output: str = "???"  # the pipeline folder to write; for export a .ckpt or .safetensors file
    tokenizer: str | None = None  # folder of CLIP's vocab.json and merges.txt; null: searched next to the file
    dtype: str = "float32"  # of the written weights: float32 | bfloat16 | float16
    # Sizes of the release; for export model.path is the pipeline folder of the motion layers.
    model: ModelConfig = field(default_factory=ModelConfig)
    checkpoint: str | None = None  # of train stage=motion, or its run: output becomes a folder of motion layers


@dataclass
class DoctorConfig:
    """Model whose weights are searched, and the output format."""

    json: bool = False  # print JSON; also --json
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class AppConfig:
    """A page in the browser where videos become scenes."""

    output: str = "runs/app"  # folder of the jobs' runs
    host: str = "127.0.0.1"  # 0.0.0.0 lets other machines in, without a password
    port: int = 7860  # the page is at http://host:port
    jobs: int = 1  # at a time; the others wait


@dataclass
class ExportConfig:
    """What of a scene to write, and how. Formats:

    glb: one animated GLB, a mesh a frame | glb_frames, obj, ply: a file a frame | splats: Gaussian PLY sequence |
    html: one page that shows it offline | usd: a mesh with time samples | images: RGBA, depth and alpha PNGs |
    nerfstudio: a dataset of renders
    """

    scene: str = "???"  # the run folder of a fit, or its scene/
    format: str = "glb"  # glb | glb_frames | obj | ply | splats | html | usd | images | nerfstudio
    output: str | None = None  # file (glb, html, usd) or folder (others); null: under export/ in the run folder
    num_frames: int | None = None  # evenly spaced over the clip; null: the run's frames, 8 where it does not say
    fps: float = 8.0  # of the animation
    animation: str = "frames"  # of glb. frames: a mesh a frame | morph: one mesh that moves, where tracking finds one
    resolution: int = 96  # grid points along the longest side of the occupied space
    iso_level: float | None = None  # density of the surface; null: the one with the renderer's silhouettes
    min_component: float = 0.05  # smaller loose parts are removed, as a share of the largest part over all frames
    texture_size: int | None = None  # side of a texture baked for each frame of glb, in texels; null: vertex colors
    scale: float = 1.0  # meters a scene unit, of meshes and splats
    author: str | None = None  # named in the file; null: the run's
    license: str | None = None  # named in the file; null: the run's
    size: int = 256  # side of images and nerfstudio pictures in pixels
    azimuth_deg: float = 0.0  # of the camera of images
    elevation_deg: float = 0.0  # of the camera of images
    num_views: int = 24  # cameras of nerfstudio
    device: str = "auto"  # auto | cpu | cuda


@dataclass
class ViewConfig:
    """Show a scene in the browser: live from a fit that runs or has ended, or as one HTML file (html=true)."""

    scene: str = "???"  # the run folder of a fit, running or finished, or a scene/
    beside: list[str] = field(default_factory=list)  # more of them, shown to the right under the same camera and time
    html: bool = False  # write one file that shows the scene offline, and end
    output: str | None = None  # of html=true; null: export/scene.html in the run folder
    host: str = "127.0.0.1"  # 0.0.0.0 lets other machines in, without a password
    port: int = 8080  # the next free one if it is taken
    size: int = 256  # height of a picture in pixels while the camera rests
    fps: float = 8.0  # frames of the clip a second at speed 1
    moving_seconds: float = 0.15  # a picture may take while something moves; the resolution adapts
    num_frames: int = 8  # of the clip, where the run does not hold its input's
    device: str = "auto"  # auto | cpu | cuda

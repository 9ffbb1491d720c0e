"""Settings of `data render`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fourdiffusion.errors import UserError, check_ranges

ENGINES = ("cycles", "eevee", "opengl")
PARTS = ("start", "middle", "most_motion", "whole")
LIGHT_KINDS = ("sun", "area")
DEPTH_UNIT = 0.0001  # scene units per step of the 16-bit depth files, as in `clips.py`


@dataclass
class LightConfig:
    """One light, fixed in the world. ``strength`` is the radiance of a white surface that faces it."""

    azimuth_deg: float = 0.0  # position: azimuth 0 is in front of the object
    elevation_deg: float = 45.0
    strength: float = 0.5
    angle_deg: float = 30.0  # angular diameter seen from the object; larger is softer
    kind: str = "sun"  # sun: parallel rays | area: a square at 4 scene units; the opengl engine draws both as sun


def three_lights() -> list[LightConfig]:
    """Return a key light, a fill light and a back light."""
    return [
        LightConfig(azimuth_deg=35.0, elevation_deg=45.0, strength=0.55, angle_deg=40.0),
        LightConfig(azimuth_deg=-50.0, elevation_deg=20.0, strength=0.25, angle_deg=60.0),
        LightConfig(azimuth_deg=175.0, elevation_deg=40.0, strength=0.35, angle_deg=40.0),
    ]


@dataclass
class RenderAssetsConfig:
    """Multi-view clips of animated assets. The defaults are the paper's if it states them."""

    assets: str = "???"  # a folder of assets (searched recursively) or a text file with one path a line
    output: str = "???"  # folder of the clips; created if missing
    manifest: str = ""  # table of captions, licenses, authors and sources; empty: MANIFEST.tsv in the assets folder
    limit: int = 0  # render only the first N assets; 0: all
    shard: str = "0/1"  # k/n: this job renders every n-th asset, starting at k

    # Engine
    engine: str = "cycles"  # cycles | eevee (Blender: all formats) | opengl (no Blender: glTF and GLB only)
    blender: str = ""  # a Python with bpy, or a Blender program; empty: `blender` on PATH, else this Python
    device: str = "cpu"  # of Cycles: cpu | cuda | optix | hip | oneapi | metal
    samples: int = 16  # per pixel, of Cycles and EEVEE
    denoise: bool = False  # of Cycles, by OpenImageDenoise: 0.6 s an image on one CPU core, more than the samples
    threads: int = 0  # of each Blender process; 0: all cores
    supersampling: int = 3  # of opengl: N x N samples per pixel, N odd

    # Images
    width: int = 256  # pixels
    height: int = 256  # pixels
    depth: bool = False  # also write the distance along each pixel's ray, 16-bit
    normals: bool = False  # also write surface normals in world axes
    motion_vectors: bool = False  # also write the motion to the next frame in pixels

    # Cameras
    num_views: int = 32  # cameras at equal azimuths from a random offset
    random_offset: bool = True  # false: the first camera is at azimuth 0
    num_random_views: int = 0  # further cameras at random azimuth and elevation, for the input video
    elevation_deg: list[float] = field(default_factory=lambda: [0.0, 0.0])  # range at equal azimuths, one draw per clip
    random_elevation_deg: list[float] = field(default_factory=lambda: [-5.0, 30.0])  # range, one draw per random camera
    distance: list[float] = field(default_factory=lambda: [1.1, 1.1])  # range in scene units, drawn once per clip
    fovy_deg: float = 45.0  # vertical field of view
    fovy_jitter_deg: float = 0.0  # uniform in plus or minus this, drawn once per clip

    # Time
    animations: str = "all"  # all | first | longest | a pattern of names such as "walk*"
    num_frames: int = 32
    fps: float = 24.0  # of the clock that `stride` counts in
    stride: int = 1  # clock ticks between two rendered frames
    part: str = "most_motion"  # start | middle | most_motion of an animation that is longer than the clip | whole

    # Object
    cube_side: float = 0.8  # side of the cube that the object fills over all frames, scene units
    keep_in_frame: bool = True  # shrink the object further if a part of it would leave the frame
    frame_margin: float = 0.05  # share of the half frame that keep_in_frame leaves free
    heading_deg: float = 0.0  # rotate the object about the vertical axis: for assets whose front is not +Z
    random_heading: bool = False  # rotate it by a random angle too: with random_offset=false, view 0 shows any side
    min_movement: float = 0.02  # `static` below it: largest vertex displacement over the first frame's diagonal
    max_travel: float = 3.0  # `leaves_frame` above it: extent over all frames over that of one frame
    cull_backfaces: bool = False  # cull back faces of single-sided materials, as glTF viewers do; Cycles does not
    max_seconds: float = 60.0  # longer animations are cut here before a part is chosen

    # Light
    lights: list[LightConfig] = field(default_factory=three_lights)
    ambient: float = 0.45  # radiance of a white surface without a light
    shadows: bool = True  # of the lights; Blender engines only
    hdri: str = ""  # environment map (.hdr, .exr) instead of `ambient`; Blender engines only

    # Batch
    seed: int = 0  # of the cameras, which depend only on it and on the clip's uid
    num_workers: int = 1  # parallel processes, one object each
    timeout_s: float = 300.0  # to open an asset, to measure an animation, or to render one frame from all cameras
    retry_failed: bool = False  # retry assets that failed before

    def __post_init__(self) -> None:
        # The command line passes lights as plain mappings.
        self.lights = [LightConfig(**light) if isinstance(light, dict) else light for light in self.lights]


# The settings that change the pixels: all clips of a folder share them.
PIXEL_SETTINGS = (
    "engine", "samples", "denoise", "supersampling", "width", "height", "depth", "normals", "motion_vectors",
    "num_views", "random_offset", "num_random_views", "elevation_deg", "random_elevation_deg", "distance", "fovy_deg",
    "fovy_jitter_deg", "animations", "num_frames", "fps", "stride", "part", "cube_side", "keep_in_frame",
    "frame_margin", "heading_deg", "random_heading", "cull_backfaces", "min_movement", "max_travel", "max_seconds",
    "lights", "ambient", "shadows", "hdri", "seed",
)  # fmt: skip


def shard_of(text: str) -> tuple[int, int]:
    """Return (k, n) of "k/n"; UserError unless 0 <= k < n."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise UserError(f"shard={text}: give k/n with k from 0 to n - 1, for example shard=0/4")
    return int(first), int(count)


def validate(config: RenderAssetsConfig) -> None:
    """Raise UserError for the first setting that is out of range."""
    for name in ("assets", "output"):
        if getattr(config, name) in ("", "???"):
            raise UserError(f"{name} is not set; give it, for example {name}=data/{name}")
    for name, choices in (("engine", ENGINES), ("part", PARTS)):
        if getattr(config, name) not in choices:
            raise UserError(f"{name}={getattr(config, name)} is unknown; choose one of {', '.join(choices)}")
    shard_of(config.shard)
    whole = {"width": 8, "height": 8, "num_views": 1, "num_random_views": 0, "num_frames": 2, "stride": 1,
             "samples": 1, "supersampling": 1, "num_workers": 1, "seed": 0, "limit": 0}  # fmt: skip
    for name, low in whole.items():
        if getattr(config, name) < low:
            raise UserError(f"{name}={getattr(config, name)} is too small; give at least {low}")
    for name in ("elevation_deg", "random_elevation_deg", "distance"):
        value = getattr(config, name)
        if len(value) != 2 or value[0] > value[1]:
            raise UserError(f"{name}={list(value)}: give [lowest, highest]")
    check_ranges(
        {
            "elevation_deg[0]": (config.elevation_deg[0], -89, 89),
            "elevation_deg[1]": (config.elevation_deg[1], -89, 89),
            "random_elevation_deg[0]": (config.random_elevation_deg[0], -89, 89),
            "random_elevation_deg[1]": (config.random_elevation_deg[1], -89, 89),
            "distance[0]": (config.distance[0], 0.1, 50),
            "distance[1]": (config.distance[1], 0.1, 50),
            "fovy_deg": (config.fovy_deg, 1, 150),
            "fovy_jitter_deg": (config.fovy_jitter_deg, 0, config.fovy_deg / 2),
            "fps": (config.fps, 0.1, 1000),
            "cube_side": (config.cube_side, 0.01, 2),
            "frame_margin": (config.frame_margin, 0, 0.9),
            "timeout_s": (config.timeout_s, 0.1, 1e6),
            "max_travel": (config.max_travel, 1, 1e6),
            "max_seconds": (config.max_seconds, 0.1, 1e6),
            "min_movement": (config.min_movement, 0, 1),
            "ambient": (config.ambient, 0, 100),
        }
    )
    for k, light in enumerate(config.lights):
        if light.kind not in LIGHT_KINDS:
            raise UserError(f"lights[{k}].kind={light.kind} is unknown; choose one of {', '.join(LIGHT_KINDS)}")
    reach = config.distance[1] + 1
    if config.depth and reach > 65535 * DEPTH_UNIT:
        raise UserError(
            f"distance={list(config.distance)} with depth=true: 16-bit depth reaches 6.5; lower it below 5.5"
        )
    if config.hdri and not Path(config.hdri).is_file():
        raise UserError(f"hdri={config.hdri}: no such file")
    if config.engine == "opengl":
        if config.supersampling % 2 == 0:
            raise UserError(f"supersampling={config.supersampling} is even; give 1, 3 or 5")
        if config.hdri:
            raise UserError(f"hdri={config.hdri} needs a Blender engine; set engine=cycles")
        if len(config.lights) > 8:
            raise UserError(f"lights has {len(config.lights)} entries; engine=opengl draws at most 8")

"""Settings of the verb `evaluate`, and what a protocol is. This module imports no torch."""

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fourdiffusion.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
LPIPS_NETS = ("vgg", "alex", "squeeze")
IMAGE_METRICS = ("psnr", "ssim", "gmsd", *(f"lpips_{net}" for net in LPIPS_NETS), "clip_i")
VIDEO_METRICS = (
    "temporal_error", "warped_error", "clip_c", "clip_c_all", "clip_t", "clip_text", "alpha_iou", "depth_error",
    "cross_view_error", "fvd",
)  # fmt: skip
SURFACE_METRICS = ("chamfer", "f_score", "cd_3d", "cd_4d", "cd_motion")  # of folders of meshes
OTHER_METRICS = ("fid_vid", "dreamsim")  # named by a source; this evaluator reports them as missing
CHOICES = {
    "frame_choice": ("number", "index"),
    "frame_mismatch": ("error", "first"),
    "view_mismatch": ("error", "shared"),
    "object_mismatch": ("error", "shared"),
    "resize_filter": ("bicubic", "bilinear", "box", "lanczos", "nearest"),
    "alpha": ("composite", "drop", "refuse"),
    "data_range": ("fixed", "extent"),
    "lpips_variant": ("lpips", "torchmetrics"),
    "flow": ("estimated", "true"),
    "clip_distance": ("cosine", "spherical"),
    "fvd": ("", "set", "consistent4d", "mean_only"),
    "fvd_of_one": ("refuse", "mean_only"),
    "fvd_resize": ("bicubic", "short_side"),
    "clip_tail": ("keep", "drop", "reversed"),
    "averaging": ("objects", "clips"),
    "mesh_alignment": ("none", "similarity", "axis_scales"),
}
BASELINES = ("copied_input", "base_model", "static_scene")
FVD_AXES = ("frames", "views", "diagonal", "raster")


@dataclass
class ProtocolConfig:
    """What is compared with what, and how. ``sources`` says for every setting where it comes from, or "ours"."""

    name: str = "synthetic"  # of the file in configs/protocol
    description: str = ""  # one line
    frames: int | None = None  # frames of a video that are compared, from its beginning; null: all
    frame_choice: str = "number"  # which frames belong together: number (in the file name) | index (i-th with i-th)
    frame_mismatch: str = "error"  # other frames on one side: error | first (those of the shorter side)
    views: list[str] = field(default_factory=list)  # views compared, in this order; empty: all
    view_mismatch: str = "error"  # a view that one side lacks: error | shared (compare what both have)
    object_mismatch: str = "error"  # an object that one side lacks: error | shared (compare what both have)
    check_pairing: bool = True  # refuse predictions whose views or color channels look exchanged
    size: int | None = None  # pictures are resized to this side before anything is measured; null: as they are
    resize_filter: str = "bicubic"  # of Pillow: bicubic | bilinear | box | lanczos | nearest
    background: float = 1.0  # gray level below transparent pixels; 1 is white
    alpha: str = "composite"  # composite (on the background) | drop (keep hidden colors) | refuse (transparent pixels)
    bgr: bool = False  # channels reach the networks in the order blue, green, red
    metrics: list[str] = field(
        default_factory=lambda: ["psnr", "ssim", "gmsd", "lpips_alex", "lpips_squeeze", "temporal_error"]
    )  # names in docs/evaluate.md: psnr, ssim, lpips_vgg, clip_i, clip_c, temporal_error, fvd, chamfer, and others
    data_range: str = "fixed"  # of PSNR and SSIM: fixed (1) | extent (maximum minus minimum of each picture)
    lpips_variant: str = "lpips"  # lpips | torchmetrics, see metrics.lpips
    lpips_spatial: bool = False  # average LPIPS over maps enlarged to the picture's size
    clip_encoder: str = "openai/clip-vit-base-patch32"  # folder or hub id of the image encoder of clip_i and clip_c
    flow: str = "estimated"  # of warped_error: estimated (TV-L1 on the reference) | true (motion vectors of a clip)
    clip_distance: str = "cosine"  # cosine (similarity) | spherical (distance, 2 arcsin(|a - b| / 2)^2)
    fvd: str = ""  # formula, see metrics.frechet: set | consistent4d | mean_only; empty: no FVD is taken
    fvd_of_one: str = "refuse"  # a set-level FVD of one clip: refuse | mean_only
    fvd_resize: str = "short_side"  # how clips reach 224 x 224: bicubic | short_side, see metrics.i3d
    fvd_axes: list[str] = field(default_factory=lambda: ["frames"])  # clips run along frames, views, diagonal, raster
    clip_length: int | None = None  # videos are split into clips of so many frames, a rest is dropped; null: one clip
    clip_tail: str = "keep"  # videos shorter than clip_length: keep | drop | reversed (padded by their reversed tail)
    averaging: str = "objects"  # objects (frames, then views, then objects) | clips (all videos alike)
    mesh_points: int = 100_000  # sampled on every mesh
    mesh_icp_points: int = 10_000  # of them that the alignment looks at
    mesh_alignment: str = "similarity"  # none | similarity (one scale) | axis_scales (ActionBench's code), see metrics
    f_threshold: float = 0.05  # distance below which the F-score counts a point as found, in the meshes' units
    weights: dict[str, str] = field(
        default_factory=dict
    )  # first digits of the SHA-256 that a file of weights must have, by its name; another file is refused
    sources: dict[str, str] = field(
        default_factory=dict
    )  # where each setting comes from: file:lines @commit, thread, or ours


@dataclass
class EvaluateConfig:
    """Predictions are compared with a reference under a named protocol.

    Either side is a folder of objects (object/view_0/000.png, object/view_0.mp4, object.mp4) or a clip folder; a
    prediction may also be a run folder of fit or generate, or a folder of such runs.
    """

    prediction: str = "???"  # run folder, clip folder, or a folder of objects
    reference: str = "???"  # the ground truth: a clip folder, a folder of clips, or a folder of objects
    output: str | None = None  # folder for metrics.json, tables and pictures; the prediction's folder if not given
    device: str = "auto"  # auto | cpu | cuda: where scenes are rendered and networks run
    weights: str | None = None  # folder of the networks' weights; null: only the libraries' own caches
    feature_cache: str = "auto"  # folder in which networks' features are kept by content; auto: the user's cache; off
    compare: list[str] = field(default_factory=list)  # metrics.json of other methods: more rows of the table
    # Rows beside a run's: copied_input (the input at every view, always there) | base_model (the run's model without
    # motion layers, frame by frame) | static_scene (a scene a frame, fitted to the generated views of it alone).
    baselines: list[str] = field(default_factory=lambda: ["copied_input"])
    baseline_steps: int = 400  # of each static scene
    page: bool = False  # also write report.html: videos side by side and curves over frames, in one file
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)  # what is compared, and how


def check_protocol(protocol: ProtocolConfig) -> None:
    """UserError for a value that no setting of a protocol takes."""
    for name, allowed in CHOICES.items():
        value = getattr(protocol, name)
        if value not in allowed:
            raise UserError(f"protocol.{name}={value!r}: give {', '.join(repr(each) for each in allowed)}")
    known = (*IMAGE_METRICS, *VIDEO_METRICS, *SURFACE_METRICS, *OTHER_METRICS)
    for name, values, allowed in (
        ("metrics", protocol.metrics, known),
        ("fvd_axes", protocol.fvd_axes, FVD_AXES),
    ):
        for value in values:
            if value not in allowed:
                raise UserError(f"protocol.{name} holds {value!r}: give some of {', '.join(allowed)}")
        if not values:
            raise UserError(f"protocol.{name} is empty: give some of {', '.join(allowed)}")
    if protocol.f_threshold <= 0:
        raise UserError(f"protocol.f_threshold={protocol.f_threshold}: give a distance above 0")
    for name in ("frames", "size", "clip_length", "mesh_points", "mesh_icp_points"):
        value = getattr(protocol, name)
        if value is not None and value < 1:
            raise UserError(f"protocol.{name}={value}: give at least 1, or null")
    if not 0 <= protocol.background <= 1:
        raise UserError(f"protocol.background={protocol.background}: give a gray level from 0 to 1")
    if "fvd" in protocol.metrics and not protocol.fvd:
        raise UserError("protocol.metrics holds fvd but no formula: name one, protocol.fvd=set|consistent4d|mean_only")
    if protocol.fvd and protocol.fvd != "set" and protocol.fvd_axes != ["frames"]:
        raise UserError(f"protocol.fvd={protocol.fvd} is known along frames only: set protocol.fvd_axes=[frames]")


def read_protocol(path: Path) -> ProtocolConfig:
    """Return the protocol in a YAML file. UserError names an unknown key, a wrong type or value."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is no protocol that can be read ({reason}): give a YAML file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: a protocol is a YAML file of KEY: VALUE")
    types = typing.get_type_hints(ProtocolConfig)
    for key, value in content.items():
        if key not in types:
            raise UserError(f"{path}: there is no setting {key!r} of a protocol: give some of {', '.join(types)}")
        if not _fits(value, types[key]):
            raise UserError(f"{path}: {key} is {value!r}: expected {types[key]}")
    protocol = ProtocolConfig(**content)
    check_protocol(protocol)
    return protocol


def load_protocol(name: str) -> ProtocolConfig:
    """Return a protocol that ships, by its name. UserError for an unknown one."""
    folders = [PACKAGE / "shipped" / "configs" / "protocol", PACKAGE.parent / "configs" / "protocol"]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    if not (folder / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise UserError(f"there is no protocol {name!r}: give one of {known}")
    return read_protocol(folder / f"{name}.yaml")


def protocol_hash(protocol: ProtocolConfig) -> str:
    """Return a SHA-256 of what the protocol does; its description and sources leave it alone."""
    settings = dataclasses.asdict(protocol)
    for key in ("name", "description", "sources"):
        del settings[key]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def changed_settings(protocol: ProtocolConfig) -> list[str]:
    """Return SETTING=VALUE of everything in which a protocol differs from the shipped one of its name."""
    try:
        shipped = dataclasses.asdict(load_protocol(protocol.name))
    except UserError:
        return []
    own = dataclasses.asdict(protocol)
    skipped = ("name", "description", "sources")
    return [f"{key}={own[key]}" for key in own if key not in skipped and own[key] != shipped[key]]


def _fits(value: Any, kind: Any) -> bool:
    """Whether a YAML value is of one of the simple types of ``ProtocolConfig``."""
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())
    allowed = typing.get_args(kind) or (kind,)
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, tuple(allowed)) or (float in allowed and isinstance(value, int))

"""Measure one video against its reference as a protocol says: pictures, networks, clips.

Letters: F frames, H W pixels of what was read, S the side of what is measured, N clips, D features.
"""

import importlib.metadata
import math
import platform
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fourdiffusion import __version__
from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.cache import FeatureCache
from fourdiffusion.evaluate.settings import LPIPS_NETS, ProtocolConfig
from fourdiffusion.metrics.flow import estimate_flow, visible_along
from fourdiffusion.metrics.geometry import alpha_iou, depth_error
from fourdiffusion.metrics.i3d import MIN_FRAMES, find_i3d, load_i3d, resize_clip
from fourdiffusion.metrics.image import extent, gmsd, psnr, ssim
from fourdiffusion.metrics.lpips import TRUNKS, Lpips, find_lpips, read_lpips
from fourdiffusion.metrics.similarity import (
    ImageEncoder,
    adjacent_consistency,
    all_pairs_consistency,
    find_encoder,
    spherical_distance,
)
from fourdiffusion.metrics.video import temporal_error, warped_temporal_error
from fourdiffusion.metrics.weights import Missing, sha256

CHUNK = 4  # frames measured at once: bounds memory
UNAVAILABLE = {
    "fid_vid": Missing("fid_vid", "needs Inception v3, which this evaluator has not", "see the protocol's source"),
    "dreamsim": Missing("dreamsim", "needs an ensemble that this evaluator has not", "see the protocol's source"),
}


@dataclass
class Networks:
    """What a protocol needs beside arithmetic."""

    lpips: dict[str, Lpips] = field(default_factory=dict)
    encoder: ImageEncoder | None = None
    i3d: torch.nn.Module | None = None
    missing: list[Missing] = field(default_factory=list)
    weights: dict[str, dict[str, str]] = field(default_factory=dict)  # {metric: {file name: sha256}}
    device: torch.device | None = None
    cache: FeatureCache = field(default_factory=lambda: FeatureCache(None))  # of features


def load_networks(protocol: ProtocolConfig, folders: list[str], device: torch.device | None = None) -> Networks:
    """Return the networks that a protocol names; one that is not on this disk is listed under ``missing``."""
    networks = Networks(device=device)
    for net in LPIPS_NETS:
        if f"lpips_{net}" not in protocol.metrics:
            continue
        files = find_lpips(net, folders)
        if isinstance(files, Missing):
            networks.missing.append(files)
            continue
        measure = read_lpips(files, net, protocol.lpips_variant, protocol.lpips_spatial).to(device)
        # half the time on the CPU: the pictures of ``prepare`` lie so in memory
        networks.lpips[net] = measure.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        networks.weights[f"lpips_{net}"] = _checked(list(files), protocol)
    if {"clip_i", "clip_c", "clip_c_all", "clip_t", "clip_text"} & set(protocol.metrics):
        folder = find_encoder(protocol.clip_encoder, folders)
        if isinstance(folder, Missing):
            networks.missing.append(folder)
        else:
            name = protocol.clip_encoder.rstrip("/").rsplit("/", 1)[-1]
            networks.encoder = ImageEncoder(folder, name, device)
            kept = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
            networks.weights[f"clip [{name}]"] = _checked(kept, protocol)
    if "fvd" in protocol.metrics:
        path = find_i3d(folders)
        if isinstance(path, Missing):
            networks.missing.append(path)
        else:
            networks.i3d = load_i3d(path).to(device)
            networks.weights["fvd"] = _checked([path], protocol)
    networks.missing += [missing for name, missing in UNAVAILABLE.items() if name in protocol.metrics]
    return networks


def _checked(files: list[Path], protocol: ProtocolConfig) -> dict[str, str]:
    """Return the SHA-256 of files by their names. UserError for one that is not what the protocol measures with."""
    found = {path.name: sha256(path) for path in files}
    for path in files:
        if not found[path.name].startswith(expected := protocol.weights.get(path.name, "")):
            raise UserError(
                f"{path} has SHA-256 {found[path.name][:12]}..., {protocol.name} measures with {expected[:12]}...: get "
                "the published file, or name yours, protocol.weights={}"
            )
    return found


# ---- pictures -------------------------------------------------------------------------------------------------------


@dataclass
class Pictures:
    """One side of a comparison, ready to be measured."""

    rgb: Tensor  # [F, 3, S, S] in [0, 1]
    alpha: Tensor | None = None  # [F, S, S] in [0, 1]; None where the pictures are opaque
    depth: Tensor | None = None  # [F, S, S], distance along the pixel's unit ray, inf: no surface; None: unknown
    motion: Tensor | None = None  # [F - 1, 2, S, S], pixels to the next of these frames; None: unknown
    caption: str = ""


def prepare(rgba: np.ndarray, protocol: ProtocolConfig, path: Path) -> Pictures:
    """Return frames, uint8 [F, H, W, 4] with straight alpha, as the protocol wants to see them.

    Composites or drops alpha first, then resizes each 8-bit picture with Pillow's filter, as the released codes do.
    UserError for transparent pixels under alpha=refuse.
    """
    alpha = rgba[..., 3]
    opaque = bool((alpha == 255).all())
    if protocol.alpha == "refuse" and not opaque:
        raise UserError(f"{path} has transparent pixels: composite them, or name the rule: protocol.alpha=composite")
    rgb = rgba[..., :3]
    if not opaque and protocol.alpha == "composite":
        weight = alpha[..., None].astype(np.float32) / 255
        rgb = (rgb * weight + 255 * protocol.background * (1 - weight)).round().astype(np.uint8)
    if protocol.size is not None and rgb.shape[1:3] != (protocol.size, protocol.size):
        rgb = np.stack([_resize(frame, protocol) for frame in rgb])
        alpha = alpha if opaque else np.stack([_resize(frame, protocol) for frame in alpha])
    if protocol.bgr:
        rgb = np.ascontiguousarray(rgb[..., ::-1])
    shown = None if opaque else torch.from_numpy(alpha.astype(np.float32) / 255)
    return Pictures(torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float() / 255, shown)


def thumbnail(pictures: Pictures) -> np.ndarray:
    """Return the first frame, float [48, 48, 3] in [0, 1]."""
    small = torch.nn.functional.interpolate(pictures.rgb[:1], (48, 48), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def _resize(frame: np.ndarray, protocol: ProtocolConfig) -> np.ndarray:
    assert protocol.size is not None
    kind = Image.Resampling[protocol.resize_filter.upper()]
    return np.asarray(Image.fromarray(frame).resize((protocol.size, protocol.size), kind))


# ---- one video ------------------------------------------------------------------------------------------------------


@dataclass
class VideoResult:
    """What was measured of one video."""

    per_frame: dict[str, list[float]]
    per_view: dict[str, float]  # the means of per_frame, and what belongs to the video as a whole
    logits: tuple[Tensor, Tensor] | None = None  # predicted and true, each [N, 400]
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def measure_video(
    prediction: Pictures, reference: Pictures, protocol: ProtocolConfig, networks: Networks
) -> VideoResult:
    """Measure one video, a few frames at a time. UserError where the sides differ in size."""
    if prediction.rgb.shape != reference.rgb.shape:
        a, b = (f"{pictures.rgb.shape[-1]} x {pictures.rgb.shape[-2]}" for pictures in (prediction, reference))
        raise UserError(f"the prediction is {a} pixels, the reference {b}: name one size, protocol.size=256")
    chunks = zip(prediction.rgb.split(CHUNK), reference.rgb.split(CHUNK), strict=True)
    per_frame: dict[str, list[float]] = {}
    features: list[tuple[Tensor, Tensor]] = []
    for a, b in chunks:
        for name, values in _image_metrics(a, b, protocol, networks).items():
            per_frame.setdefault(name, []).extend(values.tolist())
        if networks.encoder is not None:
            features.append((_encoded(a, networks), _encoded(b, networks) if "clip_i" in protocol.metrics else a[:0]))
    side = min(prediction.rgb.shape[-2:])
    notes = [
        f"lpips_{net}: missing (pictures of {side} pixels): it needs {TRUNKS[net].min_side}, set protocol.size"
        for net in networks.lpips
        if side < TRUNKS[net].min_side
    ]
    if "alpha_iou" in protocol.metrics:
        if prediction.alpha is None or reference.alpha is None:
            notes.append("alpha_iou: missing (one side is opaque): give both with alpha")
        else:
            per_frame["alpha_iou"] = alpha_iou(prediction.alpha, reference.alpha).tolist()
    if "depth_error" in protocol.metrics:
        if prediction.depth is None or reference.depth is None:
            notes.append("depth_error: missing (depth is known of scenes, against clips that hold depth, uncropped)")
        elif bool((values := depth_error(prediction.depth, reference.depth)).isfinite().all()):
            per_frame["depth_error"] = values.tolist()
        else:
            notes.append("depth_error: missing (a frame shares no surface with the truth)")
    per_video: dict[str, float] = {}
    if "warped_error" in protocol.metrics and len(prediction.rgb) > 1:
        name, value, note = _warped(prediction, reference, protocol, networks.cache)
        per_video |= {name: value} if math.isfinite(value) else {}
        notes += [note] if note else []
    if "temporal_error" in protocol.metrics and len(prediction.rgb) > 1:
        per_video["temporal_error"] = float(temporal_error(prediction.rgb, reference.rgb))
    if networks.encoder is not None:
        _clip_metrics(features, protocol, networks.encoder.name, per_frame, per_video)
        if "clip_text" in protocol.metrics:
            if reference.caption:
                text = networks.encoder.text(reference.caption)
                predicted = torch.cat([pair[0] for pair in features])
                per_frame[f"clip_text [{networks.encoder.name}]"] = (predicted @ text).tolist()
            else:
                notes.append("clip_text: missing (the reference has no caption): write one into its transforms.json")
    logits = None
    if networks.i3d is not None and "frames" in protocol.fvd_axes:
        logits, note = clip_logits(prediction.rgb, reference.rgb, protocol, networks)
        notes += [note] if note else []
    means = {name: math.fsum(values) / len(values) for name, values in per_frame.items()}
    return VideoResult(per_frame, means | per_video, logits, notes)


def _encoded(frames: Tensor, networks: Networks) -> Tensor:
    """The encoder's features [F, D] of frames, kept by content."""
    assert networks.encoder is not None
    encoder, kind = networks.encoder, f"clip [{networks.encoder.name}]"
    return networks.cache.get(f"{kind} {networks.weights.get(kind)}", frames, lambda: encoder(frames))


def _warped(
    prediction: Pictures, reference: Pictures, protocol: ProtocolConfig, cache: FeatureCache
) -> tuple[str, float, str]:
    """Return name and value of the warped temporal error, and a note; NaN where it cannot be taken."""
    name = f"warped_error [{'true flow' if protocol.flow == 'true' else 'TV-L1'}]"
    if protocol.flow == "estimated":
        kind = f"TV-L1 flow, scikit-image {importlib.metadata.version('scikit-image')}"
        found = cache.get(kind, reference.rgb, lambda: _flow(reference.rgb))
        flow, visible = found[:, :2], found[:, 2] > 0
    elif reference.motion is None:
        reason = "the reference holds no motion vectors of these frames and this size"
        return name, math.nan, f"{name}: missing ({reason}): set protocol.flow=estimated"
    else:
        flow, visible = reference.motion, visible_along(reference.rgb, reference.motion)
    value = float(warped_temporal_error(prediction.rgb, flow, visible))
    return name, value, "" if math.isfinite(value) else f"{name}: missing (no pixel stays visible)"


def _flow(video: Tensor) -> Tensor:
    """Return flow and visibility of ``estimate_flow`` as one tensor [F - 1, 3, H, W]."""
    flow, visible = estimate_flow(video)
    return torch.cat([flow, visible[:, None].to(flow.dtype)], dim=1)


def _image_metrics(a: Tensor, b: Tensor, protocol: ProtocolConfig, networks: Networks) -> dict[str, Tensor]:
    """Values [F] of frames [F, 3, S, S]."""
    psnr_range: Tensor | float = 1.0
    ssim_range: Tensor | float = 1.0
    if protocol.data_range == "extent":  # what torchmetrics before 1.9 took where no range was given
        psnr_range, ssim_range = extent(b).clamp(min=1e-6), torch.maximum(extent(a), extent(b)).clamp(min=1e-6)
    values = {}
    if "psnr" in protocol.metrics:
        values["psnr"] = psnr(a, b, psnr_range)
    if "ssim" in protocol.metrics:
        values["ssim"] = ssim(a, b, data_range=ssim_range)
    if "gmsd" in protocol.metrics:
        values["gmsd"] = gmsd(a, b)
    for net, lpips in networks.lpips.items():
        if min(a.shape[-2:]) < TRUNKS[net].min_side:
            continue
        values[f"lpips_{net}"] = lpips(a.to(networks.device), b.to(networks.device)).cpu()
    return values


def _clip_metrics(
    features: list[tuple[Tensor, Tensor]],
    protocol: ProtocolConfig,
    name: str,
    per_frame: dict[str, list[float]],
    per_video: dict[str, float],
) -> None:
    predicted = torch.cat([pair[0] for pair in features])
    if "clip_i" in protocol.metrics:
        true = torch.cat([pair[1] for pair in features])
        if protocol.clip_distance == "cosine":
            per_frame[f"clip_i [{name}]"] = (predicted * true).sum(-1).tolist()
        else:
            per_frame[f"clip_i_spherical [{name}]"] = spherical_distance(predicted, true).tolist()
    if len(predicted) > 1:
        if "clip_c" in protocol.metrics:
            per_video[f"clip_c [{name}]"] = adjacent_consistency(predicted)
        if "clip_c_all" in protocol.metrics:
            per_video[f"clip_c_all [{name}]"] = all_pairs_consistency(predicted)
        if "clip_t" in protocol.metrics:
            per_video[f"clip_t [{name}]"] = float(spherical_distance(predicted[1:], predicted[:-1]).double().mean())


def clip_logits(
    prediction: Tensor, reference: Tensor, protocol: ProtocolConfig, networks: Networks
) -> tuple[tuple[Tensor, Tensor] | None, str]:
    """Return the logits [N, 400] of both sides' clips, or None and why there are none; frames [F, 3, S, S]."""
    assert networks.i3d is not None
    length = protocol.clip_length or len(prediction)
    if min(length, len(prediction)) < MIN_FRAMES:
        return None, f"fvd: missing (clips of {min(length, len(prediction))} frames): I3D needs {MIN_FRAMES} at least"
    starts = range(0, len(prediction) - length + 1, length) if length <= len(prediction) else [0]
    i3d, kind = networks.i3d, f"i3d 2 {networks.weights.get('fvd')} {protocol.fvd_resize} {list(starts)} {length}"

    def logits(frames: Tensor) -> Tensor:
        clips = (resize_clip(frames[start : start + length], protocol.fvd_resize) for start in starts)
        return torch.cat([i3d(clip.to(networks.device)).cpu() for clip in clips])

    sides = [networks.cache.get(kind, frames, partial(logits, frames)) for frames in (prediction, reference)]
    return (sides[0], sides[1]), ""


def matrix_clips(frames: Tensor, axis: str) -> list[Tensor]:
    """Return the clips of an image matrix [V, F, 3, S, S] along "views", "diagonal" or "raster".

    views: one clip a frame, over the views (SV4D's FVD-V); diagonal: view and frame advance together, wrapping around
    in the shorter axis (FVD-Diag); raster: all pictures, every second view backwards (FV4D).
    """
    num_views, num_frames = frames.shape[:2]
    if axis == "views":
        return [frames[:, f] for f in range(num_frames)]
    if axis == "diagonal":
        steps = torch.arange(max(num_views, num_frames))
        return [frames[steps % num_views, steps % num_frames]]
    if axis == "raster":
        return [torch.cat([frames[v].flip(0) if v % 2 else frames[v] for v in range(num_views)])]
    raise ValueError(f"axis {axis!r} is unknown: give views, diagonal or raster")


def versions() -> dict[str, str]:
    """Return the versions of the libraries whose arithmetic reaches the numbers."""
    found = {"fourdiffusion": __version__, "python": platform.python_version()}
    return found | {
        name: importlib.metadata.version(name)
        for name in ("torch", "numpy", "scipy", "pillow", "scikit-image", "transformers")
    }

"""Verb `export`: a fitted scene as files that other programs open."""

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from fourdiffusion.device import resolve_device
from fourdiffusion.errors import UserError
from fourdiffusion.files import fill_folder, write_atomic
from fourdiffusion.scene.export.origin import credit_of, frame_times, origin
from fourdiffusion.scene.export.surface import Mesh, scene_meshes
from fourdiffusion.scene.scene import Scene, load_scene, scene_folder
from fourdiffusion.settings import ExportConfig

FILES = {"glb": "scene.glb", "html": "scene.html", "usd": "scene.usdc"}  # formats that are one file
FOLDERS = {
    "glb_frames": "glb_frames",
    "obj": "obj",
    "ply": "ply",
    "splats": "splats",
    "images": "images",
    "nerfstudio": "nerfstudio",
}
SUFFIXES = {"glb": (".glb",), "html": (".html",), "usd": (".usdc", ".usda", ".usd")}  # of FILES
TEXTURED = ("glb", "glb_frames")  # formats that hold a texture
ANIMATIONS = ("frames", "morph")
POSITIVE = ("num_frames", "fps", "scale", "size", "num_views", "iso_level")


def export(config: ExportConfig) -> None:
    """Write a scene in ``config.format``; the file or folder appears whole or not at all."""
    _check(config)
    folder = scene_folder(Path(config.scene))
    run = folder.parent if folder.name == "scene" else folder
    name = (FILES | FOLDERS)[config.format]
    output = Path(config.output) if config.output else run / "export" / name
    _check_output(output, config.format)
    _require_packages(config)
    scene = load_scene(folder, resolve_device(config.device))
    times = frame_times(run, config.num_frames)
    notes: dict[str, Any] = dict(origin(run, config.author, config.license))
    if config.format == "images":
        from fourdiffusion.scene.export.images import write_sequence

        pose = config.azimuth_deg, config.elevation_deg
        _fill(output, lambda partial: write_sequence(partial, scene, times, *pose, config.size, "images"))
    elif config.format == "nerfstudio":
        from fourdiffusion.scene.export.images import write_nerfstudio

        sizes = config.num_views, config.size
        _fill(output, lambda partial: write_nerfstudio(partial, scene, times, *sizes, credit_of(notes), "nerfstudio"))
    else:
        choice = config.resolution, config.iso_level, config.min_component
        meshes, level = scene_meshes(scene, times, *choice, progress=True)
        if config.texture_size is not None:
            from fourdiffusion.scene.export.atlas import textured

            meshes = textured(scene, meshes, times, config.texture_size, "textures")
        notes |= {"iso_level": level}
        counts = [len(mesh.faces) for mesh in meshes]
        print(f"{len(meshes)} meshes of {min(counts)} to {max(counts)} faces at iso_level={level:.4g}")
        if config.animation != "morph" or not _write_morph(output, scene, meshes, times, config, notes):
            _write_meshes(output, meshes, config, credit_of(notes), notes, run.resolve().name)
    print(f"written: {output}")


def _check(config: ExportConfig) -> None:
    known = [*FILES, *FOLDERS]
    if config.format not in known:
        alike = difflib.get_close_matches(config.format, known, n=1)
        remedy = f"did you mean {alike[0]}?" if alike else f"use {', '.join(known)}"
        raise UserError(f"format={config.format}: there is no such format, {remedy}")
    if config.animation not in ANIMATIONS:
        alike = difflib.get_close_matches(config.animation, ANIMATIONS, n=1)
        remedy = f"did you mean {alike[0]}?" if alike else f"use {' or '.join(ANIMATIONS)}"
        raise UserError(f"animation={config.animation}: there is no such animation, {remedy}")
    if config.animation == "morph" and (config.format != "glb" or config.texture_size is not None):
        what = f"format={config.format}" if config.format != "glb" else f"texture_size={config.texture_size}"
        raise UserError(
            f"animation=morph goes with format=glb and vertex colors, not with {what}: leave one of them out"
        )
    for name in POSITIVE:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}={value} must be positive")
    if config.resolution < 8:
        raise UserError(f"resolution={config.resolution} is too small; give at least 8")
    if not 0 <= config.min_component <= 1:
        raise UserError(f"min_component={config.min_component}; give a share between 0 (keep all) and 1")
    if not -90 < config.elevation_deg < 90:
        raise UserError(f"elevation_deg={config.elevation_deg}; give degrees between -90 and 90")
    if config.texture_size is not None:
        if config.format not in TEXTURED:
            raise UserError(f"texture_size={config.texture_size}: format={config.format} has colors at its vertices")
        if not 64 <= config.texture_size <= 4096:
            raise UserError(f"texture_size={config.texture_size}; give 64 to 4096 texels")


def _require_packages(config: ExportConfig) -> None:
    """Raise UserError where the format needs a package that is not installed."""
    if config.texture_size is not None:
        from fourdiffusion.scene.export.atlas import require_xatlas

        require_xatlas()
    if config.format == "usd":
        from fourdiffusion.scene.export.usd import require_usd

        require_usd()


def _check_output(output: Path, format: str) -> None:
    """Raise UserError before the work where the output cannot become what the format is."""
    if format in FILES and output.is_dir():
        raise UserError(f"output={output} is a folder and format={format} writes one file: give a file name")
    if format in FILES and output.suffix not in SUFFIXES[format]:
        raise UserError(f"output={output}: the name of a {format} file ends in {' or '.join(SUFFIXES[format])}")
    if format in FOLDERS and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"output={output} is there already: choose another output, or delete it")


def _write_morph(
    output: Path, scene: Scene, meshes: list[Mesh], times: Tensor, config: ExportConfig, notes: dict[str, Any]
) -> bool:
    """Write a GLB with morph targets and return whether there is one; say why where there is none."""
    from fourdiffusion.scene.export.glb import build_morph_glb
    from fourdiffusion.scene.export.morph import morph_targets

    if len(meshes) < 2:
        print("one frame does not move: a GLB of one mesh")
        return False
    found, words = morph_targets(scene, meshes, times, "tracking")
    if found is None:
        print(f"no mesh that all frames share ({words}): a mesh a frame instead")
        return False
    print(f"one mesh with {len(meshes) - 1} morph targets, {words}")
    content = build_morph_glb(found, config.fps, config.scale, credit_of(notes), notes)
    write_atomic(output, lambda partial: partial.write_bytes(content))
    return True


def _write_meshes(
    output: Path, meshes: list[Mesh], config: ExportConfig, credit: str, notes: dict[str, Any], title: str
) -> None:
    from fourdiffusion.scene.export.glb import write_glb
    from fourdiffusion.scene.export.html import write_html
    from fourdiffusion.scene.export.meshes import write_obj, write_ply, write_splats

    if config.format == "glb":
        write_glb(output, meshes, config.fps, config.scale, credit, notes)
        return
    if config.format == "usd":
        from fourdiffusion.scene.export.usd import write_usd

        write_usd(output, meshes, config.fps, config.scale, credit, notes)
        return
    if config.format == "html":
        write_html(output, meshes, config.fps, str(notes.get("prompt", title)), credit, notes)
        return

    def write_all(folder: Path) -> None:
        for index, mesh in enumerate(meshes):
            path = folder / f"frame_{index:04d}"
            if config.format == "glb_frames":
                write_glb(path.with_suffix(".glb"), [mesh], config.fps, config.scale, credit, notes)
            elif config.format == "obj":
                write_obj(path.with_suffix(".obj"), mesh, config.scale, credit)
            elif config.format == "ply":
                write_ply(path.with_suffix(".ply"), mesh, config.scale, credit)
            else:
                write_splats(path.with_suffix(".ply"), mesh, config.scale, credit)

    _fill(output, write_all)


def _fill(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder beside ``folder``, then put it in place."""
    fill_folder(folder, write)

"""Verb `export`: a fitted scene as files that other programs open."""

import difflib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fourdiffusion.device import resolve_device
from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors
from fourdiffusion.scene.export.surface import (
    Mesh,
    choose_iso_level,
    extract_meshes,
    remove_floaters,
    sample_density,
)
from fourdiffusion.scene.scene import Scene, load_scene, scene_folder
from fourdiffusion.settings import ExportConfig

FILES = {"glb": "scene.glb", "html": "scene.html"}  # formats that are one file
FOLDERS = {
    "glb_frames": "glb_frames",
    "obj": "obj",
    "ply": "ply",
    "splats": "splats",
    "images": "images",
    "nerfstudio": "nerfstudio",
}
POSITIVE = ("num_frames", "fps", "scale", "size", "num_views", "iso_level")


def export(config: ExportConfig) -> None:
    """Write a scene in ``config.format``; the file or folder appears whole or not at all."""
    _check(config)
    folder = scene_folder(Path(config.scene))
    run = folder.parent if folder.name == "scene" else folder
    name = (FILES | FOLDERS)[config.format]
    output = Path(config.output) if config.output else run / "export" / name
    _check_output(output, config.format)
    scene = load_scene(folder, resolve_device(config.device))
    times = frame_times(run, config.num_frames)
    notes = _notes(run, config)
    credit = ", ".join(value for value in (notes.get("author"), notes.get("license")) if value)
    if config.format == "images":
        from fourdiffusion.scene.export.images import write_sequence

        pose = config.azimuth_deg, config.elevation_deg
        _fill(output, lambda partial: write_sequence(partial, scene, times, *pose, config.size, "images"))
    elif config.format == "nerfstudio":
        from fourdiffusion.scene.export.images import write_nerfstudio

        sizes = config.num_views, config.size
        _fill(output, lambda partial: write_nerfstudio(partial, scene, times, *sizes, credit, "nerfstudio"))
    else:
        meshes, level = scene_meshes(scene, times, config)
        _write_meshes(output, meshes, config, credit, notes | {"iso_level": level}, run.resolve().name)
        counts = [len(mesh.faces) for mesh in meshes]
        print(f"{len(meshes)} meshes of {min(counts)} to {max(counts)} faces at iso_level={level:.4g}")
    print(f"written: {output}")


def scene_meshes(scene: Scene, times: Tensor, config: ExportConfig) -> tuple[list[Mesh], float]:
    """Return one mesh for each of the times [F] without floaters, and the iso level used."""
    grid = sample_density(scene, times, config.resolution, "density")
    level = choose_iso_level(scene, times, grid) if config.iso_level is None else config.iso_level
    grid.values = remove_floaters(grid.values, level, config.min_component)
    return extract_meshes(scene, times, grid, level, "meshes"), level


def frame_times(run: Path, num_frames: int | None) -> Tensor:
    """Return evenly spaced times [F] from 0 to 1, or the run's own where no number is given."""
    path = run / "input.safetensors"
    if num_frames is None and path.is_file():
        tensors, _ = load_tensors(path)
        if "times" not in tensors:
            raise UserError(f"{path} lacks times: it is not the input of a fit; remove it, or give num_frames=")
        return tensors["times"]
    return torch.linspace(0, 1, num_frames or 8)


def _check(config: ExportConfig) -> None:
    known = [*FILES, *FOLDERS]
    if config.format not in known:
        alike = difflib.get_close_matches(config.format, known, n=1)
        remedy = f"did you mean {alike[0]}?" if alike else f"use {', '.join(known)}"
        raise UserError(f"format={config.format}: there is no such format, {remedy}")
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


def _check_output(output: Path, format: str) -> None:
    """Raise UserError before the work where the output cannot become what the format is."""
    if format in FILES and output.is_dir():
        raise UserError(f"output={output} is a folder and format={format} writes one file: give a file name")
    if format in FILES and output.suffix != f".{format}":
        raise UserError(f"output={output}: the name of a {format} file ends in .{format}")
    if format in FOLDERS and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"output={output} is there already: choose another output, or delete it")


def _notes(run: Path, config: ExportConfig) -> dict[str, Any]:
    """Return what the file says of its origin: author and license (the settings', or the run's), prompt, commit."""
    try:
        content = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        content = None
    content = content if isinstance(content, dict) else {}
    settings = content.get("settings") if isinstance(content.get("settings"), dict) else {}
    notes = {key: content.get(key) or settings.get(key) for key in ("author", "license", "prompt", "commit")}
    notes |= {key: value for key in ("author", "license") if (value := getattr(config, key))}
    return {key: str(value) for key, value in notes.items() if value}


def _write_meshes(
    output: Path, meshes: list[Mesh], config: ExportConfig, credit: str, notes: dict[str, Any], title: str
) -> None:
    from fourdiffusion.scene.export.glb import write_glb
    from fourdiffusion.scene.export.html import write_html
    from fourdiffusion.scene.export.meshes import write_obj, write_ply, write_splats

    if config.format == "glb":
        write_glb(output, meshes, config.fps, config.scale, credit, notes)
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
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

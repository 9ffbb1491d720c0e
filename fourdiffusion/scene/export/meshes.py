"""Write one OBJ or PLY mesh a frame, and Gaussian-splat PLY sequences.

OBJ is y up as glTF (see glb); a mesh PLY keeps the world's axes, z up; a splat PLY is y down, as 3D Gaussian splatting
writes it and SuperSplat reads it.
"""

from pathlib import Path

import numpy as np

from fourdiffusion.files import write_atomic
from fourdiffusion.scene.export.glb import TO_GLTF
from fourdiffusion.scene.export.surface import Mesh

TO_SPLAT = np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]], dtype=np.float32)  # world [x, y, z] -> [y, -z, -x]
SH_DC = 0.28209479177387814  # the constant spherical harmonic: color = 1/2 + SH_DC * f_dc


def write_obj(path: Path, mesh: Mesh, scale: float = 1.0, copyright: str = "") -> None:
    """Write an OBJ, y up, with the colors behind the vertices (``v x y z r g b``)."""
    vertices, normals = mesh.vertices @ TO_GLTF.T * scale, mesh.normals @ TO_GLTF.T
    corners = mesh.faces.astype(np.int64) + 1

    def write(partial: Path) -> None:
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(f"# {line}\n" for line in ["y up, +z forward", *copyright.splitlines()])
            np.savetxt(file, np.hstack([vertices, mesh.colors]), fmt="v" + " %.6f" * 6)
            np.savetxt(file, normals, fmt="vn" + " %.5f" * 3)
            np.savetxt(file, corners.repeat(2, axis=1), fmt="f" + " %d//%d" * 3)

    write_atomic(path, write)


def write_ply(path: Path, mesh: Mesh, scale: float = 1.0, copyright: str = "") -> None:
    """Write a binary mesh PLY, z up, with normals and 8-bit vertex colors."""
    floats = ("x", "y", "z", "nx", "ny", "nz")
    vertices = np.empty(
        len(mesh.vertices), [(n, "<f4") for n in floats] + [(n, "u1") for n in ("red", "green", "blue")]
    )
    columns = np.hstack([mesh.vertices * scale, mesh.normals, (mesh.colors * 255).round()])
    for name, column in zip(vertices.dtype.names or (), columns.T, strict=True):
        vertices[name] = column
    faces = np.empty(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces
    properties = [f"property float {name}" for name in floats]
    properties += [f"property uchar {name}" for name in ("red", "green", "blue")]
    tail = [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    header = _header(len(vertices), properties, copyright, tail)
    write_atomic(path, lambda partial: partial.write_bytes(header + vertices.tobytes() + faces.tobytes()))


def write_splats(path: Path, mesh: Mesh, scale: float = 1.0, copyright: str = "") -> None:
    """Write a 3D Gaussian splatting PLY: one flat Gaussian a face, tangent to it, y down.

    A Gaussian's two tangent deviations are the radius of the disk with the face's area, which leaves no holes; its
    third is a tenth of that.
    """
    corners = mesh.vertices[mesh.faces.astype(np.int64)] @ TO_SPLAT.T * scale  # [M, 3, 3]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    double_area = np.linalg.norm(cross, axis=1)
    kept = double_area > 1e-12  # marching cubes leaves faces without an area
    corners, cross, double_area = corners[kept], cross[kept], double_area[kept]
    normals = cross / double_area[:, None]
    radius = np.sqrt(double_area / 2 / np.pi)
    colors = mesh.colors[mesh.faces.astype(np.int64)[kept]].mean(axis=1)
    deviations = np.log(np.stack([radius, radius, radius / 10], axis=1))
    opacity = np.full((len(radius), 1), 6.0)  # before the sigmoid: 0.9975
    columns = np.hstack(
        [corners.mean(axis=1), normals, (colors - 0.5) / SH_DC, opacity, deviations, rotation_to(normals)]
    )
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    header = _header(len(columns), [f"property float {name}" for name in names], copyright, [])
    write_atomic(path, lambda partial: partial.write_bytes(header + columns.astype("<f4").tobytes()))


def rotation_to(normals: np.ndarray) -> np.ndarray:
    """Return unit quaternions [N, 4] (w, x, y, z) of the shortest rotations that take +z to the unit normals [N, 3]."""
    w = 1 + normals[:, 2]
    quaternion = np.stack([w, -normals[:, 1], normals[:, 0], np.zeros_like(w)], axis=1)
    quaternion[w < 1e-6] = [0, 1, 0, 0]  # half a turn about x
    return quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)


def _header(num_vertices: int, properties: list[str], copyright: str, tail: list[str]) -> bytes:
    comments = [f"comment {line}" for line in copyright.splitlines()]
    lines = ["ply", "format binary_little_endian 1.0", *comments, f"element vertex {num_vertices}", *properties, *tail]
    return ("\n".join([*lines, "end_header"]) + "\n").encode()

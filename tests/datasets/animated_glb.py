"""Small animated glTF binaries for tests, written from arrays."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FLOAT, UNSIGNED = 5126, 5125
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
FACES = {  # normal: color of the box's face, 8-bit sRGB; +Z is the front, +Y the top
    (0, 0, 1): (200, 0, 0), (0, 0, -1): (0, 200, 200), (1, 0, 0): (0, 200, 0),
    (-1, 0, 0): (200, 0, 200), (0, 1, 0): (0, 0, 200), (0, -1, 0): (200, 200, 0),
}  # fmt: skip


class Glb:
    """Collects nodes, meshes and animations; ``save`` writes them as one file."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}], "nodes": [], "meshes": [],
            "materials": [], "accessors": [], "bufferViews": [],
        }  # fmt: skip

    def accessor(self, values: Any, component: int = FLOAT) -> int:
        array = np.asarray(values, np.float32 if component == FLOAT else np.uint32)
        flat = array.reshape(len(array), -1)
        entry: dict[str, Any] = {"componentType": component, "count": len(flat), "type": KINDS[flat.shape[1]]}
        entry |= {"bufferView": self.view(flat.tobytes()), "min": flat.min(0).tolist(), "max": flat.max(0).tolist()}
        self.document["accessors"].append(entry)
        return len(self.document["accessors"]) - 1

    def view(self, data: bytes) -> int:
        self.data += bytes(-len(self.data) % 4)
        self.document["bufferViews"].append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)})
        self.data += data
        return len(self.document["bufferViews"]) - 1

    def material(self, **entry: Any) -> int:
        self.document["materials"].append({"doubleSided": False} | entry)
        return len(self.document["materials"]) - 1

    def mesh(self, triangles: Any, material: int | None = None, **attributes: Any) -> int:
        primitive: dict[str, Any] = {"attributes": {k: self.accessor(v) for k, v in attributes.items()}}
        primitive["indices"] = self.accessor(np.asarray(triangles).reshape(-1, 1), UNSIGNED)
        if material is not None:
            primitive["material"] = material
        self.document["meshes"].append({"primitives": [primitive]})
        return len(self.document["meshes"]) - 1

    def node(self, parent: int | None = None, **entry: Any) -> int:
        self.document["nodes"].append({"name": f"node{len(self.document['nodes'])}"} | entry)
        index = len(self.document["nodes"]) - 1
        if parent is None:
            self.document["scenes"][0]["nodes"].append(index)
        else:
            self.document["nodes"][parent].setdefault("children", []).append(index)
        return index

    def animate(self, name: str, *channels: tuple[int, str, Any, Any, str]) -> None:
        """Add an animation of (node, path, times, values, interpolation)."""
        entry: dict[str, Any] = {"name": name, "samplers": [], "channels": []}
        for k, (node, path, times, values, interpolation) in enumerate(channels):
            sampler = {"input": self.accessor(np.asarray(times).reshape(-1, 1)), "output": self.accessor(values)}
            entry["samplers"].append(sampler | {"interpolation": interpolation})
            entry["channels"].append({"sampler": k, "target": {"node": node, "path": path}})
        self.document.setdefault("animations", []).append(entry)

    def save(self, path: Path) -> Path:
        self.data += bytes(-len(self.data) % 4)
        self.document["buffers"] = [{"byteLength": len(self.data)}]
        content = {key: value for key, value in self.document.items() if value != []}
        text = json.dumps(content).encode()
        text += b" " * (-len(text) % 4)
        total = 28 + len(text) + len(self.data)
        header = struct.pack("<4sIIII", b"glTF", 2, total, len(text), 0x4E4F534A)
        path.write_bytes(header + text + struct.pack("<II", len(self.data), 0x004E4942) + bytes(self.data))
        return path


def box(half: tuple[float, float, float]) -> dict[str, Any]:
    """Return the attributes and triangles of a box; each face takes one column of a 6-column texture."""
    positions, normals, uv, triangles = [], [], [], []
    for k, normal in enumerate(FACES):
        n = np.array(normal, float)
        u = np.roll(n, 1)
        v = np.cross(n, u)
        triangles += [[4 * k, 4 * k + 1, 4 * k + 2], [4 * k, 4 * k + 2, 4 * k + 3]]
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            positions.append((n + a * u + b * v) * half)
            normals.append(n)
            uv.append([(k + 0.5) / 6, 0.5])
    return {"POSITION": positions, "NORMAL": normals, "TEXCOORD_0": uv, "triangles": triangles}


def face_texture(glb: Glb) -> int:
    """Add a material whose texture holds the colors of ``FACES``."""
    buffer = io.BytesIO()
    Image.fromarray(np.array([list(FACES.values())], np.uint8)).save(buffer, "PNG")
    glb.document["images"] = [{"bufferView": glb.view(buffer.getvalue()), "mimeType": "image/png"}]
    glb.document["samplers"] = [{"magFilter": 9728, "minFilter": 9728}]
    glb.document["textures"] = [{"source": 0, "sampler": 0}]
    surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": 1.0}
    return glb.material(pbrMetallicRoughness=surface)


def sphere() -> dict[str, Any]:
    """Return an octahedron divided three times, radius 1."""
    points = [np.array(p, float) for p in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))]
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    for _ in range(3):
        finer = []
        for a, b, c in faces:
            middle = []
            for p, q in ((a, b), (b, c), (c, a)):
                points.append((points[p] + points[q]) / np.linalg.norm(points[p] + points[q]))
                middle.append(len(points) - 1)
            ab, bc, ca = middle
            finer += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = finer
    return {"POSITION": points, "NORMAL": points, "triangles": faces}


def about_y(angle_deg: float) -> list[float]:
    """Return the quaternion (x, y, z, w) of a turn about the vertical axis."""
    half = np.radians(angle_deg) / 2
    return [0.0, float(np.sin(half)), 0.0, float(np.cos(half))]


def swinging_box(
    path: Path, angle_deg: float = 60.0, seconds: float = 1.0, shift: float = 0.3, half: Any = (0.5, 1.0, 1.5)
) -> Path:
    """Write a box with colored faces that turns about the vertical axis and rises by ``shift``."""
    glb = Glb()
    shape = box(half)
    mesh = glb.mesh(shape.pop("triangles"), face_texture(glb), **shape)
    node = glb.node(mesh=mesh)
    glb.animate(
        "swing",
        (node, "rotation", [0, seconds], [about_y(0), about_y(angle_deg)], "LINEAR"),
        (node, "translation", [0, seconds], [[0, 0, 0], [0, shift, 0]], "LINEAR"),
    )
    return glb.save(path)


MARKERS = {  # emitted color: place around the parent node
    (1.0, 0.0, 0.0): (2.0, 0.3, 0.0), (0.0, 1.0, 0.0): (-1.0, 1.5, 1.5), (0.0, 0.0, 1.0): (-1.2, -1.2, -1.6),
}  # fmt: skip


def markers(path: Path) -> Path:
    """Write three glowing spheres of radius 0.12 under a parent that turns by 100 degrees and moves, in 1 s."""
    glb = Glb()
    shape = sphere()
    triangles = shape.pop("triangles")
    parent = glb.node(translation=[0, 0, 0])
    for color, place in MARKERS.items():
        black = {"baseColorFactor": [0, 0, 0, 1], "metallicFactor": 0.0, "roughnessFactor": 1.0}
        mesh = glb.mesh(triangles, glb.material(pbrMetallicRoughness=black, emissiveFactor=color), **shape)
        glb.node(parent, mesh=mesh, translation=place, scale=[0.12] * 3)
    glb.animate(
        "orbit",
        (parent, "rotation", [0, 0.5, 1], [about_y(0), about_y(50), about_y(100)], "LINEAR"),
        (parent, "translation", [0, 1], [[0, 0, 0], [0.5, -0.4, 0.3]], "LINEAR"),
    )
    return glb.save(path)


def marker_places(time: float) -> np.ndarray:
    """Return where the spheres of ``markers`` stand at a time in seconds, in the asset's world, [3, 3]."""
    angle = np.radians(100 * time)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return np.array(list(MARKERS.values())) @ turn.T + np.array([0.5, -0.4, 0.3]) * time

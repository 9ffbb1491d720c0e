"""Read animated glTF 2.0 files; ``pose`` in `pose.py` deforms the result.

Covers the features that the OpenGL engine draws. A required extension (Draco, meshopt, basis textures) raises
``AssetError``.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.sparse import csr_matrix

COMPONENT_TYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
SUPPORTED_EXTENSIONS = {"KHR_materials_unlit", "KHR_mesh_quantization", "KHR_texture_transform"}
TRIANGLES, STRIP, FAN = 4, 5, 6
NEAREST_FILTERS = {9728}
CLAMP = 33071


class AssetError(Exception):
    """An asset that cannot be rendered: ``reason`` is one word of the render log, the text has the details."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass
class Texture:
    """Base color texture: 8-bit sRGB with straight alpha, row 0 at the top."""

    pixels: np.ndarray  # uint8 [H, W, 4]
    nearest: bool
    clamp: tuple[bool, bool]


@dataclass
class Material:
    """The part of a glTF material that the OpenGL engine draws."""

    color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # linear
    texture: Texture | None = None
    texture_set: int = 0
    metallic: float = 1.0
    emissive: tuple[float, float, float] = (0.0, 0.0, 0.0)
    alpha_mode: str = "OPAQUE"
    alpha_cutoff: float = 0.5
    double_sided: bool = False
    unlit: bool = False


@dataclass
class Primitive:
    """Triangles of one material under one node."""

    node: int
    skin: int | None
    material: Material
    positions: np.ndarray  # float32 [N, 3]
    normals: np.ndarray | None  # float32 [N, 3]; None: flat shading
    uv: np.ndarray | None  # float32 [N, 2]
    colors: np.ndarray | None  # float32 [N, 4], linear
    influence: csr_matrix | None  # float32 [N, J] of the skin's joints on the vertices, rows sum to 1
    position_targets: np.ndarray | None  # float32 [M, N, 3]
    normal_targets: np.ndarray | None  # float32 [M, N, 3]
    indices: np.ndarray  # uint32 [T, 3]


@dataclass
class Channel:
    """Keys of one property of one node."""

    node: int
    path: str  # translation | rotation | scale | weights
    times: np.ndarray  # float32 [K], rising
    values: np.ndarray  # float32 [K, D]; with CUBICSPLINE [K, 3, D]: in-tangent, value, out-tangent
    interpolation: str  # STEP | LINEAR | CUBICSPLINE


@dataclass
class Animation:
    name: str
    channels: list[Channel]
    start: float  # seconds
    end: float


@dataclass
class Node:
    parent: int | None
    translation: np.ndarray
    rotation: np.ndarray  # quaternion x, y, z, w
    scale: np.ndarray
    matrix: np.ndarray | None  # instead of the three above
    weights: np.ndarray | None  # of the morph targets


@dataclass
class Skin:
    joints: list[int]
    inverse_bind: np.ndarray  # float32 [J, 4, 4]


@dataclass
class Asset:
    nodes: list[Node]
    primitives: list[Primitive]
    skins: list[Skin]
    animations: list[Animation]
    order: list[int] = field(default_factory=list)  # node indices, parents before children


def load_gltf(path: Path) -> Asset:
    """Read a `.glb` or `.gltf` file.

    Raises:
        AssetError: reason `unreadable` (no glTF, truncated, inconsistent), `unsupported` (a required extension) or
            `missing_texture`.
    """
    try:
        document, binary = _read_container(path)
        return _Reader(path, document, binary).asset()
    except AssetError:
        raise
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise AssetError("unreadable", f"broken glTF ({type(error).__name__}: {error})") from error
    except OSError as error:
        raise AssetError("unreadable", str(error.strerror or error)) from error


def _read_container(path: Path) -> tuple[dict[str, Any], bytes | None]:
    """Return the JSON document of a file and the binary chunk of a GLB."""
    data = path.read_bytes()
    if data[:4] != b"glTF":
        try:
            document = json.loads(data)
        except ValueError as error:
            raise AssetError("unreadable", "not a glTF file: neither the GLB header nor JSON") from error
        return _checked(document), None
    if len(data) < 20:
        raise AssetError("unreadable", f"truncated: {len(data)} bytes")
    _, version, length, json_length, _ = struct.unpack("<4sIIII", data[:20])
    if version != 2:
        raise AssetError("unreadable", f"glTF version {version}; version 2 is supported")
    if length > len(data) or 20 + json_length > len(data):
        raise AssetError("unreadable", f"truncated: {len(data)} bytes of {length}")
    document = json.loads(data[20 : 20 + json_length])
    position, binary = 20 + json_length, None
    if position + 8 <= length:
        size, kind = struct.unpack("<II", data[position : position + 8])
        if kind == 0x004E4942:
            binary = data[position + 8 : position + 8 + size]
    return _checked(document), binary


def _checked(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict) or "asset" not in document:
        raise AssetError("unreadable", "not a glTF file: JSON without `asset`")
    missing = sorted(set(document.get("extensionsRequired", [])) - SUPPORTED_EXTENSIONS)
    if missing:
        raise AssetError("unsupported", f"requires {', '.join(missing)}; use a Blender engine")
    return document


class _Reader:
    """Accessors of one document, each decoded once."""

    def __init__(self, path: Path, document: dict[str, Any], binary: bytes | None) -> None:
        self.folder, self.document, self.binary = path.parent, document, binary
        self.buffers: dict[int, bytes] = {}
        self.textures: dict[int, Texture] = {}

    def asset(self) -> Asset:
        nodes = [self.node(entry) for entry in self.document.get("nodes", [])]
        for parent, entry in enumerate(self.document.get("nodes", [])):
            for child in entry.get("children", []):
                nodes[child].parent = parent
        skins = [self.skin(entry) for entry in self.document.get("skins", [])]
        order = _parents_first(nodes)
        primitives = self.primitives(order)
        animations = [self.animation(k, entry) for k, entry in enumerate(self.document.get("animations", []))]
        return Asset(nodes, primitives, skins, [a for a in animations if a.channels], order)

    def node(self, entry: dict[str, Any]) -> Node:
        """Return a node with its transform at rest and its morph weights."""
        matrix = np.array(entry["matrix"], np.float32).reshape(4, 4).T if "matrix" in entry else None
        weights = entry.get("weights")
        if weights is None and "mesh" in entry:
            weights = self.document["meshes"][entry["mesh"]].get("weights")
        return Node(
            parent=None,
            translation=np.array(entry.get("translation", [0, 0, 0]), np.float32),
            rotation=np.array(entry.get("rotation", [0, 0, 0, 1]), np.float32),
            scale=np.array(entry.get("scale", [1, 1, 1]), np.float32),
            matrix=matrix,
            weights=None if weights is None else np.array(weights, np.float32),
        )

    def skin(self, entry: dict[str, Any]) -> Skin:
        joints = entry["joints"]
        if "inverseBindMatrices" in entry:
            matrices = self.accessor(entry["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        else:
            matrices = np.broadcast_to(np.eye(4, dtype=np.float32), (len(joints), 4, 4))
        return Skin(joints, matrices.astype(np.float32))

    def primitives(self, order: list[int]) -> list[Primitive]:
        """Return the triangles of every mesh node of the default scene."""
        entries = self.document.get("nodes", [])
        shown = self.shown_nodes()
        found = []
        for index in order:
            if index not in shown or "mesh" not in entries[index]:
                continue
            mesh = self.document["meshes"][entries[index]["mesh"]]
            for primitive in mesh["primitives"]:
                if (
                    primitive.get("mode", TRIANGLES) in (TRIANGLES, STRIP, FAN)
                    and "POSITION" in primitive["attributes"]
                ):
                    found.append(self.primitive(index, entries[index].get("skin"), primitive))
        return found

    def shown_nodes(self) -> set[int]:
        """Return the nodes of the default scene, or all nodes of a file without a scene."""
        scenes, entries = self.document.get("scenes", []), self.document.get("nodes", [])
        if not scenes:
            return set(range(len(entries)))
        pending = list(scenes[self.document.get("scene", 0)].get("nodes", []))
        shown: set[int] = set()
        while pending:
            index = pending.pop()
            if index not in shown:
                shown.add(index)
                pending.extend(entries[index].get("children", []))
        return shown

    def primitive(self, node: int, skin: int | None, entry: dict[str, Any]) -> Primitive:
        """Return the triangles of one entry of a mesh, with their material."""
        attributes = entry["attributes"]
        material = self.material(entry.get("material"))
        positions = self.accessor(attributes["POSITION"]).astype(np.float32)
        count = len(positions)

        def read(name: str) -> np.ndarray | None:
            return self.accessor(attributes[name]).astype(np.float32) if name in attributes else None

        colors = read("COLOR_0")
        if colors is not None and colors.shape[1] == 3:
            colors = np.concatenate([colors, np.ones((count, 1), np.float32)], axis=1)
        influence = None
        if skin is not None and "JOINTS_0" in attributes:
            influence = self.influence(attributes, len(self.document["skins"][skin]["joints"]))
        targets = entry.get("targets", [])
        zero = np.zeros_like(positions)

        def stack(name: str) -> np.ndarray | None:
            if not any(name in target for target in targets):
                return None
            return np.stack([self.accessor(t[name]).astype(np.float32) if name in t else zero for t in targets])

        return Primitive(
            node=node,
            skin=skin if influence is not None else None,
            material=material,
            positions=positions,
            normals=read("NORMAL"),
            uv=read(f"TEXCOORD_{material.texture_set}"),
            colors=colors,
            influence=influence,
            position_targets=stack("POSITION"),
            normal_targets=stack("NORMAL"),
            indices=_triangles(self.indices(entry, count), entry.get("mode", TRIANGLES), count),
        )

    def influence(self, attributes: dict[str, int], num_joints: int) -> csr_matrix:
        sets = range(sum(name.startswith("JOINTS_") for name in attributes))
        joints = np.concatenate([self.accessor(attributes[f"JOINTS_{k}"]) for k in sets], axis=1).astype(np.int64)
        weights = np.concatenate([self.accessor(attributes[f"WEIGHTS_{k}"]) for k in sets], axis=1)
        if joints.size and int(joints.max()) >= num_joints:
            raise AssetError("unreadable", f"a vertex names joint {int(joints.max())} of {num_joints}")
        total = weights.sum(axis=1, keepdims=True)
        weights = (weights / np.where(total > 0, total, 1)).astype(np.float32)
        rows = np.repeat(np.arange(len(joints)), joints.shape[1])
        return csr_matrix((weights.ravel(), (rows, joints.ravel())), shape=(len(joints), num_joints))

    def indices(self, entry: dict[str, Any], count: int) -> np.ndarray:
        if "indices" not in entry:
            return np.arange(count, dtype=np.uint32)
        return self.accessor(entry["indices"]).reshape(-1).astype(np.uint32)

    def material(self, index: int | None) -> Material:
        """Return a material by its number; None: glTF's default, not metallic here."""
        if index is None:
            return Material(metallic=0.0)
        entry = self.document["materials"][index]
        surface = entry.get("pbrMetallicRoughness", {})
        unlit = "KHR_materials_unlit" in entry.get("extensions", {})
        texture = surface.get("baseColorTexture")
        return Material(
            color=tuple(surface.get("baseColorFactor", (1.0, 1.0, 1.0, 1.0))),
            texture=None if texture is None else self.texture(texture["index"]),
            texture_set=0 if texture is None else texture.get("texCoord", 0),
            metallic=float(surface.get("metallicFactor", 1.0)) if "metallicRoughnessTexture" not in surface else 0.0,
            emissive=tuple(entry.get("emissiveFactor", (0.0, 0.0, 0.0))),
            alpha_mode=entry.get("alphaMode", "OPAQUE"),
            alpha_cutoff=float(entry.get("alphaCutoff", 0.5)),
            double_sided=bool(entry.get("doubleSided", False)),
            unlit=unlit,
        )

    def texture(self, index: int) -> Texture:
        """Return a texture by its number, decoded once."""
        if index not in self.textures:
            entry = self.document["textures"][index]
            sampler = self.document["samplers"][entry["sampler"]] if "sampler" in entry else {}
            if "source" not in entry:
                raise AssetError("unsupported", f"texture {index} has no PNG or JPEG source")
            image = self.document["images"][entry["source"]]
            name = image.get("uri", image.get("name", f"image {entry['source']}"))
            try:
                data = self.view(image["bufferView"]) if "bufferView" in image else self.uri(image["uri"])
                with Image.open(io.BytesIO(data)) as picture:
                    pixels = np.array(picture.convert("RGBA"))
            except (OSError, SyntaxError, AssetError) as error:
                raise AssetError("missing_texture", f"{str(name)[:80]}: {error}") from error
            clamp = (sampler.get("wrapS") == CLAMP, sampler.get("wrapT") == CLAMP)
            self.textures[index] = Texture(pixels, sampler.get("magFilter") in NEAREST_FILTERS, clamp)
        return self.textures[index]

    def animation(self, index: int, entry: dict[str, Any]) -> Animation:
        """Return an animation with its channels of nodes and morph weights; others are left out."""
        channels = []
        for channel in entry["channels"]:
            target, sampler = channel["target"], entry["samplers"][channel["sampler"]]
            if "node" not in target or target["path"] not in ("translation", "rotation", "scale", "weights"):
                continue
            times = self.accessor(sampler["input"]).reshape(-1)
            interpolation = sampler.get("interpolation", "LINEAR")
            values = self.accessor(sampler["output"]).astype(np.float32)
            if len(times) == 0:
                continue
            shape = (len(times), 3, -1) if interpolation == "CUBICSPLINE" else (len(times), -1)
            channels.append(Channel(target["node"], target["path"], times, values.reshape(shape), interpolation))
        start = min((float(c.times[0]) for c in channels), default=0.0)
        end = max((float(c.times[-1]) for c in channels), default=0.0)
        return Animation(entry.get("name", f"animation_{index}"), channels, start, end)

    def accessor(self, index: int) -> np.ndarray:
        """Return the values of an accessor, [count, width]; normalized integers as floats."""
        entry = self.document["accessors"][index]
        dtype, width, count = (
            np.dtype(COMPONENT_TYPES[entry["componentType"]]),
            WIDTHS[entry["type"]],
            int(entry["count"]),
        )
        if "bufferView" in entry:
            values = self.strided(entry["bufferView"], entry.get("byteOffset", 0), dtype, width, count)
        else:
            values = np.zeros((count, width), dtype)
        if "sparse" in entry:
            sparse = entry["sparse"]
            where, new, number = sparse["indices"], sparse["values"], sparse["count"]
            place = np.dtype(COMPONENT_TYPES[where["componentType"]])
            rows = self.strided(where["bufferView"], where.get("byteOffset", 0), place, 1, number)[:, 0]
            values = values.copy()
            values[rows] = self.strided(new["bufferView"], new.get("byteOffset", 0), dtype, width, number)
        if entry.get("normalized"):
            values = np.maximum(values.astype(np.float32) / int(np.iinfo(values.dtype).max), -1)
        return values

    def strided(self, view: int, offset: int, dtype: np.dtype, width: int, count: int) -> np.ndarray:
        data = self.view(view)
        stride = self.document["bufferViews"][view].get("byteStride", dtype.itemsize * width)
        if count and offset + (count - 1) * stride + dtype.itemsize * width > len(data):
            raise AssetError("unreadable", f"truncated: an accessor reaches beyond bufferView {view}")
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize))

    def view(self, index: int) -> bytes:
        entry = self.document["bufferViews"][index]
        start = entry.get("byteOffset", 0)
        data = self.buffer(entry["buffer"])
        if start + entry["byteLength"] > len(data):
            raise AssetError("unreadable", f"truncated: bufferView {index} reaches beyond its buffer")
        return data[start : start + entry["byteLength"]]

    def buffer(self, index: int) -> bytes:
        if index not in self.buffers:
            entry = self.document["buffers"][index]
            if "uri" in entry:
                self.buffers[index] = self.uri(entry["uri"])
            elif self.binary is not None:
                self.buffers[index] = self.binary
            else:
                raise AssetError("unreadable", f"buffer {index} has no data")
        return self.buffers[index]

    def uri(self, uri: str) -> bytes:
        if uri.startswith("data:"):
            try:
                return base64.b64decode(uri.partition(",")[2], validate=True)
            except binascii.Error as error:
                raise AssetError("unreadable", f"a data URI is not base64 ({error})") from error
        path = self.folder / urllib.parse.unquote(uri)
        if not path.is_file():
            raise AssetError("unreadable", f"{path.name}: missing beside the asset")
        return path.read_bytes()


def _parents_first(nodes: list[Node]) -> list[int]:
    order: list[int] = []
    placed: set[int] = set()
    while len(order) < len(nodes):
        ready = [k for k, n in enumerate(nodes) if k not in placed and (n.parent is None or n.parent in placed)]
        if not ready:
            raise AssetError("unreadable", "the node hierarchy has a cycle")
        order += ready
        placed.update(ready)
    return order


def _triangles(indices: np.ndarray, mode: int, count: int) -> np.ndarray:
    """Return [T, 3] from a list, a strip or a fan of indices into ``count`` vertices."""
    if len(indices) and int(indices.max()) >= count:
        raise AssetError("unreadable", f"a triangle index is {int(indices.max())} of {count} vertices")
    if mode == TRIANGLES:
        return indices[: len(indices) // 3 * 3].reshape(-1, 3)
    if mode == FAN:
        first = np.broadcast_to(indices[:1], (max(len(indices) - 2, 0),))
        return np.stack([first, indices[1:-1], indices[2:]], axis=1)
    strip = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
    strip[1::2] = strip[1::2, ::-1]
    return strip

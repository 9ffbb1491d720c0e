"""Write meshes as binary glTF 2.0 (.glb): still, animated by switching one mesh a frame, or with morph targets.

glTF is y up, +z forward, in meters. World +z becomes glTF +y and the input camera's side, world +x, becomes glTF +z.
Vertex colors are linear in glTF, and the material is unlit: the light is in the colors.
"""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pygltflib import (
    ARRAY_BUFFER,
    ELEMENT_ARRAY_BUFFER,
    FLOAT,
    GLTF2,
    SCALAR,
    UNSIGNED_INT,
    UNSIGNED_SHORT,
    VEC2,
    VEC3,
    VEC4,
    Accessor,
    Animation,
    AnimationChannel,
    AnimationChannelTarget,
    AnimationSampler,
    Asset,
    Attributes,
    Buffer,
    BufferView,
    Material,
    Node,
    PbrMetallicRoughness,
    Primitive,
    Sampler,
    Scene,
    Texture,
    TextureInfo,
)
from pygltflib import Image as GltfImage
from pygltflib import Mesh as GltfMesh

from fourdiffusion import __version__
from fourdiffusion.files import write_atomic
from fourdiffusion.scene.export.morph import Morph
from fourdiffusion.scene.export.surface import Mesh

TO_GLTF = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=np.float32)  # world [x, y, z] -> glTF [y, z, x]
UNLIT = "KHR_materials_unlit"


def srgb_to_linear(color: np.ndarray) -> np.ndarray:
    """Return linear values of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def write_glb(
    path: Path, meshes: list[Mesh], fps: float, scale: float = 1.0, copyright: str = "", extras: dict | None = None
) -> None:
    """Write a GLB that shows one mesh after the other; a single mesh is not animated.

    Every frame is a node of its own; STEP keys give it scale 1 during its frame and 0 otherwise. Without animation the
    first frame is seen.

    Args:
        meshes: one a frame.
        fps: frames a second.
        scale: meters a scene unit.
        copyright: of asset.copyright.
        extras: JSON values for asset.extras.
    """
    write_atomic(path, lambda partial: partial.write_bytes(build_glb(meshes, fps, scale, copyright, extras)))


def build_glb(
    meshes: list[Mesh], fps: float, scale: float = 1.0, copyright: str = "", extras: dict | None = None
) -> bytes:
    """Return the bytes of the file that ``write_glb`` writes."""
    if not meshes or fps <= 0 or scale <= 0:
        raise ValueError(f"a GLB needs meshes, fps > 0 and scale > 0, got {len(meshes)} meshes, {fps=}, {scale=}")
    gltf, blob = _empty(copyright, extras), bytearray()
    for frame, mesh in enumerate(meshes):
        gltf.meshes.append(GltfMesh(name=f"frame_{frame:04d}", primitives=[_primitive(gltf, blob, mesh, scale)]))
        hidden = [0.0, 0.0, 0.0] if frame else None
        gltf.nodes.append(Node(name=f"frame_{frame:04d}", mesh=frame, scale=hidden))
    gltf.nodes.append(Node(name="object", children=list(range(len(meshes)))))
    gltf.scenes = [Scene(nodes=[len(meshes)])]
    if len(meshes) > 1:
        gltf.animations = [_animation(gltf, blob, len(meshes), fps)]
    gltf.buffers = [Buffer(byteLength=len(blob))]
    gltf.set_binary_blob(bytes(blob))
    return b"".join(gltf.save_to_bytes())


def build_morph_glb(
    morph: Morph, fps: float, scale: float = 1.0, copyright: str = "", extras: dict | None = None
) -> bytes:
    """Return the bytes of a GLB of one mesh whose vertices move: a morph target a frame, weights with LINEAR keys.

    The mesh is that of the morph's reference frame, the others are targets. Key k, at k / fps, has weight 1 for frame k
    and 0 for the others: between frames the vertices move straight, and the last key ends the animation. Without
    animation the first frame is seen. Targets hold positions only: the material is unlit, and normals follow from them.
    """
    if fps <= 0 or scale <= 0 or len(morph.positions) < 2:
        raise ValueError(
            f"morph targets need two frames, fps > 0 and scale > 0, got {len(morph.positions)}, {fps=}, {scale=}"
        )
    gltf, blob = _empty(copyright, extras), bytearray()
    primitive = _primitive(gltf, blob, morph.mesh, scale)
    frames = [frame for frame in range(len(morph.positions)) if frame != morph.reference]
    primitive.targets = []
    for frame in frames:
        moved = (morph.positions[frame] - morph.mesh.vertices) @ TO_GLTF.T * scale
        primitive.targets.append(Attributes(POSITION=_positions(gltf, blob, moved)))
    weights = np.array(
        [[float(frame == shown) for frame in frames] for shown in range(len(morph.positions))], np.float32
    )
    mesh = GltfMesh(name="object", primitives=[primitive], weights=weights[0].tolist())
    mesh.extras = {"targetNames": [f"frame_{frame:04d}" for frame in frames]}
    gltf.meshes, gltf.nodes, gltf.scenes = [mesh], [Node(name="object", mesh=0)], [Scene(nodes=[0])]
    moment = _moments(gltf, blob, np.arange(len(weights), dtype=np.float32) / np.float32(fps))
    output = _accessor(gltf, blob, weights.ravel(), SCALAR, FLOAT, None)
    sampler = AnimationSampler(input=moment, output=output, interpolation="LINEAR")
    channel = AnimationChannel(sampler=0, target=AnimationChannelTarget(node=0, path="weights"))
    gltf.animations = [Animation(name="frames", samplers=[sampler], channels=[channel])]
    gltf.buffers = [Buffer(byteLength=len(blob))]
    gltf.set_binary_blob(bytes(blob))
    return b"".join(gltf.save_to_bytes())


def _empty(copyright: str, extras: dict | None) -> GLTF2:
    asset = Asset(version="2.0", generator=f"fourdiffusion {__version__}", copyright=copyright or None)
    asset.extras = json.loads(json.dumps(extras or {}))
    return GLTF2(asset=asset, scene=0, extensionsUsed=[UNLIT])


def _material(texture: int | None = None) -> Material:
    surface = PbrMetallicRoughness(baseColorFactor=[1.0, 1.0, 1.0, 1.0], metallicFactor=0.0, roughnessFactor=1.0)
    if texture is not None:
        surface.baseColorTexture = TextureInfo(index=texture)
    name = "radiance" if texture is None else f"radiance_{texture:04d}"
    return Material(name=name, pbrMetallicRoughness=surface, extensions={UNLIT: {}}, alphaCutoff=None)


def _textured_material(gltf: GLTF2, blob: bytearray, texture: np.ndarray) -> int:
    """Append a texture as a PNG and a material that shows it; return the material's number."""
    file = io.BytesIO()
    Image.fromarray(texture).save(file, format="PNG")
    view = _buffer_view(gltf, blob, file.getvalue(), None)
    gltf.images.append(GltfImage(bufferView=view, mimeType="image/png"))
    if not gltf.samplers:
        gltf.samplers.append(Sampler())
    gltf.textures.append(Texture(source=len(gltf.images) - 1, sampler=0))
    gltf.materials.append(_material(len(gltf.textures) - 1))
    return len(gltf.materials) - 1


def _primitive(gltf: GLTF2, blob: bytearray, mesh: Mesh, scale: float) -> Primitive:
    position = _positions(gltf, blob, mesh.vertices @ TO_GLTF.T * scale)
    normal = _accessor(gltf, blob, (mesh.normals @ TO_GLTF.T).astype(np.float32), VEC3, FLOAT, ARRAY_BUFFER)
    attributes, material = Attributes(POSITION=position, NORMAL=normal), 0
    if mesh.uv is not None and mesh.texture is not None:
        attributes.TEXCOORD_0 = _accessor(gltf, blob, mesh.uv.astype(np.float32), VEC2, FLOAT, ARRAY_BUFFER)
        material = _textured_material(gltf, blob, mesh.texture)
    else:
        if not gltf.materials:
            gltf.materials.append(_material())
        colors = np.ones((len(mesh.colors), 4))
        colors[:, :3] = srgb_to_linear(mesh.colors)
        color = _accessor(gltf, blob, (colors * 65535).round().astype(np.uint16), VEC4, UNSIGNED_SHORT, ARRAY_BUFFER)
        gltf.accessors[color].normalized = True
        attributes.COLOR_0 = color
    indices = mesh.faces.astype(np.uint32).ravel()
    index = _accessor(gltf, blob, indices, SCALAR, UNSIGNED_INT, ELEMENT_ARRAY_BUFFER)
    return Primitive(attributes=attributes, indices=index, material=material)


def _animation(gltf: GLTF2, blob: bytearray, num_frames: int, fps: float) -> Animation:
    animation = Animation(name="frames")
    for frame in range(num_frames):
        # Each node has a key at 0 and one at the end, so that all channels last equally long.
        keys = {0.0: 0.0, num_frames / fps: float(frame == num_frames - 1)}
        keys |= {frame / fps: 1.0}
        if frame < num_frames - 1:
            keys |= {(frame + 1) / fps: 0.0}
        ordered = sorted(keys)
        times = np.array(ordered, dtype=np.float32)
        scales = np.repeat(np.array([keys[time] for time in ordered], dtype=np.float32)[:, None], 3, axis=1)
        moment = _moments(gltf, blob, times)
        output = _accessor(gltf, blob, scales, VEC3, FLOAT, None)
        animation.samplers.append(AnimationSampler(input=moment, output=output, interpolation="STEP"))
        target = AnimationChannelTarget(node=frame, path="scale")
        animation.channels.append(AnimationChannel(sampler=frame, target=target))
    return animation


def _positions(gltf: GLTF2, blob: bytearray, positions: np.ndarray) -> int:
    """Append positions, or how they move, [N, 3]; return the number of their accessor."""
    positions = positions.astype(np.float32)
    number = _accessor(gltf, blob, positions, VEC3, FLOAT, ARRAY_BUFFER)
    gltf.accessors[number].min, gltf.accessors[number].max = (
        positions.min(axis=0).tolist(),
        positions.max(axis=0).tolist(),
    )
    return number


def _moments(gltf: GLTF2, blob: bytearray, times: np.ndarray) -> int:
    """Append the times of keys in seconds; return the number of their accessor."""
    number = _accessor(gltf, blob, times, SCALAR, FLOAT, None)
    gltf.accessors[number].min, gltf.accessors[number].max = [float(times[0])], [float(times[-1])]
    return number


def _accessor(gltf: GLTF2, blob: bytearray, array: np.ndarray, kind: str, component: int, target: int | None) -> int:
    """Append an array to the buffer; return the number of its accessor."""
    view = _buffer_view(gltf, blob, np.ascontiguousarray(array).tobytes(), target)
    gltf.accessors.append(Accessor(bufferView=view, componentType=component, count=len(array), type=kind))
    return len(gltf.accessors) - 1


def _buffer_view(gltf: GLTF2, blob: bytearray, data: bytes, target: int | None) -> int:
    """Append bytes to the buffer, at a multiple of four; return the number of their view."""
    blob.extend(b"\0" * (-len(blob) % 4))
    gltf.bufferViews.append(BufferView(buffer=0, byteOffset=len(blob), byteLength=len(data), target=target))
    blob.extend(data)
    return len(gltf.bufferViews) - 1

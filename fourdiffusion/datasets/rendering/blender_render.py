"""Script that runs inside Blender and answers the requests of `engine.py` on standard input.

    python blender_render.py                                  # a Python with the bpy package
    blender --background --factory-startup --python blender_render.py

It imports nothing of the project and is the only file that imports bpy. Objects stay where the importer puts them:
cameras and lights are transformed to the asset's world, so skins, caches and constraints are not affected.
"""

import json
import math
import os
import struct
import sys
import tempfile
import traceback
from fractions import Fraction
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix, Vector

ANSWER = "@fourdiffusion "
MAX_POINTS = 20000
AREA_DISTANCE = 4.0  # scene units
SURFACES = {"MESH", "CURVE", "SURFACE", "FONT", "META"}


Message = dict[str, Any]
Users = dict[str, list[tuple[Any, Any, Any]]]  # animation name: (data block, action, slot)
GROUPS: Users = {}  # the animations of the opened file
REST: dict[tuple[str, str | None], Any] = {}  # see rest_pose


class Failure(Exception):
    """A failed request: ``reason`` is one word of the render log."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


# Opening


def open_asset(message: Message) -> Message:
    """Load a file into an empty scene and return its animations."""
    path = message["path"]
    suffix = os.path.splitext(path)[1].lower()
    bpy.ops.wm.read_factory_settings(use_empty=True)
    try:
        REST.clear()
        if suffix in (".glb", ".gltf"):
            check_gltf(path)
            REST.update(rest_pose_of_gltf(path))
            bpy.ops.import_scene.gltf(filepath=path, disable_bone_shape=True)
        elif suffix == ".fbx":
            importer = getattr(bpy.ops.wm, "fbx_import", None) or bpy.ops.import_scene.fbx
            importer(filepath=path)
        elif suffix in (".usd", ".usda", ".usdc", ".usdz"):
            bpy.ops.wm.usd_import(filepath=path, import_cameras=False, import_lights=False)
        elif suffix == ".abc":
            bpy.ops.wm.alembic_import(filepath=path, as_background_job=False)
        elif suffix == ".blend":
            bpy.ops.wm.open_mainfile(filepath=path, load_ui=False, use_scripts=False)
        else:
            raise Failure("unsupported", f"files that end in {suffix} cannot be read")
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise Failure("missing_texture" if "image" in text.lower() else "unreadable", text[:300]) from error
    for thing in list(bpy.data.objects):
        if thing.type in ("CAMERA", "LIGHT"):
            bpy.data.objects.remove(thing)
    if not any(thing.type in SURFACES and shown(thing) for thing in bpy.data.objects):
        raise Failure("empty", "the scene has no visible surface")
    if not REST:
        REST.update(rest_pose())
    check_textures()
    GROUPS.clear()
    GROUPS.update(strips() or other_actions())
    return {"axes": "blender", "animations": list_animations()}


def check_gltf(path: str) -> None:
    """Raise Failure for files that are not glTF or are truncated, before an importer reads them."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:4] == b"glTF":
        if len(data) < 20 or struct.unpack_from("<I", data, 8)[0] > len(data):
            raise Failure("unreadable", f"truncated: {len(data)} bytes")
        return
    try:
        known = "asset" in json.loads(data)
    except (ValueError, TypeError):
        known = False
    if not known:
        raise Failure("unreadable", "not a glTF file: neither the GLB header nor JSON")


def shown(thing: Any) -> bool:
    """Return whether an object is rendered."""
    return not thing.hide_render and thing.visible_get()


def check_textures() -> None:
    for image in bpy.data.images:
        if image.source != "FILE" or image.packed_file or image.users == 0:
            continue
        path = bpy.path.abspath(image.filepath, library=image.library)
        if not os.path.isfile(path):
            raise Failure("missing_texture", f"{os.path.basename(path) or image.name}: no such file")


def cull_backfaces() -> None:
    """Make Cycles cull the back faces of materials with back-face culling, as the other engines do."""
    for material in bpy.data.materials:
        if not (material.use_backface_culling and material.node_tree) or "culled" in material:
            continue
        material["culled"] = True
        tree = material.node_tree
        output = next((n for n in tree.nodes if n.bl_idname == "ShaderNodeOutputMaterial" and n.is_active_output), None)
        if output is None or not output.inputs["Surface"].links:
            continue
        surface = output.inputs["Surface"].links[0].from_socket
        mix = tree.nodes.new("ShaderNodeMixShader")
        geometry, nothing = tree.nodes.new("ShaderNodeNewGeometry"), tree.nodes.new("ShaderNodeBsdfTransparent")
        tree.links.new(geometry.outputs["Backfacing"], mix.inputs[0])
        tree.links.new(surface, mix.inputs[1])
        tree.links.new(nothing.outputs[0], mix.inputs[2])
        tree.links.new(mix.outputs[0], output.inputs["Surface"])


# Animations


def animated_data() -> list[Any]:
    """Return all data blocks that carry animation."""
    kinds = (bpy.data.objects, bpy.data.shape_keys, bpy.data.armatures, bpy.data.meshes, bpy.data.materials)
    return [block for kind in kinds for block in kind if getattr(block, "animation_data", None)]


def strips() -> Users:
    """Return {animation name: [(data block, action, slot)]} of the NLA tracks that the glTF importer makes.

    The first animation of the file is the top track.
    """
    found: Users = {}
    for block in animated_data():
        for track in block.animation_data.nla_tracks:
            for strip in track.strips:
                if strip.action:
                    found.setdefault(track.name, []).append((block, strip.action, strip.action_slot))
    return dict(reversed(found.items()))


def other_actions() -> Users:
    """Return {action name: [(data block, action, slot)]} of the actions that data blocks use or were made for.

    If all actions already play, each on its own blocks, they are one animation.
    """
    found: Users = {}
    for action in bpy.data.actions:
        for slot in action.slots:
            for block in slot.users():
                found.setdefault(action.name, []).append((block, action, slot))
    playing = {block.animation_data.action.name for block in animated_data() if block.animation_data.action}
    if len(found) > 1 and playing == set(found):
        return {"scene": [user for users in found.values() for user in users]}
    return found


def has_cache() -> bool:
    """Return whether something moves without an action: Alembic or USD caches, simulations, drivers."""
    if len(bpy.data.cache_files):
        return True
    return any(getattr(block.animation_data, "drivers", None) for block in animated_data())


def list_animations() -> list[Message]:
    """Return [{name, start, end}] in seconds: NLA tracks, else actions, else the scene's own frame range."""
    scene = bpy.context.scene
    fps = scene.render.fps / scene.render.fps_base
    found = []
    for name, users in GROUPS.items():
        starts, ends = zip(*(action.frame_range for _, action, _ in users), strict=True)
        found.append({"name": name, "start": min(starts) / fps, "end": max(ends) / fps})
    if not found and has_cache():
        found.append({"name": "scene", "start": scene.frame_start / fps, "end": scene.frame_end / fps})
    return found


def choose_animation(index: int) -> None:
    """Play one animation of ``list_animations``."""
    name = list_animations()[index]["name"]
    users = GROUPS.get(name)
    if users is None:
        return
    for block in animated_data():
        for track in block.animation_data.nla_tracks:
            track.mute = True
        block.animation_data.action = None
    restore_rest_pose()
    for block, action, slot in users:
        block.animation_data.action = action
        block.animation_data.action_slot = slot


def rest_pose() -> dict[tuple[str, str | None], Any]:
    """Return {(object or shape keys, bone or key): value}: the pose without an animation."""
    pose: dict[tuple[str, str | None], Any] = {}
    for thing in bpy.data.objects:
        pose[thing.name, None] = thing.matrix_basis.copy()
        if thing.type == "ARMATURE":
            pose.update({(thing.name, bone.name): bone.matrix_basis.copy() for bone in thing.pose.bones})
    for keys in bpy.data.shape_keys:
        pose.update({(keys.name, block.name): block.value for block in keys.key_blocks})
    return pose


def restore_rest_pose() -> None:
    """Reset channels that this animation does not key to the rest pose."""
    for (owner, part), value in REST.items():
        thing, keys = bpy.data.objects.get(owner), bpy.data.shape_keys.get(owner)
        if isinstance(value, float):
            if keys is not None and part in keys.key_blocks:
                keys.key_blocks[part].value = value
        elif thing is not None and part is None:
            thing.matrix_basis = value
        elif thing is not None and thing.pose and part in thing.pose.bones:
            thing.pose.bones[part].matrix_basis = value


def rest_pose_of_gltf(path: str) -> dict[tuple[str, str | None], Any]:
    """Return the rest pose of a copy imported without animations: the importer applies the first animation's pose."""
    with open(path, "rb") as file:
        data = file.read()
    binary = data[:4] == b"glTF"
    size = struct.unpack_from("<I", data, 12)[0] if binary else len(data)
    start = 20 if binary else 0
    document = json.loads(data[start : start + size])
    document.pop("animations", None)
    for entry in document.get("buffers", []) + document.get("images", []):
        uri = entry.get("uri", "data:")
        if not uri.startswith("data:"):
            entry["uri"] = os.path.join(os.path.dirname(os.path.abspath(path)), uri)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    if binary:
        rest = data[start + size :]
        text = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "rest.glb" if binary else "rest.gltf")
        with open(copy, "wb") as file:
            file.write(text)
        bpy.ops.import_scene.gltf(filepath=copy, disable_bone_shape=True)
    pose = rest_pose()
    bpy.ops.wm.read_factory_settings(use_empty=True)
    return pose


def go_to(time: float) -> None:
    """Move the scene to a time in seconds."""
    scene = bpy.context.scene
    frame = time * scene.render.fps / scene.render.fps_base
    frame *= scene.render.frame_map_new / scene.render.frame_map_old
    whole = math.floor(frame)
    scene.frame_set(whole, subframe=frame - whole)


# Measuring


def measure(message: Message) -> Message:
    """Write the world positions of all visible vertices at the given times."""
    reset_clock()
    choose_animation(message["animation"])
    frames: dict[str, Any] = {}
    for k, time in enumerate(message["times"]):
        go_to(time)
        points = vertices()
        if not np.isfinite(points).all():
            raise Failure("unreadable", f"vertices are not finite at {time:g} s")
        step = 1 + len(points) // MAX_POINTS
        if step > 1:
            extremes = np.concatenate([points[points.argmin(axis=0)], points[points.argmax(axis=0)]])
            points = np.concatenate([points[::step], extremes])
        frames[f"f{k}"] = points
    np.savez(message["file"], **frames)
    return {}


def vertices() -> np.ndarray:
    """Return the evaluated vertices of everything visible in world coordinates, [N, 3]."""
    found = [np.zeros((0, 3), np.float32)]
    graph = bpy.context.evaluated_depsgraph_get()
    for instance in graph.object_instances:
        thing = instance.object
        if thing.type not in SURFACES or not (instance.is_instance or shown(thing.original)):
            continue
        mesh = thing.to_mesh()
        if mesh is None:
            continue
        points = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", points)
        matrix = np.array(instance.matrix_world, np.float32)
        found.append(points.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3])
        thing.to_mesh_clear()
    return np.concatenate(found)


def reset_clock() -> None:
    render = bpy.context.scene.render
    render.frame_map_old = render.frame_map_new = 100


# Rendering


def render_clip(message: Message) -> Message:
    """Render all cameras at all times into ``folder``/rgba, and the requested layers."""
    choose_animation(message["animation"])
    set_clock(message["times"])
    world = np.array(message["world"])
    scale = float(np.linalg.norm(world[:3, 0]))
    rotation = world[:3, :3] / scale
    camera = make_camera(message["fovy_deg"], scale)
    if message["cull_backfaces"]:
        cull_backfaces()
    lights = make_lights(message, world, rotation, scale)
    set_engine(message)
    layers = [kind for kind in ("depth", "normal", "motion") if message[kind]]
    for name in ("rgba", *layers):
        os.makedirs(os.path.join(message["folder"], name))
    cameras = [np.linalg.inv(world) @ np.array(matrix) for matrix in message["cameras"]]
    for matrix in cameras:
        matrix[:3, :3] *= scale  # back to a rotation
    for f, time in enumerate(message["times"]):
        go_to(time)
        for v, matrix in enumerate(cameras):
            name = f"v{v:02d}_f{f:02d}"
            camera.matrix_world = Matrix(matrix.tolist())
            set_output(os.path.join(message["folder"], "rgba", name + ".png"))
            bpy.ops.render.render(write_still=True)
            if layers:
                write_layers(message, name, layers, rotation, scale)
        reply({"progress": f + 1})
    for thing in (camera, *lights):
        bpy.data.objects.remove(thing)
    return {}


def set_clock(times: list[float]) -> None:
    """Make one scene frame as long as one frame of the clip: motion vectors are per scene frame."""
    reset_clock()
    render = bpy.context.scene.render
    step = Fraction((times[1] - times[0]) * render.fps / render.fps_base).limit_denominator(900)
    if 0 < step.numerator <= 900:
        render.frame_map_old, render.frame_map_new = step.numerator, step.denominator


def make_camera(fovy_deg: float, scale: float) -> Any:
    data = bpy.data.cameras.new("render camera")
    data.sensor_fit = "VERTICAL"
    data.angle = math.radians(fovy_deg)
    data.clip_start, data.clip_end = 0.01 / scale, 100 / scale
    camera = bpy.data.objects.new("render camera", data)
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    return camera


def make_lights(message: Message, world: np.ndarray, rotation: np.ndarray, scale: float) -> list[Any]:
    """Place the lights, and ambient light or an environment map, fixed in the scene; return the light objects."""
    lights = []
    for entry in message["lights"]:
        direction = np.array(entry["direction"])
        angle = math.radians(entry["angle_deg"])
        if entry["kind"] == "sun":
            data = bpy.data.lights.new("render light", "SUN")
            data.angle = angle
            data.energy = math.pi * entry["strength"]  # irradiance: a white surface then has radiance `strength`
            place = np.zeros(3)
        else:
            data = bpy.data.lights.new("render light", "AREA")
            data.size = 2 * AREA_DISTANCE / scale * math.tan(angle / 2)
            data.energy = math.pi**2 * entry["strength"] * (AREA_DISTANCE / scale) ** 2
            place = np.linalg.inv(world)[:3] @ [*(AREA_DISTANCE * direction), 1]
        data.use_shadow = message["shadows"]
        light = bpy.data.objects.new("render light", data)
        turn = Vector((rotation.T @ direction).tolist()).to_track_quat("Z", "Y")
        light.matrix_world = Matrix.Translation(place.tolist()) @ turn.to_matrix().to_4x4()
        bpy.context.scene.collection.objects.link(light)
        lights.append(light)
    make_sky(message, rotation)
    return lights


def make_sky(message: Message, rotation: np.ndarray) -> None:
    """Set the ambient light: even white, or the HDRI picture turned by ``rotation``."""
    sky = bpy.data.worlds.new("render sky")
    sky.use_nodes = True
    tree = sky.node_tree
    background = next(node for node in tree.nodes if node.bl_idname == "ShaderNodeBackground")
    background.inputs["Color"].default_value = (1, 1, 1, 1)
    background.inputs["Strength"].default_value = message["ambient"]
    if message["hdri"]:
        try:
            image = bpy.data.images.load(message["hdri"])
        except RuntimeError as error:
            raise Failure("missing_texture", f"hdri: {error}") from error
        background.inputs["Strength"].default_value = 1
        coordinate, mapping = tree.nodes.new("ShaderNodeTexCoord"), tree.nodes.new("ShaderNodeMapping")
        mapping.inputs["Rotation"].default_value = Matrix(rotation.tolist()).to_euler()
        texture = tree.nodes.new("ShaderNodeTexEnvironment")
        texture.image = image
        tree.links.new(coordinate.outputs["Generated"], mapping.inputs["Vector"])
        tree.links.new(mapping.outputs["Vector"], texture.inputs["Vector"])
        tree.links.new(texture.outputs["Color"], background.inputs["Color"])
    bpy.context.scene.world = sky


def set_engine(message: Message) -> None:
    """Choose the engine, its device and its samples, and a plain transfer from linear color to sRGB."""
    scene = bpy.context.scene
    render = scene.render
    render.resolution_x, render.resolution_y, render.resolution_percentage = message["width"], message["height"], 100
    render.film_transparent, render.use_motion_blur, render.dither_intensity = True, False, 0
    render.use_persistent_data = True
    render.use_compositing = render.use_sequencer = False
    if message["threads"]:
        render.threads_mode, render.threads = "FIXED", message["threads"]
    for layer in scene.view_layers:  # before the first render: persistent data keep their passes
        layer.use_pass_z, layer.use_pass_normal = message["depth"], message["normal"]
        layer.use_pass_vector = message["motion"]
    for material in bpy.data.materials:  # the setting that EEVEE reads
        material.use_backface_culling = material.use_backface_culling and message["cull_backfaces"]
    scene.view_settings.view_transform, scene.view_settings.look = "Standard", "None"
    scene.view_settings.exposure, scene.view_settings.gamma = 0, 1
    if message["engine"] == "eevee":
        engines = ("BLENDER_EEVEE", "BLENDER_EEVEE_NEXT")
        for name in engines:
            try:
                render.engine = name
                break
            except TypeError:
                continue
        scene.eevee.taa_render_samples = message["samples"]
        return
    if "cycles" not in bpy.context.preferences.addons:
        bpy.ops.preferences.addon_enable(module="cycles")
    render.engine = "CYCLES"
    scene.cycles.device = use_device(message["device"])
    scene.cycles.samples, scene.cycles.seed = message["samples"], 0
    scene.cycles.use_adaptive_sampling = False
    scene.cycles.use_denoising = message["denoise"]
    scene.cycles.max_bounces = 4
    scene.cycles.pixel_filter_type, scene.cycles.filter_width = "BOX", 1.0


def use_device(device: str) -> str:
    """Enable the requested kind of GPU and return the device of Cycles."""
    if device == "cpu":
        return "CPU"
    preferences = bpy.context.preferences.addons["cycles"].preferences
    try:
        preferences.compute_device_type = device.upper()
    except TypeError as error:
        raise Failure("engine", f"device={device}: this Blender does not know it") from error
    preferences.get_devices()
    found = [entry for entry in preferences.devices if entry.type == device.upper()]
    if not found:
        raise Failure("engine", f"device={device}: no such device here; set device=cpu")
    for entry in preferences.devices:
        entry.use = entry in found
    return "GPU"


def set_output(path: str) -> None:
    scene = bpy.context.scene
    settings = scene.render.image_settings
    if hasattr(settings, "media_type"):
        settings.media_type = "IMAGE"
    settings.file_format, settings.color_mode, settings.color_depth = "PNG", "RGBA", "8"
    settings.compression = 15
    scene.render.filepath = path


# Layers


def write_layers(message: Message, name: str, layers: list[str], rotation: np.ndarray, scale: float) -> None:
    """Render one Cycles sample through each pixel's center and write its distance, normal and motion."""
    scene = bpy.context.scene
    settings = scene.render.image_settings
    engine, samples = scene.render.engine, message["samples"]
    path = os.path.join(message["folder"], "layers.exr")
    if "cycles" not in bpy.context.preferences.addons:
        bpy.ops.preferences.addon_enable(module="cycles")
    scene.render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.filter_width, scene.cycles.use_denoising = 1, 0.01, False
    if hasattr(settings, "media_type"):
        settings.media_type = "MULTI_LAYER_IMAGE"
    if hasattr(settings, "use_exr_interleave"):
        settings.use_exr_interleave = True  # one part, as read_exr takes it
    settings.file_format, settings.color_depth, settings.exr_codec = "OPEN_EXR_MULTILAYER", "32", "NONE"
    scene.render.filepath = path
    bpy.ops.render.render(write_still=True)
    channels = read_exr(path)
    os.remove(path)
    scene.render.engine, scene.cycles.samples = engine, samples
    scene.cycles.filter_width, scene.cycles.use_denoising = 1.0, message["denoise"]
    hit = channels["Combined.A"] > 0.5
    if "depth" in layers:
        ray = pixel_rays(message)
        depth = np.where(hit, channels["Depth.Z"] * ray * scale, np.inf)
        np.save(os.path.join(message["folder"], "depth", name + ".npy"), depth.astype(np.float32))
    if "normal" in layers:
        normal = np.stack([channels["Normal." + axis] for axis in "XYZ"], axis=-1) @ rotation.T
        normal = np.where(hit[..., None], normal, 0)
        np.save(os.path.join(message["folder"], "normal", name + ".npy"), normal.astype(np.float32))
    if "motion" in layers:
        motion = np.stack([-channels["Vector.Z"], channels["Vector.W"]], axis=-1)
        motion = np.where(hit[..., None], motion, 0)
        np.save(os.path.join(message["folder"], "motion", name + ".npy"), motion.astype(np.float32))


def pixel_rays(message: Message) -> np.ndarray:
    """Return the distance along each pixel's ray for a depth of 1 along the camera's axis, [H, W]."""
    height, width = message["height"], message["width"]
    half = math.tan(math.radians(message["fovy_deg"]) / 2)
    y = (1 - (np.arange(height) + 0.5) * (2 / height))[:, None] * half
    x = ((np.arange(width) + 0.5) * (2 / width) - 1)[None] * half * width / height
    return np.sqrt(1 + x * x + y * y)


def read_exr(path: str) -> dict[str, np.ndarray]:
    """Return {pass and channel: float32 [H, W]} of an uncompressed single-part scan-line OpenEXR file."""
    with open(path, "rb") as file:
        data = file.read()
    position, header = 8, {}
    while data[position]:
        name_end = data.index(b"\0", position)
        kind_end = data.index(b"\0", name_end + 1)
        (size,) = struct.unpack_from("<i", data, kind_end + 1)
        header[data[position:name_end].decode()] = data[kind_end + 5 : kind_end + 5 + size]
        position = kind_end + 5 + size
    left, top, right, bottom = struct.unpack("<4i", header["dataWindow"])
    width, height = right - left + 1, bottom - top + 1
    names, cursor, listing = [], 0, header["channels"]
    while listing[cursor]:
        end = listing.index(b"\0", cursor)
        kind = struct.unpack_from("<i", listing, end + 1)[0]
        if kind != 2 or header["compression"] != b"\0":
            raise Failure("engine", f"the layers of Blender {bpy.app.version_string} are not plain 32-bit floats")
        names.append(".".join(listing[cursor:end].decode().split(".")[-2:]))
        cursor = end + 17
    start = position + 1 + 8 * height
    row = np.dtype([("y", "<i4"), ("size", "<i4"), ("values", "<f4", (len(names), width))])
    rows = np.frombuffer(data, row, count=height, offset=start)
    return {name: rows["values"][:, k] for k, name in enumerate(names)}


def reply(answer: Message) -> None:
    """Print an answer on a line of its own; Blender may have left a line unfinished."""
    print("\n" + ANSWER + json.dumps(answer), flush=True)


def main() -> None:
    """Answer requests until the end of the input."""
    work = {"hello": lambda _: {}, "open": open_asset, "measure": measure, "render": render_clip}
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = work[message["do"]](message)
        except Failure as failure:
            answer = {"reason": failure.reason, "detail": str(failure)}
        except MemoryError:
            raise
        except Exception as error:
            traceback.print_exc()
            answer = {"reason": "error", "detail": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        reply(answer)


if __name__ == "__main__":
    main()

"""Open an exported GLB or USD in Blender and print its frame range and which meshes are seen when.

    BLENDER_PYTHON dev/check_blender.py scene.glb [FPS [FRAMES]]        # a Python that has bpy, or blender -b -P

Prints one JSON line. Exits with 1 where FRAMES are given and the file does not last so many at FPS (8), or where in the
middle of a frame not exactly one mesh is seen; of a GLB with morph targets, where a frame does not show its own shape.
"""

import json
import sys
from pathlib import Path

import bpy


def seen(scene: object, frame: float) -> list[str]:
    """Return the meshes that are not scaled to nothing at a frame."""
    scene.frame_set(int(frame), subframe=frame % 1)  # type: ignore[attr-defined]
    return [each.name for each in bpy.data.objects if each.type == "MESH" and each.matrix_world.to_scale()[0] > 0.5]


def shapes(scene: object, frame: float) -> list[str]:
    """Return the shape keys that are fully on at a frame."""
    scene.frame_set(int(frame), subframe=frame % 1)  # type: ignore[attr-defined]
    return [block.name for block in bpy.data.shape_keys[0].key_blocks[1:] if block.value > 0.999]


def main() -> None:
    words = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]
    path, fps = Path(words[0]), float(words[1]) if len(words) > 1 else 8.0
    expected = int(words[2]) if len(words) > 2 else None
    bpy.ops.wm.read_factory_settings(use_empty=True)
    if path.suffix == ".glb":
        bpy.ops.import_scene.gltf(filepath=str(path))
        first, last = (float(value) for value in bpy.data.actions[0].frame_range)
    else:
        bpy.ops.wm.usd_import(filepath=str(path))
        first, last = float(bpy.context.scene.frame_start), float(bpy.context.scene.frame_end)
    scene = bpy.context.scene
    meshes = [each for each in bpy.data.objects if each.type == "MESH"]
    found: dict[str, object] = {
        "blender": bpy.app.version_string, "meshes": len(meshes), "frame_range": [first, last],
        "blender_fps": scene.render.fps, "vertices": [len(each.data.vertices) for each in meshes],
    }  # fmt: skip
    ok = True
    if path.suffix == ".glb" and expected is not None:
        per_frame = scene.render.fps / fps  # Blender's frames a frame of the scene
    if len(bpy.data.shape_keys) and expected is not None:
        shown = [shapes(scene, first + index * per_frame) for index in range(expected)]
        found["shown"] = shown
        ok = abs(last - first - (expected - 1) * per_frame) < 0.01 and sum(not names for names in shown) == 1
        ok = ok and all(names == [f"frame_{index:04d}"] for index, names in enumerate(shown) if names)
    elif path.suffix == ".glb" and expected is not None:
        shown = [seen(scene, first + (index + 0.5) * per_frame) for index in range(expected)]
        found["seen"] = shown
        ok = last - first == expected * per_frame and all(len(names) == 1 for names in shown)
        ok = ok and len({names[0] for names in shown}) == expected
    elif expected is not None:
        ok = last - first == expected - 1
    print(json.dumps(found | {"ok": ok}))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()

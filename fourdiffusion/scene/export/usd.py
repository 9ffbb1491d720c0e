"""Write an animated scene as one USD file: a mesh whose topology, points and colors have a time sample a frame.

USD is written y up, +z forward, in meters, as glTF (see glb). displayColor is linear.
"""

import os
from pathlib import Path

import numpy as np

from fourdiffusion import __version__
from fourdiffusion.errors import UserError
from fourdiffusion.files import write_atomic
from fourdiffusion.scene.export.glb import TO_GLTF, srgb_to_linear
from fourdiffusion.scene.export.surface import Mesh

SUFFIXES = (".usdc", ".usda", ".usd")


def require_usd() -> None:
    """Raise UserError where usd-core is not installed."""
    try:
        import pxr  # noqa: F401
    except ImportError as error:
        raise UserError("format=usd needs usd-core: pip install 'fourdiffusion[usd]', or give format=glb") from error


def write_usd(
    path: Path, meshes: list[Mesh], fps: float, scale: float = 1.0, copyright: str = "", extras: dict | None = None
) -> None:
    """Write frame f of the meshes as time sample f, at ``fps`` time codes a second.

    Args:
        path: ends in one of SUFFIXES; .usda is text.
        scale: meters a scene unit.
        copyright: author and license, into the layer's comment.
        extras: values for the layer's custom data.
    """
    if path.suffix not in SUFFIXES or not meshes or fps <= 0 or scale <= 0:
        raise ValueError(f"a USD file needs meshes, fps > 0 and scale > 0, got {path}, {len(meshes)}, {fps=}, {scale=}")
    from pxr import Gf, Sdf, Usd, UsdGeom, Vt

    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    for rate in (stage.SetTimeCodesPerSecond, stage.SetFramesPerSecond):
        rate(fps)
    stage.SetStartTimeCode(0)
    stage.SetEndTimeCode(len(meshes) - 1)
    layer = stage.GetRootLayer()
    layer.comment = ", ".join(text for text in (copyright, f"fourdiffusion {__version__}") if text)
    layer.customLayerData = {name: str(value) for name, value in (extras or {}).items()}
    root = UsdGeom.Xform.Define(stage, "/object")
    stage.SetDefaultPrim(root.GetPrim())
    prim = UsdGeom.Mesh.Define(stage, "/object/surface")
    prim.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    colors = UsdGeom.PrimvarsAPI(prim).CreatePrimvar(
        "displayColor", Sdf.ValueTypeNames.Color3fArray, UsdGeom.Tokens.vertex
    )
    prim.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    for frame, mesh in enumerate(meshes):
        points = np.ascontiguousarray(mesh.vertices @ TO_GLTF.T * scale, dtype=np.float32)
        normals = np.ascontiguousarray(mesh.normals @ TO_GLTF.T, dtype=np.float32)
        prim.CreatePointsAttr().Set(Vt.Vec3fArray.FromNumpy(points), frame)
        prim.CreateNormalsAttr().Set(Vt.Vec3fArray.FromNumpy(normals), frame)
        prim.CreateFaceVertexCountsAttr().Set(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, np.int32)), frame)
        prim.CreateFaceVertexIndicesAttr().Set(Vt.IntArray.FromNumpy(mesh.faces.astype(np.int32).ravel()), frame)
        linear = np.ascontiguousarray(srgb_to_linear(mesh.colors), dtype=np.float32)
        colors.Set(Vt.Vec3fArray.FromNumpy(linear), frame)
        low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        prim.CreateExtentAttr().Set([Gf.Vec3f(*low), Gf.Vec3f(*high)], frame)

    def write(partial: Path) -> None:
        inner = partial.with_name(partial.name + path.suffix)  # its ending chooses the format
        try:
            layer.Export(str(inner))
            os.replace(inner, partial)
        finally:
            inner.unlink(missing_ok=True)

    write_atomic(path, write)

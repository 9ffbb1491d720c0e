"""Pose a glTF asset at a time: node animation, skins and morph targets, on the CPU with numpy."""

from __future__ import annotations

import numpy as np

from fourdiffusion.datasets.rendering.gltf import Animation, Asset, Channel, Primitive


def sample_channel(channel: Channel, time: float) -> np.ndarray:
    """Return the value [D] of a channel at a time in seconds, clamped to its first and last key."""
    times, values = channel.times, channel.values
    cubic = channel.interpolation == "CUBICSPLINE"
    k = int(np.searchsorted(times, time, side="right")) - 1
    if k < 0 or k >= len(times) - 1:
        edge = values[0 if k < 0 else -1]
        value = edge[1] if cubic else edge
    elif channel.interpolation == "STEP":
        value = values[k]
    else:
        step = float(times[k + 1] - times[k])
        u = (time - float(times[k])) / step
        if cubic:  # Hermite spline, glTF 2.0 specification, appendix C
            first, out, into, last = values[k, 1], values[k, 2] * step, values[k + 1, 0] * step, values[k + 1, 1]
            value = (2 * u**3 - 3 * u**2 + 1) * first + (u**3 - 2 * u**2 + u) * out
            value = value + (3 * u**2 - 2 * u**3) * last + (u**3 - u**2) * into
        elif channel.path == "rotation":
            value = _slerp(values[k], values[k + 1], u)
        else:
            value = (1 - u) * values[k] + u * values[k + 1]
    if channel.path == "rotation":
        return value / max(float(np.linalg.norm(value)), 1e-12)
    return value


def _slerp(first: np.ndarray, second: np.ndarray, u: float) -> np.ndarray:
    dot = float(first @ second)
    if dot < 0:
        second, dot = -second, -dot
    if dot > 0.9995:
        return (1 - u) * first + u * second
    angle = np.arccos(min(dot, 1.0))
    return (np.sin((1 - u) * angle) * first + np.sin(u * angle) * second) / np.sin(angle)


def world_matrices(asset: Asset, animation: Animation, time: float) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Return the matrices of all nodes in the asset's world, [N, 4, 4], and the morph weights by node."""
    posed: dict[int, dict[str, np.ndarray]] = {}
    for channel in animation.channels:
        posed.setdefault(channel.node, {})[channel.path] = sample_channel(channel, time)
    matrices = np.zeros((len(asset.nodes), 4, 4), np.float64)
    for index in asset.order:
        node, values = asset.nodes[index], posed.get(index, {})
        if node.matrix is not None and not values:
            local = node.matrix.astype(np.float64)
        else:
            local = _trs(
                values.get("translation", node.translation),
                values.get("rotation", node.rotation),
                values.get("scale", node.scale),
            )
        matrices[index] = local if node.parent is None else matrices[node.parent] @ local
    weights = {k: node.weights for k, node in enumerate(asset.nodes) if node.weights is not None}
    weights |= {k: values["weights"] for k, values in posed.items() if "weights" in values}
    return matrices, weights


def _trs(translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    x, y, z, w = (float(value) for value in rotation)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= scale
    matrix[:3, 3] = translation
    return matrix


def pose(asset: Asset, animation: Animation, time: float) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return world positions [N, 3] and unit normals [N, 3] (None: flat) of every primitive at a time in seconds."""
    matrices, weights = world_matrices(asset, animation, time)
    return [_deform(asset, primitive, matrices, weights.get(primitive.node)) for primitive in asset.primitives]


def _deform(
    asset: Asset, primitive: Primitive, matrices: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    positions, normals = primitive.positions, primitive.normals
    if primitive.position_targets is not None and weights is not None:
        positions = positions + np.einsum("m,mnk->nk", weights, primitive.position_targets)
    if normals is not None and primitive.normal_targets is not None and weights is not None:
        normals = normals + np.einsum("m,mnk->nk", weights, primitive.normal_targets)
    if primitive.skin is None:
        matrix = matrices[primitive.node]
        positions = positions @ matrix[:3, :3].T + matrix[:3, 3]
        if normals is not None:
            normals = normals @ np.linalg.pinv(matrix[:3, :3])
    else:
        skin = asset.skins[primitive.skin]
        joints = (matrices[skin.joints] @ skin.inverse_bind)[:, :3]  # the node's own matrix is ignored: glTF 3.7.3.3
        assert primitive.influence is not None
        blend = (primitive.influence @ joints.reshape(-1, 12).astype(np.float32)).reshape(-1, 3, 4)
        positions = np.einsum("nij,nj->ni", blend[:, :, :3], positions) + blend[:, :, 3]
        if normals is not None:
            normals = np.einsum("nij,nj->ni", blend[:, :, :3], normals)
    if normals is not None:
        normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        normals = normals.astype(np.float32)
    return positions.astype(np.float32), normals

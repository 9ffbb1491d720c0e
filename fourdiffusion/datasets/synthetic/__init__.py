"""The synthetic world: animated, articulated, textured creatures with exact geometry.

A creature is a tree of joints that carries ellipsoids. Its pose is a closed-form function of time, every ellipsoid is
intersected in closed form, and textures live in the rest pose, so they stick to the surface while the creature moves.
Everything follows from the seed: color, alpha and depth are defined for any camera, time and resolution.

Axes: z up; at heading 0 the creature faces +x and its left is +y. Over the whole clip it fits a ball of radius 0.4
around the origin. Seeds below `TEST_SEED_START` are for training, the others for testing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.datasets.synthetic.body_plans import PLAN_SHARES, PLANS, UNSEEN_PLANS
from fourdiffusion.datasets.synthetic.skeleton import AXES, BODY, LIMB, ODD, Builder, Joint, euler

TEST_SEED_START = 1_000_000  # training seeds: [0, TEST_SEED_START); test seeds: [TEST_SEED_START, ...)
BALL_RADIUS = 0.39  # radius after scaling; leaves a margin below the documented 0.40
SUN = (0.35, 0.25, 0.90)  # direction to the light, fixed in the world
SAMPLES_A_CHUNK = 1 << 18  # supersampled pixels rendered at once: limits memory and fits the cache

COLOURS = {
    "red": (0.86, 0.16, 0.14),
    "orange": (0.95, 0.52, 0.10),
    "yellow": (0.96, 0.84, 0.18),
    "green": (0.24, 0.66, 0.22),
    "teal": (0.10, 0.66, 0.64),
    "blue": (0.16, 0.38, 0.88),
    "purple": (0.52, 0.24, 0.78),
    "pink": (0.95, 0.48, 0.70),
    "brown": (0.50, 0.30, 0.15),
    "white": (0.90, 0.89, 0.86),
    "gray": (0.50, 0.52, 0.56),
    "black": (0.13, 0.13, 0.16),
}
TEXTURES = ("plain", "stripes", "spots", "belly", "gradient", "checks")
PLAIN, STRIPES, SPOTS, BELLY, GRADIENT, CHECKS = range(6)


@dataclass
class Creature:
    """Parameters of one creature; all tensors are float64. J joints, P parts, M materials, K spots."""

    seed: int
    plan: str
    caption: str
    cycles: float  # gait cycles over t in [0, 1]
    heading: float  # radians about z
    joints: list[Joint]
    part_joint: list[int]
    part_centre: Tensor  # [P, 3] in the joint's frame, before scaling
    part_rotation: Tensor  # [P, 3, 3]
    part_radii: Tensor  # [P, 3]
    part_material: Tensor  # [P] int64
    rest_centre: Tensor  # [P, 3] the same parts in the creature's rest pose: the texture space
    rest_rotation: Tensor  # [P, 3, 3]
    kinds: Tensor  # [M] int64, index into TEXTURES
    colours: Tensor  # [M, 2, 3] linear RGB in [0, 1]: ground and pattern
    texture_axis: Tensor  # [3] unit, direction of stripes and gradient in the rest pose
    texture_period: float  # scene units
    texture_phase: float
    spots: Tensor  # [K, 3] in the rest pose, scene units
    spot_radius: float
    patch_centre: Tensor  # [3] a one-sided patch, in the rest pose, scene units
    patch_radius: float  # 0: no patch
    patch_colour: Tensor  # [3]
    scale: float = 1.0  # scene units per creature unit
    centre: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))  # [3] in creature units


# ---------------------------------------------------------------------------------------------------------------------
# From a seed to a creature.


def make_creature(seed: int, unseen: bool = False) -> Creature:
    """Return the creature of a seed: the same on every machine, independent of earlier calls.

    ``unseen``: of a body plan that no training clip has.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}: give a non-negative integer")
    rng = np.random.default_rng(seed)
    plan = str(rng.choice(list(UNSEEN_PLANS)) if unseen else rng.choice(list(PLANS), p=PLAN_SHARES))
    builder = Builder(rng)
    action = (UNSEEN_PLANS if unseen else PLANS)[plan](builder)
    colours, kinds, words = _paint(rng)
    parts = builder.parts
    creature = Creature(
        seed=seed,
        plan=plan,
        caption=_caption(words, kinds[BODY], action, builder.joints[0].turn != 0.0),
        cycles=float(rng.choice([0.875, 1.0, 1.25, 1.5, 1.75])),
        heading=float(rng.uniform(0, 2 * math.pi)),
        joints=builder.joints,
        part_joint=[p.joint for p in parts],
        part_centre=torch.tensor([p.centre for p in parts], dtype=torch.float64),
        part_rotation=torch.from_numpy(np.stack([p.rotation for p in parts])),
        part_radii=torch.tensor([p.radii for p in parts], dtype=torch.float64),
        part_material=torch.tensor([p.material for p in parts]),
        rest_centre=torch.zeros(len(parts), 3, dtype=torch.float64),
        rest_rotation=torch.zeros(len(parts), 3, 3, dtype=torch.float64),
        kinds=torch.tensor(kinds),
        colours=torch.tensor(colours, dtype=torch.float64),
        texture_axis=_texture_axis(rng, plan),
        texture_period=float(rng.uniform(0.10, 0.17)),
        texture_phase=float(rng.uniform(0, 1)),
        spots=torch.zeros(0, 3, dtype=torch.float64),
        spot_radius=float(rng.uniform(0.026, 0.042)),
        patch_centre=torch.zeros(3, dtype=torch.float64),
        patch_radius=float(rng.uniform(0.07, 0.12)) if rng.random() < 0.7 else 0.0,
        patch_colour=torch.tensor(colours[ODD][0], dtype=torch.float64),
    )
    _fit_to_ball(creature)
    _place_textures(creature, rng)
    return creature


def _paint(rng: np.random.Generator) -> tuple[list, list[int], tuple[str, str]]:
    """Return colors [M, 2, 3], texture kinds [M] and the names of the two main colors."""
    names = list(COLOURS)
    vivid = np.array([0.35 if n in ("white", "gray", "black", "brown") else 1.0 for n in names])

    def differ(others: list[str]) -> str:
        far = [min(math.dist(COLOURS[n], COLOURS[o]) for o in others) > 0.42 for n in names]
        weight = np.array(far) * vivid
        return str(rng.choice(names, p=weight / weight.sum()))

    first = str(rng.choice(names, p=vivid / vivid.sum()))
    second = differ([first])
    third = differ([first, second])
    odd = differ([first, third])
    nose = differ([second, first])
    jittered = {n: np.clip(np.array(COLOURS[n]) + rng.uniform(-0.06, 0.06, 3), 0.05, 0.97).tolist() for n in names}
    kind = int(rng.integers(0, len(TEXTURES)))
    limb = kind if rng.random() < 0.4 else PLAIN
    limb_colour = first if rng.random() < 0.6 else third
    limb_figure = second if limb_colour == first or rng.random() < 0.5 else first
    pairs = [
        (jittered[first], jittered[second]),
        (jittered[limb_colour], jittered[limb_figure]),
        (jittered[third if rng.random() < 0.6 else second],) * 2,
        (jittered[odd],) * 2,
        (jittered[nose],) * 2,
        ([0.97, 0.97, 0.97],) * 2,
        ([0.03, 0.03, 0.05],) * 2,
    ]
    return [list(p) for p in pairs], [kind, limb, PLAIN, PLAIN, PLAIN, PLAIN, PLAIN], (first, second)


def _caption(words: tuple[str, str], kind: int, action: str, turning: bool) -> str:
    """Return a short caption from a closed vocabulary: colors, body plan, texture, action."""
    first, second = words
    noun, verb = action.rsplit(" ", 1)
    look = {
        PLAIN: "",
        STRIPES: f" with {second} stripes",
        SPOTS: f" with {second} spots",
        BELLY: f" with a {second} belly",
        GRADIENT: f" fading to {second}",
        CHECKS: f" with {second} checks",
    }[kind]
    article = "an" if first[0] in "aeiou" else "a"
    return f"{article} {first} {noun}{look} {verb}" + (" and turning" if turning else "")


def _texture_axis(rng: np.random.Generator, plan: str) -> Tensor:
    """Return the texture axis: stripes run around the long axis of the body, slightly slanted."""
    axis = np.array([0.0, 0.0, 1.0] if plan in ("biped", "octopus") else [1.0, 0.0, 0.0])
    axis = axis + rng.uniform(-0.35, 0.35, 3)
    return torch.from_numpy(axis / np.linalg.norm(axis))


def _fit_to_ball(creature: Creature) -> None:
    """Set scale and center so that the parts fill a ball of BALL_RADIUS over all times."""
    times = torch.linspace(0, 1, 33, dtype=torch.float64)
    centre, rotation = pose(creature, times)  # creature units, no heading yet: scale is 1
    k = torch.arange(400, dtype=torch.float64) + 0.5
    z, azimuth = 1 - 2 * k / 400, k * math.pi * (1 + math.sqrt(5))
    ring = torch.sqrt(1 - z * z)
    directions = torch.stack([ring * torch.cos(azimuth), ring * torch.sin(azimuth), z], dim=-1)  # [400, 3]
    # The farthest point of an ellipsoid along n is n.c + |diag(r) R^T n|: the root of a quadratic form in n.
    axes = rotation * creature.part_radii[:, None, :]
    form = (axes @ axes.transpose(-1, -2)).reshape(-1, 9)  # [T * P, 9]
    outer = (directions[:, :, None] * directions[:, None, :]).reshape(-1, 9)  # [400, 9]
    reach = (form @ outer.T).clamp(min=0).sqrt()
    support = (centre.reshape(-1, 3) @ directions.T + reach).amax(dim=0)  # [400]
    middle = torch.zeros(3, dtype=torch.float64)
    for step in range(200):  # smallest enclosing ball: move towards the farthest direction with decreasing steps
        worst = (support - directions @ middle).argmax()
        middle = middle + directions[worst] * float(support[worst] - directions[worst] @ middle) * 0.5 / (step + 2)
    radius = float((support - directions @ middle).max())
    creature.scale, creature.centre = BALL_RADIUS / radius, middle


def _place_textures(creature: Creature, rng: np.random.Generator) -> None:
    """Set the rest pose of the parts in scene units, and the spots and the one-sided patch on the body's surface."""
    still = [Joint(j.parent, j.offset, j.rest, j.axis, j.bias) for j in creature.joints]
    centre, rotation = _forward(still, creature, torch.zeros(1, dtype=torch.float64))
    creature.rest_centre = (centre[0] - creature.centre) * creature.scale
    creature.rest_rotation = rotation[0]
    painted = torch.nonzero(creature.part_material <= LIMB)[:, 0]
    area = creature.part_radii[painted].prod(dim=-1).pow(2 / 3).numpy()
    count = 48
    chosen = painted[torch.from_numpy(rng.choice(len(painted), size=count, p=area / area.sum()))]
    normal = torch.from_numpy(rng.normal(size=(count, 3)))
    local = normal / normal.norm(dim=-1, keepdim=True) * creature.part_radii[chosen] * creature.scale
    spots = creature.rest_centre[chosen] + torch.einsum("kij,kj->ki", creature.rest_rotation[chosen], local)
    kept: list[Tensor] = []
    for spot in spots:  # keep spots apart from each other
        if not kept or float((torch.stack(kept) - spot).norm(dim=-1).min()) > 2.3 * creature.spot_radius:
            kept.append(spot)
    creature.spots = torch.stack(kept)
    side = 1.0 if rng.random() < 0.5 else -1.0
    body = int(painted[int(np.argmax(area))])
    radii = creature.part_radii[body] * creature.scale
    offset = torch.tensor([0.45 * rng.uniform(-1, 1), 0.85 * side, 0.45 * rng.uniform(-1, 1)], dtype=torch.float64)
    creature.patch_centre = creature.rest_centre[body] + creature.rest_rotation[body] @ (offset * radii)


# ---------------------------------------------------------------------------------------------------------------------
# Pose.


def pose(creature: Creature, times: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parts at times [T] in [0, 1]: centers [T, P, 3] and rotations [T, P, 3, 3], float64, scene units."""
    centre, rotation = _forward(creature.joints, creature, times)
    c, s = math.cos(creature.heading), math.sin(creature.heading)
    heading = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    if creature.scale == 1.0 and not bool(creature.centre.any()):  # not fitted yet
        return centre, rotation
    return ((centre - creature.centre) * creature.scale) @ heading.T, heading @ rotation


def _forward(joints: list[Joint], creature: Creature, times: Tensor) -> tuple[Tensor, Tensor]:
    """Forward kinematics in creature units: centers [T, P, 3] and rotations [T, P, 3, 3] of the parts."""
    times = times.to(torch.float64)
    identity = torch.eye(3, dtype=torch.float64).expand(len(times), 3, 3)
    turned: list[Tensor] = []  # [T, 3, 3] a joint
    placed: list[Tensor] = []  # [T, 3] a joint
    for j in joints:
        wave = torch.sin(2 * math.pi * creature.cycles * j.multiple * times + j.phase)
        angle = j.bias + j.swing * wave + j.turn * (times - 0.5)
        offset = torch.tensor(j.offset, dtype=torch.float64) + wave[:, None] * torch.tensor(
            j.slide, dtype=torch.float64
        )
        local = torch.from_numpy(euler(j.rest)) @ _turn(j.axis, angle)
        above = turned[j.parent] if j.parent >= 0 else identity
        turned.append(above @ local)
        at = (above @ offset[:, :, None])[:, :, 0]
        placed.append(at + placed[j.parent] if j.parent >= 0 else at)
    rotation = torch.stack([turned[k] for k in creature.part_joint], dim=1)  # [T, P, 3, 3]
    origin = torch.stack([placed[k] for k in creature.part_joint], dim=1)  # [T, P, 3]
    centre = origin + (rotation @ creature.part_centre[:, :, None])[..., 0]
    return centre, rotation @ creature.part_rotation


def _turn(axis: str, angle: Tensor) -> Tensor:
    """Return rotations [T, 3, 3] about a coordinate axis by angle [T] radians."""
    k = torch.tensor(AXES[axis], dtype=torch.float64)
    cross = torch.tensor([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]], dtype=torch.float64)
    s, c = torch.sin(angle)[:, None, None], torch.cos(angle)[:, None, None]
    return torch.eye(3, dtype=torch.float64) + s * cross + (1 - c) * (cross @ cross)


# ---------------------------------------------------------------------------------------------------------------------
# Picture.


@torch.no_grad()
def render(
    creature: Creature,
    c2w: Tensor,
    fovy_deg: float,
    times: Tensor,
    height: int,
    width: int,
    supersample: int = 2,
) -> tuple[Tensor, Tensor]:
    """Render a creature: N cameras c2w [N, 4, 4] (OpenGL, camera-to-world) at N times [N] in [0, 1].

    Returns rgba [N, 4, H, W] float32 in [0, 1], straight alpha: alpha is the share of the supersample^2 rays of a
    pixel that hit, the color is their mean (0 where none hit). Also returns depth [N, H, W]: distance along the unit
    ray to the nearest of these hits, inf where none hits; with supersample=1 the ray goes through the pixel's center.
    """
    if c2w.ndim != 3 or c2w.shape[1:] != (4, 4) or times.shape != c2w.shape[:1]:
        raise ValueError(f"c2w is {tuple(c2w.shape)}, times {tuple(times.shape)}: give [N, 4, 4] and [N]")
    if min(height, width, supersample) < 1:
        raise ValueError(f"height {height}, width {width}, supersample {supersample}: each must be at least 1")
    at_once = max(1, SAMPLES_A_CHUNK // (height * width * supersample**2))
    rgba = torch.zeros(len(c2w), 4, height, width)
    depth = torch.full((len(c2w), height, width), math.inf)
    for n in range(0, len(c2w), at_once):
        part = slice(n, n + at_once)
        rgba[part], depth[part] = _render_chunk(creature, c2w[part], fovy_deg, times[part], height, width, supersample)
    return rgba, depth


def _render_chunk(
    creature: Creature, c2w: Tensor, fovy_deg: float, times: Tensor, height: int, width: int, supersample: int
) -> tuple[Tensor, Tensor]:
    tall, wide = height * supersample, width * supersample
    count, parts = len(c2w), len(creature.part_joint)
    c2w = c2w.to(torch.float64)
    centre, rotation = pose(creature, times)
    to_camera = c2w[:, None, :3, :3].transpose(-1, -2)  # [N, 1, 3, 3]
    centre = (to_camera @ (centre - c2w[:, None, :3, 3])[..., None])[..., 0]  # [N, P, 3] in the camera's frame
    radii = creature.part_radii * creature.scale
    unit = (to_camera @ rotation).transpose(-1, -2) / radii[:, :, None]  # [N, P, 3, 3] camera frame -> unit sphere
    pixel = 2 * math.tan(math.radians(fovy_deg) / 2) / tall  # width of a sample at distance 1 in front of the camera
    boxes = _screen_boxes(centre, to_camera @ rotation * radii[:, None, :], pixel, tall, wide)
    pair, row, column = _samples_in(boxes)  # [S] each: image and part, row, column
    x = (column.float() + 0.5 - wide / 2) * pixel
    y = (tall / 2 - row.float() - 0.5) * pixel
    distance, hit = _intersect(unit.flatten(0, 1), centre.flatten(0, 1), pair, x, y)
    pair, row, column, x, y, distance = (a[hit] for a in (pair, row, column, x, y, distance))
    sample = (torch.div(pair, parts, rounding_mode="floor") * tall + row) * wide + column
    nearest = torch.full((count * tall * wide,), math.inf).scatter_reduce_(0, sample, distance, "amin")
    front = distance == nearest[sample]
    pair, sample, x, y, distance = (a[front] for a in (pair, sample, x, y, distance))
    point = torch.stack([x, y, -torch.ones_like(x)], dim=-1) * distance[:, None]  # [S, 3] in the camera's frame
    colour = _shade(creature, unit.flatten(0, 1), centre.flatten(0, 1), rotation.flatten(0, 1), pair, point)
    canvas = torch.zeros(count * tall * wide, 4)
    canvas[sample] = torch.cat([colour, torch.ones_like(x)[:, None]], dim=-1)
    ray = torch.full((count * tall * wide,), math.inf)
    ray[sample] = point.norm(dim=-1)
    grid = canvas.view(count, height, supersample, width, supersample, 4).sum(dim=(2, 4)).permute(0, 3, 1, 2)
    rgba = torch.cat([grid[:, :3] / grid[:, 3:].clamp(min=1), grid[:, 3:] / supersample**2], dim=1)
    return rgba, ray.view(count, height, supersample, width, supersample).amin(dim=(2, 4))


def _screen_boxes(centre: Tensor, shape: Tensor, pixel: float, tall: int, wide: int) -> Tensor:
    """Return integer boxes [N, P, 4] (top, bottom, left, right; ends excluded) around the ellipsoids' silhouettes.

    centre [N, P, 3] and shape = R diag(r) [N, P, 3, 3] in the camera's frame. A plane through the camera with normal n
    touches the ellipsoid if n^T (c c^T - shape shape^T) n = 0; vertical and horizontal planes give the four edges.
    """
    dual = centre[..., :, None] * centre[..., None, :] - shape @ shape.transpose(-1, -2)
    z2 = dual[..., 2, 2]
    edges = []
    for axis in (0, 1):
        root = (dual[..., axis, 2] ** 2 - dual[..., axis, axis] * z2).clamp(min=0).sqrt()
        edges += [(-dual[..., axis, 2] - root) / z2, (-dual[..., axis, 2] + root) / z2]
    left, right, bottom, top = edges
    rows = torch.stack([tall / 2 - top / pixel, tall / 2 - bottom / pixel], dim=-1)
    columns = torch.stack([wide / 2 + left / pixel, wide / 2 + right / pixel], dim=-1)
    around = z2 <= 0  # the ellipsoid reaches the camera plane: no bound
    behind = (z2 > 0) & (centre[..., 2] > 0)
    result = []
    for span, size in ((rows, tall), (columns, wide)):
        span = torch.where(around[..., None], torch.tensor([0.0, size], dtype=span.dtype), span)
        low = span[..., 0].floor().clamp(0, size)
        result += [low, torch.where(behind, low, span[..., 1].ceil().clamp(0, size))]
    return torch.stack(result, dim=-1).long()


def _samples_in(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all samples of all boxes [N, P, 4], flat: index of the (image, part) pair [S], row [S], column [S]."""
    boxes = boxes.flatten(0, 1)
    top, left = boxes[:, 0], boxes[:, 2]
    wide = (boxes[:, 3] - left).clamp(min=0)
    size = (boxes[:, 1] - top).clamp(min=0) * wide
    pair = torch.repeat_interleave(size)
    inside = torch.arange(len(pair)) - (size.cumsum(0) - size)[pair]
    w = wide[pair]
    row = torch.div(inside, w, rounding_mode="floor")
    return pair, row + top[pair], inside - row * w + left[pair]


def _intersect(unit: Tensor, centre: Tensor, pair: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return first hits of rays (x, y, -1) with their ellipsoids: distance [S] in units of the ray, and hit flags.

    In the frame where the ellipsoid is the unit sphere the ray is o + t d: a t^2 + 2 b t + c = 0, and a, b are
    polynomials of x and y with coefficients that depend on the pair only.
    """
    origin = -(unit @ centre[..., None])[..., 0]  # [NP, 3]
    q = unit.transpose(-1, -2) @ unit  # [NP, 3, 3]
    g = (unit * origin[..., None]).sum(dim=-2)  # [NP, 3]
    table = torch.stack(
        [q[:, 0, 0], q[:, 1, 1], 2 * q[:, 0, 1], -2 * q[:, 0, 2], -2 * q[:, 1, 2], q[:, 2, 2]]
        + [g[:, 0], g[:, 1], -g[:, 2], (origin * origin).sum(dim=-1) - 1],
        dim=0,
    ).float()  # [10, NP]
    k = [column[pair] for column in table]
    a = x * (k[0] * x + k[2] * y + k[3]) + y * (k[1] * y + k[4]) + k[5]
    b = k[6] * x + k[7] * y + k[8]
    inside = b * b - a * k[9]
    distance = (-b - inside.clamp(min=0).sqrt()) / a
    return distance, (inside > 0) & (distance > 0)


def _shade(creature: Creature, unit: Tensor, centre: Tensor, rotation: Tensor, pair: Tensor, point: Tensor) -> Tensor:
    """Return colors [S, 3] of the hit points [S, 3] (camera frame): albedo lit by a fixed sun and a sky light."""
    part = pair % len(creature.part_joint)
    radii = (creature.part_radii * creature.scale).float()
    offset = point - centre.float()[pair]
    sphere = torch.einsum("sij,sj->si", unit.float()[pair], offset)  # on the unit sphere
    outward = torch.nn.functional.normalize(sphere / radii[part], dim=-1)  # normal in the part's frame
    normal = torch.einsum("sij,sj->si", rotation.float()[pair], outward)  # in the world
    rest = creature.rest_rotation.float()[part]
    rest_point = torch.einsum("sij,sj->si", rest, sphere * radii[part]) + creature.rest_centre.float()[part]
    rest_up = (rest[:, 2] * outward).sum(dim=-1)
    albedo = _albedo(creature, creature.part_material[part], rest_point, rest_up)
    sun = torch.nn.functional.normalize(torch.tensor(SUN), dim=0)
    light = 0.64 + 0.14 * normal[:, 2] + 0.36 * (normal @ sun).clamp(min=0)
    return (albedo * light[:, None]).clamp(0, 1)


def _albedo(creature: Creature, material: Tensor, point: Tensor, up: Tensor) -> Tensor:
    """Return colors [S, 3] at rest-pose points [S, 3] in scene units; up [S] is the z of the rest-pose normal."""
    pairs = creature.colours.float()[material]  # [S, 2, 3]
    kind = creature.kinds[material]
    share = torch.zeros_like(up)  # 0: ground color, 1: pattern color
    along = point @ creature.texture_axis.float()
    for code in torch.unique(kind).tolist():
        at = torch.nonzero(kind == code)[:, 0]
        p, period = point[at], creature.texture_period
        if code == STRIPES:
            share[at] = (torch.sin(2 * math.pi * (along[at] / period + creature.texture_phase)) > 0.1).float()
        elif code == SPOTS:
            share[at] = (torch.cdist(p, creature.spots.float()).amin(dim=-1) < creature.spot_radius).float()
        elif code == BELLY:
            share[at] = (up[at] < -0.15).float()
        elif code == GRADIENT:
            share[at] = ((along[at] + 0.2 + 0.1 * creature.texture_phase) / 0.45).clamp(0, 1)
        elif code == CHECKS:
            share[at] = (torch.sin(math.pi * (p / (0.75 * period) + creature.texture_phase)).prod(dim=-1) > 0).float()
    colour = pairs[:, 0] + (pairs[:, 1] - pairs[:, 0]) * share[:, None]
    patch = ((point - creature.patch_centre.float()).norm(dim=-1) < creature.patch_radius) & (material <= LIMB)
    return torch.where(patch[:, None], creature.patch_colour.float(), colour)

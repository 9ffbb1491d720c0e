"""Building blocks of the synthetic creatures: joints that carry ellipsoids, and limbs made of them.

Lengths are in arbitrary units (the creature is scaled to a ball afterwards), swing angles in radians. A positive swing
about y moves a hanging leg backwards and a nose down; about x it lifts the left side. z is up, the creature faces +x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

# Material slots, the same for every creature.
BODY, LIMB, ACCENT, ODD, NOSE, EYE, PUPIL = range(7)

Vector = tuple[float, float, float]
AXES: dict[str, Vector] = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


@dataclass
class Joint:
    """One hinge: angle(t) = bias + swing * sin(2 pi cycles multiple t + phase) + turn * (t - 1/2), in radians."""

    parent: int
    offset: Vector
    rest: Vector = (0.0, 0.0, 0.0)  # Euler angles in degrees, turned about x first, then y, then z
    axis: str = "y"
    bias: float = 0.0
    swing: float = 0.0
    multiple: int = 1
    phase: float = 0.0
    slide: Vector = (0.0, 0.0, 0.0)  # offset(t) = offset + slide * sin(the same argument)
    turn: float = 0.0


@dataclass
class Part:
    """One ellipsoid in the frame of its joint."""

    joint: int
    centre: Vector
    radii: Vector
    material: int
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))


def euler(degrees: Vector) -> np.ndarray:
    """Return the rotation matrix [3, 3]: about x, then y, then z."""
    x, y, z = (math.radians(d) for d in degrees)
    rx = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
    ry = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    rz = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    return rz @ ry @ rx


def _z_to(vector: np.ndarray) -> np.ndarray:
    """Return a rotation [3, 3] whose z column points along the vector."""
    z = vector / np.linalg.norm(vector)
    helper = np.array([0.0, 1.0, 0.0]) if abs(z[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    x = np.cross(helper, z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


class Builder:
    """Collect the joints and parts of one creature; `u` draws a proportion."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.joints: list[Joint] = []
        self.parts: list[Part] = []

    def u(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def joint(self, joint: Joint) -> int:
        self.joints.append(joint)
        return len(self.joints) - 1

    def part(self, joint: int, centre: Vector, radii: Vector, material: int, rotate: Vector = (0.0, 0.0, 0.0)) -> None:
        self.parts.append(Part(joint, centre, radii, material, euler(rotate)))

    def bone(self, joint: int, vector: Vector, radius: float, material: int) -> None:
        """Add an ellipsoid from the joint's origin along the vector, slightly longer so that bones overlap."""
        v = np.array(vector)
        middle = (vector[0] / 2, vector[1] / 2, vector[2] / 2)
        half = float(np.linalg.norm(v)) / 2 + 0.5 * radius
        self.parts.append(Part(joint, middle, (radius, radius, half), material, _z_to(v)))

    def root(self, bob: float = 0.0, phase: float = 0.0, multiple: int = 2) -> int:
        """Add two joints: the slow rotation of the object, then the vertical motion of the body with a small sway."""
        turn = math.radians(self.u(20, 40)) * (1 if self.chance(0.5) else -1) if self.chance(0.3) else 0.0
        base = self.joint(Joint(-1, (0, 0, 0), axis="z", swing=self.u(0.0, 0.08), turn=turn))
        return self.joint(
            Joint(base, (0, 0, 0), axis="x", swing=self.u(0.0, 0.10), multiple=multiple, phase=phase, slide=(0, 0, bob))
        )

    def eyes(self, joint: int, centre: Vector, radii: Vector, size: float, azimuth: float, elevation: float) -> None:
        """Add two eyes with pupils on the ellipsoid of a head; angles in degrees from straight ahead."""
        a, e = math.radians(azimuth), math.radians(elevation)
        for side in (1, -1):
            d = (math.cos(a) * math.cos(e), side * math.sin(a) * math.cos(e), math.sin(e))
            at = [c + 0.88 * r * k for c, r, k in zip(centre, radii, d, strict=True)]
            self.part(joint, (at[0], at[1], at[2]), (size, size, size), EYE)
            look = 0.58 * size
            pupil = (at[0] + look * (0.6 * d[0] + 0.4), at[1] + look * d[1], at[2] + look * d[2])
            self.part(joint, pupil, (0.62 * size, 0.62 * size, 0.62 * size), PUPIL)

    def ears(self, joint: int, radii: Vector, style: str) -> None:
        """Add ears or horns to a head at the joint's origin."""
        x, y, z = radii
        for side in (1, -1):
            if style == "pointed":
                self.part(
                    joint, (-0.2 * x, side * 0.6 * y, 1.05 * z), (0.035, 0.06, 0.12), ACCENT, (-side * 20, -10, 0)
                )
            elif style == "round":
                self.part(joint, (-0.1 * x, side * 0.85 * y, 0.8 * z), (0.04, 0.085, 0.085), ACCENT)
            elif style == "long":
                ear = self.joint(
                    Joint(joint, (-0.2 * x, side * 0.5 * y, 0.8 * z), (-side * 12, -15, 0), "y", swing=0.3)
                )
                self.part(ear, (0, 0, 0.14), (0.035, 0.055, 0.17), LIMB)
            elif style == "floppy":
                ear = self.joint(Joint(joint, (0, side * 0.9 * y, 0.5 * z), (side * 20, 0, 0), "x", swing=side * 0.25))
                self.part(ear, (0, 0, -0.10), (0.07, 0.03, 0.13), ACCENT)
            elif style == "horns":
                self.part(joint, (-0.1 * x, side * 0.5 * y, 1.15 * z), (0.03, 0.03, 0.12), NOSE, (-side * 25, 20, 0))

    def tail(self, joint: int, offset: Vector, count: int, length: float, radius: float, lift: float) -> None:
        """Add a wagging tail of `count` bones pointing backwards; `lift` in degrees."""
        for k in range(count):
            rest = (0.0, lift if k == 0 else lift / 3, 0.0)
            joint = self.joint(Joint(joint, offset, rest, "z", swing=self.u(0.25, 0.45), phase=-0.8 * k))
            self.bone(joint, (-length, 0, 0), radius * (1 - 0.2 * k), ACCENT if k == count - 1 else BODY)
            offset = (-length, 0, 0)

    def leg(self, joint: int, at: Vector, upper: float, lower: float, radius: float, gait: Vector, odd: bool) -> None:
        """Add hip, knee and foot; gait is (swing of the hip, phase, bend of the knee: positive bends the foot back)."""
        swing, phase, bend = gait
        material = ODD if odd else LIMB
        hip = self.joint(Joint(joint, at, axis="y", swing=swing, phase=phase, bias=-0.3 * bend))
        self.bone(hip, (0, 0, -upper), radius, material)
        knee = self.joint(
            Joint(hip, (0, 0, -upper), axis="y", bias=0.7 * bend, swing=0.6 * abs(bend), phase=phase + math.pi / 2)
        )
        self.bone(knee, (0, 0, -lower), 0.85 * radius, material)
        self.part(knee, (0.5 * radius, 0, -lower), (1.5 * radius, 1.05 * radius, 0.7 * radius), ACCENT)

    def wing(self, joint: int, at: Vector, side: int, span: float, chord: float, swing: float) -> None:
        """Add a flapping wing of two flat parts, the outer one lagging."""
        for k, share in enumerate((0.5, 0.6)):
            s = side * swing * (1.0 if k == 0 else 0.7)
            joint = self.joint(Joint(joint, at, (0, 0, -side * 10 * k), "x", bias=side * 0.1, swing=s, phase=-0.9 * k))
            half = share * span / 2
            self.part(
                joint, (0, side * half, 0), (chord * (1 - 0.2 * k), half * 1.25, 0.035), LIMB if k == 0 else ACCENT
            )
            at = (-0.1 * chord, side * 2 * half, 0)

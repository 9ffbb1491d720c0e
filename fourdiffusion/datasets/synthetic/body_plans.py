"""Body plans of the creatures of `synthetic`. Units and axes: `skeleton`."""

from __future__ import annotations

import math

from fourdiffusion.datasets.synthetic.skeleton import ACCENT, BODY, EYE, LIMB, NOSE, ODD, PUPIL, Builder, Joint


def _quadruped(b: Builder) -> str:
    length, width, height = b.u(0.24, 0.34), b.u(0.15, 0.21), b.u(0.15, 0.21)
    winged = b.chance(0.25)
    root = b.root(bob=b.u(0.01, 0.03))
    b.part(root, (0, 0, 0), (length, width, height), BODY)
    b.part(root, (0.55 * length, 0, 0.03), (0.6 * length, 1.05 * width, 1.05 * height), BODY)
    neck = b.joint(
        Joint(root, (0.8 * length, 0, 0.5 * height), (0, -b.u(20, 60), 0), "y", swing=b.u(0.05, 0.2), multiple=2)
    )
    reach = b.u(0.14, 0.34)
    b.bone(neck, (reach, 0, 0), b.u(0.075, 0.11), BODY)
    size = b.u(0.13, 0.18)
    head = b.joint(Joint(neck, (reach + 0.4 * size, 0, 0.02), (0, b.u(20, 50), 0), "z", swing=b.u(0.0, 0.3)))
    radii = (1.1 * size, 0.95 * size, size)
    b.part(head, (0, 0, 0), radii, BODY)
    snout = b.u(0.4, 1.1) * size
    b.part(head, (size + 0.3 * snout, 0, -0.25 * size), (0.4 * size + 0.5 * snout, 0.55 * size, 0.45 * size), ACCENT)
    b.part(head, (size + 0.85 * snout, 0, -0.12 * size), (0.25 * size, 0.3 * size, 0.25 * size), NOSE)
    b.eyes(head, (0, 0, 0), radii, 0.30 * size, b.u(38, 52), 28)
    b.ears(head, radii, str(b.rng.choice(["pointed", "round", "long", "floppy", "horns"])))
    b.tail(root, (-0.9 * length, 0, 0.4 * height), 3, b.u(0.09, 0.15), b.u(0.035, 0.06), b.u(-20, 50))
    radius, upper, lower, swing = b.u(0.055, 0.085), b.u(0.15, 0.22), b.u(0.12, 0.18), b.u(0.4, 0.65)
    odd = int(b.rng.integers(0, 8))  # 0..3: that leg has another color
    for k, (x, side, phase) in enumerate([(0.75, 1, 0.0), (0.75, -1, math.pi), (-0.7, 1, math.pi), (-0.7, -1, 0.0)]):
        at = (x * length, side * 0.65 * width, -0.5 * height)
        b.leg(root, at, upper, lower, radius, (swing, phase, 0.5 if x < 0 else -0.3), odd == k)
    if winged:
        for side in (1, -1):
            b.wing(root, (0.2 * length, side * 0.5 * width, 0.8 * height), side, b.u(0.45, 0.6), 0.14, b.u(0.5, 0.8))
    return "winged quadruped walking" if winged else "quadruped walking"


def _biped(b: Builder) -> str:
    width, height = b.u(0.16, 0.23), b.u(0.18, 0.25)
    root = b.root(bob=b.u(0.015, 0.04))
    b.part(root, (0, 0, 0), (0.75 * width, width, height), BODY)
    b.part(root, (0, 0, -0.7 * height), (0.7 * width, 0.9 * width, 0.5 * height), LIMB)
    head = b.joint(Joint(root, (0, 0, 1.0 * height), axis="z", swing=b.u(0.1, 0.5)))
    size = b.u(0.15, 0.21)
    radii = (size, size, b.u(0.9, 1.1) * size)
    shift = (0.02, 0.0, 0.75 * size)
    nod = b.joint(Joint(head, shift, axis="y", swing=b.u(0.05, 0.2), multiple=2))
    b.part(nod, (0, 0, 0), radii, ACCENT if b.chance(0.4) else BODY)
    b.eyes(nod, (0, 0, 0), radii, 0.26 * size, b.u(26, 36), 18)
    b.part(nod, (0.98 * size, 0, -0.12 * size), (b.u(0.2, 0.5) * size, 0.2 * size, 0.18 * size), NOSE)
    hat = str(b.rng.choice(["hair", "pointed", "round", "horns", "long"]))
    if hat == "hair":
        b.part(nod, (-0.3 * size, 0, 0.35 * size), (0.95 * size, 1.04 * size, 0.85 * size), LIMB)
    else:
        b.ears(nod, radii, hat)
    if b.chance(0.6):  # a backpack distinguishes back and front
        b.part(root, (-0.9 * width, 0, 0.15 * height), (0.5 * width, 0.75 * width, 0.65 * height), ACCENT)
    swing, radius = b.u(0.5, 0.9), b.u(0.06, 0.08)
    lifted, wave = b.u(15, 70), b.chance(0.3)
    odd = int(b.rng.integers(0, 4))  # 0, 1: that arm; 2, 3: that leg
    for k, side in enumerate((1, -1)):
        shoulder = (0.0, side * 0.9 * width, 0.65 * height)
        phase = 0.0 if side > 0 else math.pi
        raise_arm = 130.0 if wave and side > 0 else lifted * 0.6
        arm = b.joint(Joint(root, shoulder, (side * raise_arm, 0, 0), "y", swing=swing, phase=phase))
        b.bone(arm, (0, 0, -0.2), radius, ODD if odd == k else LIMB)
        elbow = b.joint(Joint(arm, (0, 0, -0.2), axis="y", bias=-0.6, swing=0.4, phase=phase))
        b.bone(elbow, (0, 0, -0.16), 0.85 * radius, ODD if odd == k else BODY)
        b.part(elbow, (0, 0, -0.2), (0.065, 0.065, 0.065), ACCENT)
        at = (0.0, side * 0.55 * width, -0.95 * height)
        b.leg(root, at, 0.17, 0.16, 1.2 * radius, (swing, phase + math.pi, 0.5), odd == k + 2)
    return "biped waving" if wave else "biped walking"


def _bird(b: Builder) -> str:
    length, width = b.u(0.2, 0.27), b.u(0.14, 0.19)
    root = b.root(bob=-b.u(0.03, 0.06), multiple=1)
    body = b.joint(Joint(root, (0, 0, 0), (0, -b.u(5, 35), 0), "y", swing=0.06))
    b.part(body, (0, 0, 0), (length, width, width), BODY)
    b.part(body, (0.35 * length, 0, -0.03), (0.6 * length, 0.95 * width, 0.95 * width), ACCENT)
    head = b.joint(Joint(body, (0.9 * length, 0, 0.8 * width), (0, b.u(5, 30), 0), "y", swing=0.15, multiple=2))
    size = b.u(0.12, 0.16)
    b.bone(body, (0.9 * length, 0, 0.8 * width), 0.8 * size, BODY)
    radii = (1.05 * size, size, size)
    b.part(head, (0, 0, 0), radii, BODY)
    beak = b.u(0.5, 1.2) * size
    b.part(
        head, (size + 0.4 * beak, 0, -0.1 * size), (0.3 * size + 0.5 * beak, 0.3 * size, 0.28 * size), NOSE, (0, 8, 0)
    )
    b.eyes(head, (0, 0, 0), radii, 0.30 * size, b.u(45, 60), 20)
    if b.chance(0.5):
        b.part(head, (-0.4 * size, 0, 1.1 * size), (0.5 * size, 0.12 * size, 0.6 * size), NOSE, (0, -35, 0))
    fan = b.joint(Joint(body, (-0.9 * length, 0, 0.02), (0, b.u(0, 25), 0), "y", swing=0.25, phase=1.0))
    for k in (-1, 0, 1):
        b.part(fan, (-0.14, 0.07 * k, 0), (0.17, 0.06, 0.025), ODD if k == 1 else ACCENT, (0, 0, -k * 22))
    span, chord, swing = b.u(0.30, 0.44), b.u(0.13, 0.19), b.u(0.55, 0.85)
    for side in (1, -1):
        b.wing(body, (0.1 * length, side * 0.6 * width, 0.5 * width), side, span, chord, swing)
        leg = b.joint(Joint(body, (-0.2 * length, side * 0.5 * width, -0.8 * width), (0, 40, 0), swing=0.3))
        b.bone(leg, (0, 0, -0.13), 0.03, NOSE)
        b.part(leg, (0.03, 0, -0.14), (0.06, 0.04, 0.025), NOSE)
    return "bird flying"


def _fish(b: Builder) -> str:
    tall, wide, step = b.u(0.15, 0.23), b.u(0.11, 0.16), b.u(0.11, 0.15)
    swing = b.u(0.26, 0.4)
    root = b.root(bob=b.u(0.0, 0.03), multiple=1)
    head = b.joint(Joint(root, (0, 0, 0), axis="z", swing=0.6 * swing))
    radii = (0.17, 1.0 * wide, 0.85 * tall)
    b.part(head, (0.04, 0, 0), radii, BODY)
    b.part(head, (0.20, 0, -0.15 * tall), (0.045, 0.5 * wide, 0.2 * tall), NOSE)
    b.eyes(head, (0.04, 0, 0), radii, b.u(0.038, 0.05), b.u(50, 62), 22)
    joint, offset = head, (-0.04, 0.0, 0.0)
    for k, shrink in enumerate((1.0, 0.85, 0.62, 0.4)):
        joint = b.joint(Joint(joint, offset, axis="z", swing=swing * (0.6 + 0.3 * k), phase=-0.9 * (k + 1)))
        b.part(joint, (-0.5 * step, 0, 0), (0.95 * step, wide * shrink * 1.05, tall * shrink), BODY)
        if k == 0:
            b.part(joint, (-0.3 * step, 0, 0.95 * tall), (0.15, 0.022, b.u(0.09, 0.16)), LIMB, (0, -25, 0))
            b.part(joint, (-0.7 * step, 0, -0.9 * tall), (0.08, 0.02, 0.10), ACCENT, (0, 25, 0))
        offset = (-step, 0.0, 0.0)
    tail = b.joint(Joint(joint, offset, axis="z", swing=1.6 * swing, phase=-4.2))
    size = b.u(0.13, 0.19)
    b.part(tail, (-0.45 * size, 0, 0.5 * size), (size, 0.025, 0.42 * size), LIMB, (0, 38, 0))
    b.part(tail, (-0.45 * size, 0, -0.5 * size), (size, 0.025, 0.42 * size), ACCENT, (0, -38, 0))
    for side in (1, -1):
        at = (-0.02, side * 0.85 * wide, -0.35 * tall)
        fin = b.joint(Joint(head, at, (-side * 25, 0, side * 30), "x", swing=side * 0.6, phase=0.5))
        b.part(fin, (-0.06, side * 0.08, 0), (0.06, 0.12, 0.02), ODD if side > 0 else LIMB)
    return "fish swimming"


def _crab(b: Builder) -> str:
    length, width, height = b.u(0.20, 0.27), b.u(0.22, 0.30), b.u(0.14, 0.20)
    root = b.root(bob=b.u(0.01, 0.03))
    b.part(root, (0, 0, 0), (length, width, height), BODY)
    if b.chance(0.5):  # a shell that sits towards the back
        b.part(root, (-0.3 * length, 0, 0.5 * height), (0.75 * length, 0.75 * width, 0.9 * height), ACCENT)
    for side in (1, -1):
        stalk = b.joint(Joint(root, (0.8 * length, side * 0.3 * width, 0.6 * height), (0, 15, 0), "x", swing=0.2))
        b.bone(stalk, (0, 0, 0.12), 0.03, LIMB)
        b.part(stalk, (0, 0, 0.15), (0.06, 0.06, 0.06), EYE)
        b.part(stalk, (0.04, 0, 0.155), (0.036, 0.036, 0.036), PUPIL)
    b.part(root, (0.95 * length, 0, -0.1 * height), (0.04, 0.3 * width, 0.2 * height), NOSE)
    swing, radius, lift = b.u(0.3, 0.5), b.u(0.035, 0.05), b.u(15, 40)
    for k, x in enumerate((0.5, 0.0, -0.5)):
        for side in (1, -1):
            phase = math.pi * ((k + (side > 0)) % 2)
            at = (x * length, side * 0.8 * width, 0.0)
            hip = b.joint(Joint(root, at, (side * lift, 0, side * 35 * x), "z", swing=side * swing, phase=phase))
            b.bone(hip, (0, side * 0.18, 0), radius, LIMB)
            knee = b.joint(
                Joint(hip, (0, side * 0.18, 0), (-side * (lift + 55), 0, 0), "x", swing=0.35, phase=phase + 1.5)
            )
            b.bone(knee, (0, side * 0.2, 0), 0.8 * radius, ACCENT)
    big = b.u(0.9, 1.4)
    for side, size in ((1, big), (-1, 2.1 - big)):
        at = (0.75 * length, side * 0.75 * width, 0.0)
        arm = b.joint(Joint(root, at, (0, 0, side * 25), "y", bias=-0.3, swing=0.35, phase=side * 0.8))
        b.bone(arm, (0.16, 0, 0), 0.045, LIMB)
        hand = b.joint(Joint(arm, (0.17, 0, 0), (0, 0, -side * 45), "z", swing=0.2))
        b.part(hand, (0.07, 0, 0), (0.12 * size, 0.07 * size, 0.09 * size), ODD if side > 0 else BODY)
        for jaw in (1, -1):
            pinch = b.joint(Joint(hand, (0.12, 0, 0.02 * jaw), (0, -25 * jaw, 0), "y", swing=-0.35 * jaw, multiple=2))
            b.part(pinch, (0.05 * size, 0, 0), (0.085 * size, 0.035 * size, 0.03 * size), ACCENT)
    return "crab scuttling"


def _snake(b: Builder) -> str:
    radius, step, swing = b.u(0.10, 0.135), b.u(0.12, 0.15), b.u(0.4, 0.6)
    root = b.root()
    b.part(root, (0, 0, 0), (0.8 * step, radius, radius), BODY)
    joint, offset, count = root, (-0.3 * step, 0.0, 0.0), int(b.rng.integers(3, 5))
    for k in range(count):
        joint = b.joint(Joint(joint, offset, axis="z", swing=swing, phase=-1.0 * k))
        r = radius * (1 - 0.13 * k)
        b.part(joint, (-0.5 * step, 0, 0), (0.85 * step, r, r), BODY)
        offset = (-step, 0.0, 0.0)
    b.part(joint, (-1.2 * step, 0, 0), (0.6 * step, 0.4 * radius, 0.4 * radius), ACCENT)
    joint, offset, rise = root, (0.3 * step, 0.0, 0.0), b.u(18, 36)
    for k in range(3):
        joint = b.joint(Joint(joint, offset, (0, -rise if k > 0 else 0, 0), "z", swing=-0.4 * swing, phase=1.0 + k))
        b.part(joint, (0.5 * step, 0, 0), (0.85 * step, radius, radius), BODY)
        offset = (step, 0.0, 0.0)
    head = b.joint(Joint(joint, offset, (0, 2 * rise, 0), "y", swing=0.15, multiple=2))
    size = b.u(1.25, 1.6) * radius
    radii = (1.25 * size, 1.05 * size, 0.9 * size)
    b.part(head, (0.5 * size, 0, 0.02), radii, BODY)
    b.eyes(head, (0.5 * size, 0, 0.02), radii, 0.34 * size, b.u(48, 60), 38)
    tongue = b.joint(Joint(head, (1.6 * size, 0, -0.2 * size), axis="y", swing=0.5, multiple=2))
    b.part(tongue, (0.05, 0, 0), (0.10, 0.03, 0.022), NOSE)
    if b.chance(0.4):  # a hood or frill behind the head
        b.part(head, (-0.35 * size, 0, 0), (0.04, 1.8 * size, 1.5 * size), ACCENT)
    return "snake crawling"


def _hopper(b: Builder) -> str:
    size, swing = b.u(0.17, 0.23), b.u(0.45, 0.65)
    root = b.root(bob=b.u(0.10, 0.16), multiple=1)
    body = b.joint(Joint(root, (0, 0, 0), (0, -b.u(15, 50), 0), "y", swing=0.15, phase=-1.2))
    b.part(body, (0, 0, 0), (1.3 * size, 0.95 * size, size), BODY)
    b.part(body, (0.35 * size, 0, -0.25 * size), (0.95 * size, 0.8 * size, 0.85 * size), ACCENT)
    head_size = b.u(0.75, 1.0) * size
    head = b.joint(Joint(body, (1.5 * size, 0, 0.4 * size), (0, b.u(15, 45), 0), "y", swing=0.2, phase=1.0))
    radii = (1.05 * head_size, 1.1 * head_size, 0.85 * head_size)
    b.part(head, (0, 0, 0), radii, BODY)
    frog = b.chance(0.5)
    if frog:
        b.eyes(head, (0, 0, 0), radii, 0.36 * head_size, 48, 48)
        b.part(head, (0.55 * head_size, 0, -0.4 * head_size), (0.6 * head_size, 0.8 * head_size, 0.2 * head_size), NOSE)
    else:
        b.eyes(head, (0, 0, 0), radii, 0.27 * head_size, 42, 22)
        b.part(head, (1.0 * head_size, 0, -0.1 * head_size), (0.25 * head_size,) * 3, NOSE)
        b.ears(head, radii, str(b.rng.choice(["long", "round", "pointed"])))
        b.part(body, (-1.35 * size, 0, 0.1 * size), (0.09, 0.09, 0.09), ODD)
    thick, odd = b.u(0.07, 0.1), b.chance(0.5)
    for side in (1, -1):
        material = ODD if odd and side > 0 else LIMB
        at = (-0.6 * size, side * 0.9 * size, -0.2 * size)
        hip = b.joint(Joint(root, at, (-side * 8, 0, 0), "y", bias=-0.75, swing=swing, phase=0.0))
        b.bone(hip, (0, 0, -0.2), thick, material)
        knee = b.joint(Joint(hip, (0, 0, -0.2), axis="y", bias=1.5, swing=-1.3 * swing, phase=0.0))
        b.bone(knee, (0, 0, -0.2), 0.7 * thick, material)
        ankle = b.joint(Joint(knee, (0, 0, -0.2), axis="y", bias=-0.6, swing=0.8 * swing, phase=0.0))
        b.part(ankle, (0.08, 0, 0), (0.14, 0.06, 0.035), ACCENT)
        arm = b.joint(
            Joint(body, (0.8 * size, side * 0.75 * size, -0.4 * size), (0, 10, 0), "y", swing=-swing, phase=0.4)
        )
        b.bone(arm, (0.03, 0, -0.2), 0.045, material)
        b.part(arm, (0.05, 0, -0.22), (0.06, 0.05, 0.035), ACCENT)
    return "frog hopping" if frog else "hopper hopping"


def _octopus(b: Builder) -> str:
    size, tall = b.u(0.18, 0.23), b.u(1.0, 1.35)
    root = b.root(bob=b.u(0.03, 0.06), multiple=1)
    head = b.joint(Joint(root, (0, 0, 0), (0, -b.u(0, 20), 0), "y", swing=0.12))
    radii = (0.95 * size, size, tall * size)
    b.part(head, (0, 0, 0.6 * tall * size), radii, BODY)
    b.eyes(head, (0, 0, 0.6 * tall * size), radii, 0.27 * size, b.u(28, 40), -8)
    b.part(head, (0.85 * size, 0, -0.1 * size), (0.16 * size, 0.35 * size, 0.16 * size), NOSE)
    if b.chance(0.5):
        b.part(head, (-0.7 * size, 0, 1.1 * tall * size), (0.3 * size, 0.15 * size, 0.6 * size), ACCENT, (0, -30, 0))
    count, step, radius = int(b.rng.integers(5, 8)), b.u(0.13, 0.17), b.u(0.045, 0.065)
    swing, droop = b.u(0.3, 0.5), b.u(20, 45)
    odd = int(b.rng.integers(0, count))
    for k in range(count):
        azimuth = 360.0 * (k + 0.5) / count
        base = b.joint(Joint(root, (0, 0, -0.05), (0, 0, azimuth)))
        joint, offset = base, (0.6 * size, 0.0, 0.0)
        for m in range(3):
            rest = (0.0, droop if m == 0 else (25.0 if m == 1 else -30.0), 0.0)
            phase = -0.9 * m + (0.0 if k % 2 else 1.2)
            joint = b.joint(Joint(joint, offset, rest, "y", swing=swing, phase=phase))
            b.bone(joint, (step, 0, 0), radius * (1.15 - 0.22 * m), ODD if k == odd else (ACCENT if m == 2 else LIMB))
            offset = (step, 0.0, 0.0)
    return "octopus swimming"


def _turtle(b: Builder) -> str:
    length, height = b.u(0.26, 0.34), b.u(0.13, 0.18)
    width = b.u(0.75, 0.95) * length
    root = b.root(bob=b.u(0.02, 0.05), multiple=1)
    b.part(root, (0, 0, 0.03), (length, width, height), BODY)
    b.part(root, (0, 0, -0.3 * height), (1.05 * length, 1.05 * width, 0.5 * height), ACCENT)
    neck = b.joint(Joint(root, (0.85 * length, 0, 0), (0, -b.u(5, 30), 0), "y", swing=0.2))
    b.bone(neck, (0.16, 0, 0), 0.06, LIMB)
    size = b.u(0.09, 0.12)
    radii = (1.2 * size, 0.9 * size, 0.8 * size)
    b.part(neck, (0.16 + 0.6 * size, 0, 0.02), radii, LIMB)
    b.eyes(neck, (0.16 + 0.6 * size, 0, 0.02), radii, 0.3 * size, 50, 30)
    b.part(neck, (0.16 + 1.7 * size, 0, 0.0), (0.25 * size, 0.4 * size, 0.2 * size), NOSE)
    b.tail(root, (-length, 0, 0), 2, 0.08, 0.035, -10)
    odd, swing = int(b.rng.integers(0, 8)), b.u(0.4, 0.7)
    for k, (x, side) in enumerate([(0.6, 1), (0.6, -1), (-0.6, 1), (-0.6, -1)]):
        at = (x * length, side * 0.8 * width, -0.2 * height)
        fin = b.joint(Joint(root, at, (0, 0, -side * 25 * (1 if x > 0 else -1)), "x", swing=side * swing, phase=x))
        long = b.u(0.2, 0.28) if x > 0 else 0.14
        b.part(fin, (-0.03, side * 0.8 * long, 0), (0.09, long, 0.03), ODD if odd == k else LIMB)
    return "turtle swimming"


def _centaur(b: Builder) -> str:
    length, width, height = b.u(0.24, 0.30), b.u(0.13, 0.17), b.u(0.13, 0.17)
    root = b.root(bob=b.u(0.01, 0.03))
    b.part(root, (0, 0, 0), (length, width, height), BODY)
    chest = b.joint(Joint(root, (0.75 * length, 0, 0.4 * height), (0, -b.u(0, 15), 0), "z", swing=0.25))
    tall = b.u(0.2, 0.28)
    b.part(chest, (0, 0, 0.5 * tall), (0.11, 0.15, 0.7 * tall), ACCENT)
    size = b.u(0.11, 0.14)
    head = b.joint(Joint(chest, (0, 0, 1.2 * tall + 0.6 * size), axis="z", swing=0.3))
    radii = (size, size, 1.1 * size)
    b.part(head, (0, 0, 0), radii, BODY)
    b.eyes(head, (0, 0, 0), radii, 0.28 * size, 35, 15)
    b.part(head, (size, 0, -0.2 * size), (0.2 * size, 0.25 * size, 0.2 * size), NOSE)
    b.ears(head, radii, str(b.rng.choice(["pointed", "round", "horns"])))
    for side in (1, -1):
        arm = b.joint(Joint(chest, (0, side * 0.16, 0.95 * tall), (-side * 15, 0, 0), "y", swing=0.7, phase=1.5 * side))
        b.bone(arm, (0.05, side * 0.02, -0.16), 0.045, LIMB)
        elbow = b.joint(Joint(arm, (0.05, side * 0.02, -0.16), axis="y", bias=-0.7, swing=0.3))
        b.bone(elbow, (0, 0, -0.15), 0.04, ACCENT)
    b.tail(root, (-0.9 * length, 0, 0.3 * height), 3, b.u(0.09, 0.12), 0.05, b.u(-40, 0))
    radius, upper, lower, swing = b.u(0.05, 0.07), b.u(0.14, 0.19), b.u(0.12, 0.16), b.u(0.4, 0.6)
    odd = int(b.rng.integers(0, 8))
    for k, (x, side, phase) in enumerate([(0.75, 1, 0.0), (0.75, -1, math.pi), (-0.7, 1, math.pi), (-0.7, -1, 0.0)]):
        at = (x * length, side * 0.65 * width, -0.5 * height)
        b.leg(root, at, upper, lower, radius, (swing, phase, 0.5 if x < 0 else -0.3), odd == k)
    return "centaur walking"


def _dragonfly(b: Builder) -> str:
    radius, step = b.u(0.05, 0.07), b.u(0.11, 0.14)
    root = b.root(bob=b.u(0.02, 0.05), multiple=1)
    b.part(root, (0, 0, 0), (1.3 * step, 2 * radius, 2 * radius), BODY)
    joint, offset = root, (-1.1 * step, 0.0, 0.0)
    for k in range(4):
        joint = b.joint(Joint(joint, offset, (0, b.u(-6, 6), 0), "y", swing=0.12, phase=-0.7 * k))
        b.part(joint, (-0.5 * step, 0, 0), (0.65 * step, radius, radius), LIMB if k % 2 else BODY)
        offset = (-step, 0.0, 0.0)
    size = b.u(0.09, 0.12)
    head = b.joint(Joint(root, (1.3 * step + 0.4 * size, 0, 0), axis="z", swing=0.2))
    b.part(head, (0, 0, 0), (0.8 * size, size, 0.8 * size), ACCENT)
    b.eyes(head, (0, 0, 0), (0.8 * size, size, 0.8 * size), 0.45 * size, 60, 20)
    span, chord, swing, odd = b.u(0.75, 0.95), b.u(0.07, 0.1), b.u(0.4, 0.7), int(b.rng.integers(0, 8))
    for k, (x, phase) in enumerate(((0.4, 0.0), (-0.5, math.pi / 2))):
        for side in (1, -1):
            at = (x * step, side * radius, 1.5 * radius)
            wing = b.joint(Joint(root, at, (0, 0, side * 12 * (0.5 - k)), "x", swing=side * swing, phase=phase))
            b.part(wing, (0, side * 0.5 * span, 0), (chord, 0.5 * span, 0.025), ODD if odd == k else ACCENT)
    for side in (1, -1):
        for x in (0.6, 0.1, -0.4):
            leg = b.joint(Joint(root, (x * step, side * radius, -radius), (side * 25, 0, 0), "y", swing=0.2, phase=x))
            b.bone(leg, (0, 0, -0.13), 0.025, LIMB)
    return "dragonfly flying"


PLANS = {
    "quadruped": _quadruped,
    "biped": _biped,
    "bird": _bird,
    "fish": _fish,
    "crab": _crab,
    "snake": _snake,
    "hopper": _hopper,
    "octopus": _octopus,
}
PLAN_SHARES = (0.25, 0.15, 0.13, 0.12, 0.08, 0.08, 0.11, 0.08)
UNSEEN_PLANS = {"turtle": _turtle, "centaur": _centaur, "dragonfly": _dragonfly}  # only for tests, equally likely

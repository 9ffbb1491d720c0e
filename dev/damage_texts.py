"""What can be wrong with camera paths, glTF assets and YAML files; see damage.py."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from damage import JUNK, Change, leaves, write

# ---- camera paths, assets, YAML -------------------------------------------------------------------------------------

EYE = np.eye(4).tolist()
PATH_FILES: dict[str, tuple[Change, bool]] = {
    **{kind: (write("p.json", text), True) for kind, text in (
        ("empty object", "{}"), ("empty frames", '{"frames": []}'), ("text", "x"), ("number", "3"),
        ("deep", "[" * 100_000),
        ("deep object", '{"frames":' * 20_000), ("digits", '{"frames": ' + "9" * 10_000 + "}"), ("binary", "\udcff"),
        ("frames text", '{"frames": "abc"}'), ("frames numbers", '{"frames": [1]}'), ("frames nan", '{"frames": NaN}'),
        ("matrix short", '{"frames": [{"transform_matrix": [1]}]}'),
        ("matrix zero", json.dumps({"frames": [{"transform_matrix": [[0.0] * 4] * 4}]})),
        ("matrix nan", json.dumps({"frames": [{"transform_matrix": [[float("nan")] * 4] * 4}]})),
        ("matrix mirrored", json.dumps({"frames": [{"transform_matrix": np.diag([-1.0, 1, 1, 1]).tolist()}]})),
        ("matrix scaled", json.dumps({"frames": [{"transform_matrix": np.diag([3.0, 3, 3, 1]).tolist()}]})),
        ("time 2", json.dumps({"frames": [{"transform_matrix": EYE, "time": 2}]})),
        ("time text", json.dumps({"frames": [{"transform_matrix": EYE, "time": "x"}]})),
        ("time nan", json.dumps({"frames": [{"transform_matrix": EYE, "time": float("nan")}]})),
        ("fov 0", json.dumps({"frames": [{"transform_matrix": EYE, "fovy_deg": 0}]})),
        ("fov nan", json.dumps({"frames": [{"transform_matrix": EYE, "fovy_deg": float("nan")}]})),
        ("azimuth text", '{"frames": [{"azimuth_deg": "x"}]}'),
        ("azimuth inf", '{"frames": [{"azimuth_deg": Infinity}]}'),
        ("azimuth digits", '{"frames": [{"azimuth_deg": ' + "9" * 400 + "}]}"),
        ("elevation 90", '{"frames": [{"azimuth_deg": 0, "elevation_deg": 90}]}'),
        ("distance 0", '{"frames": [{"azimuth_deg": 0, "distance": 0}]}'),
        ("distance negative", '{"frames": [{"azimuth_deg": 0, "distance": -1}]}'),
        ("fps nan", json.dumps({"frames": [{"transform_matrix": EYE}] * 2, "fps": float("nan")})),
        ("fps negative", json.dumps({"frames": [{"transform_matrix": EYE}] * 2, "fps": -1})),
        ("fps text", json.dumps({"frames": [{"transform_matrix": EYE}] * 2, "fps": "x"})),
    )},
    "pipe": (lambda f, r: os.mkfifo(f / "p.json"), True),
    "folder": (lambda f, r: (f / "p.json").mkdir(), True),
    "a good one": (write("p.json", '{"frames": [{"azimuth_deg": 20, "time": 0.5}]}'), False),
}  # fmt: skip


def _glb(edit: Callable[[dict[str, Any], Random], object]) -> Change:
    """Return a change of a GLB's JSON."""

    def change(folder: Path, rng: Random) -> None:
        path = folder / "assets" / "box.glb"
        data = path.read_bytes()
        length = struct.unpack("<I", data[12:16])[0]
        content, rest = json.loads(data[20 : 20 + length]), data[20 + length :]
        edit(content, rng)
        text = json.dumps(content).encode()
        text += b" " * (-len(text) % 4)
        head = struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest))
        path.write_bytes(head + struct.pack("<I4s", len(text), b"JSON") + text + rest)

    return change


def _junk_glb(content: dict[str, Any], rng: Random) -> None:
    container, key = rng.choice(leaves(content))
    container[key] = rng.choice(JUNK[:-3])


ASSETS: dict[str, Change] = {
    "cut": lambda f, r: os.truncate(f / "assets/box.glb", 500),
    "empty": write("assets/box.glb", b""),
    "text": write("assets/box.glb", "x"),
    "pipe": lambda f, r: ((f / "assets/box.glb").unlink(), os.mkfifo(f / "assets/box.glb")),
    **{f"junk {i}": _glb(_junk_glb) for i in range(12)},
    "node that holds itself": _glb(lambda c, r: c["nodes"][0].update(children=[0])),
    "outside file": _glb(lambda c, r: c["buffers"].append({"uri": "/etc/passwd", "byteLength": 10})),
    "manifest odd": write("assets/MANIFEST.tsv", "a\tb\n\xff\0"),
}


def _laughs(opening: str, key: str, closing: str) -> str:
    """Return nine lines of YAML that each name the one before nine times."""
    lines = []
    for i in range(9):
        entries = ", ".join(key.format(j=j) + f"*{chr(97 + i)}" for j in range(9))
        lines.append(f"{chr(98 + i)}: &{chr(98 + i)} {opening}{entries}{closing}\n")
    return "".join(lines)


YAML_TEXTS: dict[str, tuple[str, bool]] = {  # {kind: (text, whether it must be refused)}
    "empty": ("", True),
    "list": ("- 1\n", True),
    "number": ("3", True),
    "unclosed": ("a: [1", True),
    "tab": ("a:\n\t- b", True),
    "python object": ("seed: !!python/object/apply:os.system ['touch executed-by-yaml']", True),
    "python name": ("seed: !!python/name:os.system", True),
    "target": ("seed:\n  _target_: os.system\n  command: touch executed-by-hydra", True),
    "laughs": ("a: &a [x,x,x,x,x,x,x,x,x]\n" + _laughs("[", "", "]"), True),
    "settings laughs": ("a: &a {k: x}\n" + _laughs("{", "k{j}: ", "}") + "settings: *j\n", True),
    "deep": ("[" * 20_000, True),
    "deep object": ("{a: " * 3000, True),
    "number keys": ("settings: {1: 2, 3: {4: 5}}", True),
    "unknown key": ("nothing: 1\n", True),
    "settings null": ("settings: null\n", True),
    "settings nan": ("settings: {seed: .nan}\n", True),
    "settings text": ("settings: {seed: many}\n", True),
    "seed date": ("seed: 2020-01-01\n", True),
    "control characters": ("a: \x07\n", True),
    "binary": ("\udcff\udcfe\0", True),
    "two documents": ("seed: 1\n---\nseed: 2\n", True),
    "itself": ("&a [*a]\n", True),
    "settings itself": ("settings: &a {seed: 1, b: *a}\n", True),
    "interpolation": ("prompt: ${oc.env:NOWHERE_AT_ALL}\n", True),
    "defaults": ("defaults: [nowhere]\n", True),
}  # fmt: skip


def _yaml(text: str) -> Change:
    return write("y/config.yaml", text.encode("utf-8", "surrogateescape"))


YAMLS: dict[str, tuple[Change, bool]] = {
    **{kind: (_yaml(text), refused) for kind, (text, refused) in YAML_TEXTS.items()},
    "missing": (lambda f, r: (f / "y").mkdir(), True),
    "folder": (lambda f, r: (f / "y/config.yaml").mkdir(parents=True), True),
    "pipe": (lambda f, r: ((f / "y").mkdir(), os.mkfifo(f / "y/config.yaml")), True),
}


def as_experiment(change: Change) -> Change:
    """Return a change that puts what another makes as y/config.yaml into y/experiment/, as a recipe."""

    def moved(folder: Path, rng: Random) -> None:
        change(folder, rng)
        path = folder / "y" / "config.yaml"
        (folder / "y" / "experiment").mkdir()
        if path.exists():
            if path.is_file():
                path.write_bytes(b"# @package _global_\n" + path.read_bytes())
            path.rename(folder / "y" / "experiment" / "config.yaml")

    return moved

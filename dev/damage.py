"""What ``bad_cases.py`` does to inputs: functions of a folder and a random generator that change files in it."""

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

Change = Callable[[Path, Random], object]


def inside(place: str, change: Change) -> Change:
    """Return a change that is done in a folder of the working folder."""
    return lambda folder, rng: change(folder / place, rng)


def nothing(folder: Path, rng: Random) -> None:
    """Leave everything as it is."""


def write(name: str, content: str | bytes) -> Change:
    """Return a change that writes a file."""

    def change(folder: Path, rng: Random) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)

    return change


def renamed(given: str, name: str) -> Change:
    """Return a change that copies an input to another name."""

    def change(folder: Path, rng: Random) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder / given, folder / name)

    return change


# ---- paths ----------------------------------------------------------------------------------------------------------


def _closed(name: str, mode: int, is_folder: bool) -> Change:
    def change(folder: Path, rng: Random) -> None:
        if is_folder:
            (folder / name).mkdir()
        else:
            (folder / name).write_text("x")
        os.chmod(folder / name, mode)

    return change


def _socket(folder: Path, rng: Random) -> None:
    before = os.getcwd()
    os.chdir(folder)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
    os.chdir(before)


LONG = "n" * 300
INPUTS: dict[str, tuple[str, Change, bool]] = {  # {kind: (text, change, whether it is wrong for every setting)}
    "missing": ("nowhere", nothing, True),
    "missing mp4": ("nowhere.mp4", nothing, True),
    "missing onnx": ("nowhere.onnx", nothing, True),
    "missing json": ("nowhere.json", nothing, True),
    "empty text": ("", nothing, True),
    "blank text": ("' '", nothing, True),
    "empty folder": ("empty", lambda f, r: (f / "empty").mkdir(), True),
    "zero bytes": ("zero", write("zero", b""), True),
    "zero bytes mp4": ("zero.mp4", write("zero.mp4", b""), True),
    "zero bytes png": ("zero.png", write("zero.png", b""), True),
    "zero bytes json": ("zero.json", write("zero.json", b""), True),
    "zero bytes pt": ("zero.pt", write("zero.pt", b""), True),
    "text file": ("notes.txt", write("notes.txt", "notes"), True),
    "noise": ("noise.bin", write("noise.bin", bytes(range(256)) * 9), True),
    "noise safetensors": ("noise.safetensors", write("noise.safetensors", bytes(range(256)) * 9), True),
    "huge header": ("big.safetensors", write("big.safetensors", struct.pack("<Q", 2**60) + b"{}"), True),
    "pipe": ("pipe", lambda f, r: os.mkfifo(f / "pipe"), True),
    "pipe png": ("pipe.png", lambda f, r: os.mkfifo(f / "pipe.png"), True),
    "pipe json": ("pipe.json", lambda f, r: os.mkfifo(f / "pipe.json"), True),
    "pipe pt": ("pipe.pt", lambda f, r: os.mkfifo(f / "pipe.pt"), True),
    "pipe onnx": ("pipe.onnx", lambda f, r: os.mkfifo(f / "pipe.onnx"), True),
    "socket": ("s", _socket, True),
    "device": ("/dev/zero", nothing, True),
    "null device": ("/dev/null", nothing, True),
    "folder named mp4": ("f.mp4", lambda f, r: (f / "f.mp4").mkdir(), True),
    "folder named pt": ("f.pt", lambda f, r: (f / "f.pt").mkdir(), True),
    "folder named json": ("f.json", lambda f, r: (f / "f.json").mkdir(), True),
    "loop of links": ("loop", lambda f, r: os.symlink("loop", f / "loop"), True),
    "broken link": ("link", lambda f, r: os.symlink("gone", f / "link"), True),
    "no permission file": ("shut", _closed("shut", 0o000, False), True),
    "no permission folder": ("shut", _closed("shut", 0o000, True), True),
    "no permission json": ("shut.json", _closed("shut.json", 0o000, False), True),
    "behind no permission": ("shut/x", _closed("shut", 0o000, True), True),
    "too long": (LONG, nothing, True),
    "very long": ("d/" * 3000 + "x", nothing, True),
    "behind a file": ("notes/x", write("notes", "x"), True),
    "address": ("https://example.org/cat.mp4", nothing, True),
    "file address": ("file:///nowhere.mp4", nothing, True),
    "s3 address": ("s3://bucket/x", nothing, True),
    "unknown user": ("~nobody-here/x", nothing, True),
    "home": ("~/nowhere-at-all", nothing, True),
    "control characters": ("no\x1b[31mwhere\x07", nothing, True),
    "new line": ("no\nwhere", nothing, True),
    "half a character": ("no\udcffwhere", nothing, True),
    "lone surrogate": ("no\ud800where", nothing, True),
    "right to left": ("no\u202ewhere.mp4", nothing, True),
    "brackets": ("no[where]", nothing, True),
    "star": ("no*where", nothing, True),
    "interpolation": ("${oc.env:HOME}/nowhere", nothing, True),
    "open interpolation": ("${nowhere", nothing, True),
    "quote": ("no'where", nothing, True),
    "question marks": ("???", nothing, True),
    "root": ("/", nothing, False),
    "parent": ("..", nothing, False),
}


def _read_only(folder: Path, rng: Random) -> None:
    (folder / "ro").mkdir()
    os.chmod(folder / "ro", 0o555)


def _foreign(folder: Path, rng: Random) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("x")


def _held(folder: Path, rng: Random) -> None:
    (folder / "held").mkdir()
    (folder / "held" / "config.yaml").mkdir()


OUTPUTS: dict[str, tuple[str, Change, bool]] = {  # {kind: (text, change, whether it is wrong for every command)}
    "empty text": ("", nothing, True),
    "blank text": ("' '", nothing, True),
    "a file": ("taken", write("taken", "mine"), True),
    "behind a file": ("taken/out", write("taken", "mine"), True),
    "read-only folder": ("ro", _read_only, True),
    "inside a read-only folder": ("ro/out", _read_only, True),
    "read-only file": ("shut/out", _closed("shut", 0o555, True), True),
    "kernel": ("/proc/out", nothing, True),
    "kernel file": ("/proc/out.glb", nothing, True),
    "device": ("/dev/null", nothing, True),
    "full device": ("/dev/full", nothing, True),
    "behind a device": ("/dev/null/out", nothing, True),
    "pipe": ("pipe", lambda f, r: os.mkfifo(f / "pipe"), True),
    "pipe png": ("pipe.png", lambda f, r: os.mkfifo(f / "pipe.png"), False),
    "socket": ("s", _socket, True),
    "too long": (LONG, nothing, True),
    "very long": ("d/" * 3000 + "x", nothing, True),
    "loop of links": ("loop", lambda f, r: os.symlink("loop", f / "loop"), True),
    "broken link": ("link/out", lambda f, r: os.symlink("/proc/gone", f / "link"), True),
    "somebody's folder": ("mine", _foreign, False),
    "folder with a folder config.yaml": ("held", _held, False),
    "address": ("https://example.org/out", nothing, True),
    "file address": ("file:///tmp/out", nothing, True),
    "s3 address": ("s3://bucket/out", nothing, True),
    "lone surrogate": ("o\ud800ut", nothing, True),
    "root": ("/", nothing, True),
    "current folder": (".", nothing, False),
    "empty folder": ("empty", lambda f, r: (f / "empty").mkdir(), False),
    "control characters": ("o\x1b[31mut\x07", nothing, False),
    "new line": ("o\nut", nothing, False),
    "brackets": ("o[ut]", nothing, False),
    "interpolation": ("${nowhere}", nothing, False),
    "quote": ("o'ut", nothing, False),
    "letters": ("pêche 桃", nothing, False),
    "right to left": ("o\u202eut", nothing, False),
}
NAMES = {
    "letters": "pêche 桃", "brackets": "a[1]", "braces": "a{1}", "colon": "a:b", "star": "a*b", "tilde": "~x",
    "equals": "a=b", "quote": "a'b", "dollar": "a$b", "interpolation": "${x}", "space at the end": "a ", "hash": "#a",
    "percent": "a%20b", "control characters": "a\x1b[31mb", "new line": "a\nb", "dash": "-a", "comma": "a,b",
    "right to left": "a\u202eb", "backslash": "C:\\x", "number": "007", "null": "null", "true": "true", "dot": "...",
}  # fmt: skip


# ---- pictures and videos --------------------------------------------------------------------------------------------


def _picture(edit: Callable[[Path, Image.Image, Random], object]) -> Change:
    """Return a change of one of the PNGs of a folder, deeper folders included."""

    def change(folder: Path, rng: Random) -> None:
        path = rng.choice(sorted(folder.rglob("*.png")))
        with Image.open(path) as image:
            image.load()
        edit(path, image, rng)

    return change


def _bomb(path: Path, image: Image.Image, rng: Random) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        import zlib

        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x\x9cc\0") + chunk(b"IEND", b""))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n/x 1 def\nshowpage\n%%EOF\n"
PICTURES: dict[str, Change] = {
    "truncated": _picture(lambda p, i, r: os.truncate(p, p.stat().st_size * 2 // 3)),
    "header only": _picture(lambda p, i, r: os.truncate(p, 30)),
    "zero bytes": _picture(lambda p, i, r: p.write_bytes(b"")),
    "text": _picture(lambda p, i, r: p.write_text("no picture")),
    "eps": _picture(lambda p, i, r: p.write_bytes(EPS)),
    "svg": _picture(lambda p, i, r: p.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")),
    "bomb": _picture(_bomb),
    "other size": _picture(lambda p, i, r: i.resize((i.width + 3, i.height)).save(p)),
    "one pixel": _picture(lambda p, i, r: i.resize((1, 1)).save(p)),
    "pipe": _picture(lambda p, i, r: (p.unlink(), os.mkfifo(p))),
    "folder": _picture(lambda p, i, r: (p.unlink(), p.mkdir())),
    "broken link": _picture(lambda p, i, r: (p.unlink(), p.symlink_to("gone"))),
    "device": _picture(lambda p, i, r: (p.unlink(), p.symlink_to("/dev/zero"))),
    "float tiff": _picture(
        lambda p, i, r: Image.fromarray(np.full((i.height, i.width), 0.5, np.float32)).save(p, "TIFF")
    ),
    "swapped bytes": _picture(lambda p, i, r: p.write_bytes(p.read_bytes()[:60][::-1] + p.read_bytes()[60:])),
    "gray": _picture(lambda p, i, r: i.convert("L").save(p)),
    "16 bit": _picture(lambda p, i, r: Image.fromarray(np.asarray(i.convert("L")).astype(np.uint16) * 257).save(p)),
    "palette": _picture(lambda p, i, r: i.convert("RGB").quantize(8).save(p)),
    "jpeg": _picture(lambda p, i, r: i.convert("RGB").save(p, "JPEG")),
    "cmyk": _picture(lambda p, i, r: i.convert("CMYK").save(p, "TIFF")),
    "empty alpha": _picture(lambda p, i, r: Image.new("RGBA", i.size).save(p)),
}
GOOD_PICTURES = {"gray", "16 bit", "palette", "jpeg", "cmyk", "empty alpha"}
CLIP_PICTURES = {kind: change for kind, change in PICTURES.items() if kind != "folder"}


def _alike(name: str, mode: str, color: str | int) -> Change:
    """Return a change that makes a folder of four frames of one color."""

    def change(folder: Path, rng: Random) -> None:
        (folder / name).mkdir()
        for index in range(4):
            Image.new(mode, (24, 24), color).save(folder / name / f"{index}.png")

    return change


VIDEOS: dict[str, tuple[str, Change]] = {
    "corrupt mp4": ("v.mp4", write("v.mp4", b"\0\0\0 ftypisom" + bytes(range(256)) * 8)),
    "playlist": ("v.m3u8", write("v.m3u8", "#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")),
    "concat list": ("v.txt", write("v.txt", "ffconcat version 1.0\nfile /etc/passwd\n")),
    "playlist named mp4": ("v.mp4", write("v.mp4", "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")),
    "eps named gif": ("v.gif", write("v.gif", EPS)),
    "gif of one frame": ("v.gif", lambda f, r: Image.new("RGB", (24, 24)).save(f / "v.gif")),
    "empty gif": ("v.gif", write("v.gif", b"GIF89a")),
    "zip named mp4": ("v.mp4", write("v.mp4", b"PK\3\4" + bytes(200))),
    "wave named mp4": ("v.mp4", write("v.mp4", b"RIFF$\0\0\0WAVEfmt " + bytes(200))),
    "one frame": ("one", lambda f, r: ((f / "one").mkdir(), Image.new("RGB", (24, 24)).save(f / "one/0.png"))),
    "all white": ("w", _alike("w", "RGB", "white")),
    "all clear": ("c", _alike("c", "RGBA", 0)),
    "only text files": ("t", write("t/a.txt", "x")),
}  # fmt: skip


# ---- JSON -----------------------------------------------------------------------------------------------------------

JUNK: tuple[Any, ...] = (None, -1, 0, float("nan"), float("inf"), -1e300, 1e38, "text", "", [], {}, [[]], True, 2**63,
                         10**400, "\ud800", "${x}")  # fmt: skip


def leaves(node: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside a JSON value."""
    pairs = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    return [(node, key) for key, _ in pairs] + [place for _, value in pairs for place in leaves(value)]


def edit_json(name: str, edit: Callable[[Any, Random], object]) -> Change:
    """Return a change of a JSON file's content."""

    def change(folder: Path, rng: Random) -> None:
        content = json.loads((folder / name).read_text())
        edit(content, rng)
        (folder / name).write_text(json.dumps(content, default=str))

    return change


def fuzz_json(name: str) -> Change:
    """Return a change that puts junk in place of a random value, or leaves it out."""

    def edit(content: Any, rng: Random) -> None:
        container, key = rng.choice(leaves(content))
        if isinstance(container, dict) and rng.random() < 0.2:
            del container[key]
        else:
            container[key] = rng.choice(JUNK)

    return edit_json(name, edit)


def broken_json(name: str) -> dict[str, Change]:
    """Return files in place of a JSON file that are none, or one of another kind."""
    path = Path(name)
    return {
        "missing": lambda f, r: (f / path).unlink(),
        "empty": write(name, b""),
        "text": write(name, "hello"),
        "cut": lambda f, r: os.truncate(f / path, (f / path).stat().st_size // 2),
        "binary": write(name, bytes(range(256))),
        "list": write(name, "[1, 2]"),
        "number": write(name, "3"),
        "null": write(name, "null"),
        "deep": write(name, "[" * 100_000),
        "deep object": write(name, '{"frames":' * 20_000),
        "digits": write(name, '{"frames": ' + "9" * 10_000 + "}"),
        "pipe": lambda f, r: ((f / path).unlink(), os.mkfifo(f / path)),
        "folder": lambda f, r: ((f / path).unlink(), (f / path).mkdir()),
        "device": lambda f, r: ((f / path).unlink(), (f / path).symlink_to("/dev/zero")),
    }


def _frame(**entries: Any) -> Change:
    """Return a change of a random frame of a transforms.json; None deletes a key."""

    def edit(content: Any, rng: Random) -> None:
        frame = rng.choice(content["frames"])
        for key, value in entries.items():
            if value is None:
                frame.pop(key, None)
            else:
                frame[key] = value

    return edit_json("transforms.json", edit)


def _meta(**entries: Any) -> Change:
    def edit(content: Any, rng: Random) -> None:
        for key, value in entries.items():
            content.pop(key, None) if value is None else content.update({key: value})

    return edit_json("transforms.json", edit)


def _matrices(edit_matrix: Callable[[np.ndarray], np.ndarray]) -> Change:
    def edit(content: Any, rng: Random) -> None:
        view = rng.choice(content["frames"])["view"]
        for frame in content["frames"]:
            if frame["view"] == view:
                frame["transform_matrix"] = edit_matrix(np.array(frame["transform_matrix"])).tolist()

    return edit_json("transforms.json", edit)


def _outside(folder: Path, rng: Random) -> None:
    path = rng.choice(sorted((folder / "rgba").glob("*.png")))
    target = folder.parent / "elsewhere.png"
    shutil.move(path, target)
    path.symlink_to(os.path.relpath(target, path.parent))


TRANSFORMS: dict[str, tuple[Change, bool]] = {  # {kind: (change, whether it must be refused)}
    **{kind: (change, True) for kind, change in broken_json("transforms.json").items()},
    **{f"junk {i}": (fuzz_json("transforms.json"), False) for i in range(12)},
    "frames empty": (_meta(frames=[]), True),
    "frames null": (_meta(frames=0), True),
    "width nan": (_meta(w=float("nan")), True),
    "width text": (_meta(w="wide"), True),
    "width huge": (_meta(w=10**12), True),
    "width other": (_meta(w=17), True),
    "angle nan": (_meta(camera_angle_x=float("nan")), True),
    "angle negative": (_meta(camera_angle_x=-0.8), True),
    "angle 4": (_meta(camera_angle_x=4.0), True),
    "angle missing": (_meta(camera_angle_x=None), True),
    "focal other": (_meta(fl_x=500.0, fl_y=500.0), True),
    "focal unequal": (_meta(fl_x=19.3, fl_y=9.0), True),
    "center off": (_meta(cx=1.0, cy=3.0), True),
    "distortion": (_meta(k1=-0.2), True),
    "fisheye": (_meta(camera_model="OPENCV_FISHEYE"), True),
    "caption number": (_meta(caption=3), True),
    "caption surrogate": (_meta(caption="a\ud800b"), True),
    "caption controls": (_meta(caption="a\x1b[31mred\x07"), False),
    "caption long": (_meta(caption="word " * 50_000), False),
    "matrix missing": (_frame(transform_matrix=None), True),
    "matrix text": (_frame(transform_matrix="identity"), True),
    "matrix 3 x 3": (_frame(transform_matrix=[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), True),
    "matrix bool": (_frame(transform_matrix=[[True] * 4] * 4), True),
    "matrix digits": (_frame(transform_matrix=[[10**400] * 4] * 4), True),
    "matrix mirrored": (_matrices(lambda m: m @ np.diag([-1.0, 1, 1, 1])), True),
    "matrix scaled": (_matrices(lambda m: m @ np.diag([2.0, 2, 2, 1])), True),
    "matrix zero": (_matrices(lambda m: m * 0), True),
    "matrix far": (_matrices(lambda m: m + np.array([[0, 0, 0, 1e30]] + [[0, 0, 0, 0.0]] * 3)), True),
    "matrix bottom": (_matrices(lambda m: m + np.array([[0.0] * 4] * 3 + [[0, 0, 0.5, 0]])), True),
    "matrix moves": (_frame(transform_matrix=np.eye(4).tolist()), True),
    "view missing": (_frame(view=None), True),
    "view twice": (_frame(view=0, frame=0), False),
    "view half": (_frame(view=0.5), True),
    "view infinite": (_frame(view=float("inf")), True),
    "view huge": (_frame(view=10**12), True),
    "frame nan": (_frame(frame=float("nan")), True),
    "frame negative": (_frame(frame=-1), True),
    "time missing": (_frame(time=None), True),
    "time 2": (_frame(time=2.0), True),
    "time text": (_frame(time="now"), True),
    "path missing": (_frame(file_path=None), True),
    "path number": (_frame(file_path=7), True),
    "path gone": (_frame(file_path="rgba/gone.png"), True),
    "path nul": (_frame(file_path="rgba/a\0b.png"), True),
    "path surrogate": (_frame(file_path="rgba/\ud800.png"), True),
    "path absolute": (_frame(file_path="/etc/passwd"), True),
    "path above": (_frame(file_path="../../in/000.png"), True),
    "path folder": (_frame(file_path="rgba"), True),
    "path long": (_frame(file_path="x" * 5000), True),
    "path device": (_frame(file_path="/dev/zero"), True),
    "path link outside": (_outside, True),
}

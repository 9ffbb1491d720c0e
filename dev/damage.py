"""What ``bad_cases.py`` does to inputs: functions of a folder and a random generator that change files in it."""

import json
import math
import os
import pickle
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

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


def _leaves(node: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside a JSON value."""
    pairs = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    return [(node, key) for key, _ in pairs] + [place for _, value in pairs for place in _leaves(value)]


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
        container, key = rng.choice(_leaves(content))
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


# ---- tensors, models, scenes, runs ----------------------------------------------------------------------------------


def edit_tensors(name: str, edit: Callable[[dict[str, torch.Tensor], Random], object]) -> Change:
    """Return a change of the tensors in a safetensors file; its metadata stays."""

    def change(folder: Path, rng: Random) -> None:
        from safetensors import safe_open

        with safe_open(folder / name, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(folder / name)
        edit(tensors, rng)
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, metadata=metadata)

    return change


def _one(edit: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[dict[str, torch.Tensor], Random], None]:
    def change(tensors: dict[str, torch.Tensor], rng: Random) -> None:
        key = rng.choice(sorted(key for key, value in tensors.items() if value.is_floating_point() and value.numel()))
        value = edit(tensors[key].clone())
        tensors.pop(key)
        if value is not None:
            tensors[key] = value

    return change


def _with(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return edit


def tensor_files(name: str) -> dict[str, tuple[Change, bool]]:
    """Return what can be wrong with a file of tensors, and whether it must be refused."""
    return {
        "nan": (edit_tensors(name, _one(_with(math.nan))), True),
        "infinity": (edit_tensors(name, _one(_with(math.inf))), True),
        "missing tensor": (edit_tensors(name, _one(lambda t: None)), True),
        "other shape": (edit_tensors(name, _one(lambda t: torch.cat([t.reshape(-1), t.reshape(-1)]))), True),
        "no elements": (edit_tensors(name, _one(lambda t: t.reshape(-1)[:0])), True),
        "integers": (edit_tensors(name, _one(lambda t: t.long())), False),
        "half": (edit_tensors(name, _one(lambda t: t.half())), False),
        "double": (edit_tensors(name, _one(lambda t: t.double())), False),
        "extra tensor": (edit_tensors(name, lambda t, r: t.update({"more": torch.zeros(2)})), False),
        "no tensors": (edit_tensors(name, lambda t, r: t.clear()), True),
        "cut": (lambda f, r: os.truncate(f / name, (f / name).stat().st_size * 3 // 4), True),
        "cut header": (lambda f, r: os.truncate(f / name, 20), True),
        "empty": (write(name, b""), True),
        "text": (write(name, "no tensors"), True),
        "huge header": (write(name, struct.pack("<Q", 2**62) + b"{}"), True),
        "pickle": (write(name, pickle.dumps({"a": 1})), True),
        "missing": (lambda f, r: (f / name).unlink(), True),
        "folder": (lambda f, r: ((f / name).unlink(), (f / name).mkdir()), True),
        "pipe": (lambda f, r: ((f / name).unlink(), os.mkfifo(f / name)), True),
    }


class Evil:
    """An object whose pickle writes a file when it is loaded by code that executes pickles."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch executed-by-a-pickle",))


def evil_file(name: str) -> Change:
    """Return a change that writes a torch file which would run a command."""
    return lambda folder, rng: torch.save({"a": Evil()}, folder / name)


def _evil_in_place(part: str, weights: str, name: str) -> Change:
    def change(folder: Path, rng: Random) -> None:
        (folder / part / weights).unlink()
        torch.save({"a": Evil()}, folder / part / name)

    return change


def _sets(name: str, **entries: Any) -> Change:
    return edit_json(name, lambda content, rng: content.update(entries))


def models() -> list[tuple[str, Change, bool]]:
    """Return damages of a model folder: (name, change, whether generate must refuse it)."""
    parts = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "motion": "diffusion_pytorch_model",
             "text_encoder": "model", "image_encoder": "model"}  # fmt: skip
    found: list[tuple[str, Change, bool]] = []
    for part, stem in parts.items():
        for kind, (change, refused) in tensor_files(f"{part}/{stem}.safetensors").items():
            found.append((f"{part} weights {kind}", change, refused))
        for kind, change in broken_json(f"{part}/config.json").items():
            found.append((f"{part} config {kind}", change, kind != "number"))
        found += [(f"{part} config junk {i}", fuzz_json(f"{part}/config.json"), False) for i in range(10)]
        old = "diffusion_pytorch_model.bin" if stem != "model" else "pytorch_model.bin"
        found.append((f"{part} pickle that runs", _evil_in_place(part, f"{stem}.safetensors", old), True))
        found.append((f"{part} missing", lambda f, r, part=part: shutil.rmtree(f / part), True))
    for name in ("model_index.json", "generation_config.json", "scheduler/scheduler_config.json",
                 "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"):  # fmt: skip
        for kind, change in broken_json(name).items():
            good = kind == "missing" and name.startswith(("generation", "tokenizer/tokenizer_config"))
            found.append((f"{name} {kind}", change, not good and not name.startswith("tokenizer/tokenizer_config")))
        found += [(f"{name} junk {i}", fuzz_json(name), False) for i in range(10)]
    given: list[tuple[str, dict[str, Any]]] = [
        ("vae/config.json", {"scaling_factor": 0}), ("vae/config.json", {"scaling_factor": float("nan")}),
        ("vae/config.json", {"scaling_factor": "x"}), ("vae/config.json", {"latent_channels": 10**9}),
        ("unet/config.json", {"head_dim": 0}), ("unet/config.json", {"channels": [10**7, 10**7]}),
        ("unet/config.json", {"prediction_type": "sample"}), ("text_encoder/config.json", {"num_hidden_layers": 10**6}),
        ("image_encoder/config.json", {"num_hidden_layers": 10**9}), ("unet/config.json", {"blocks_per_level": 10**7}),
        ("motion/config.json", {"max_frames": 10**10}), ("image_encoder/config.json", {"image_size": 10**6}),
        ("scheduler/scheduler_config.json", {"beta_end": 2}), ("scheduler/scheduler_config.json", {"beta_end": -1}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
        ("scheduler/scheduler_config.json", {"trained_betas": [float("nan")] * 1000}),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}),
        ("generation_config.json", {"guidance_scale": float("nan")}), ("generation_config.json", {"image_size": 0}),
        ("generation_config.json", {"num_inference_steps": 10**9}), ("generation_config.json", {"scheduler": "x"}),
        ("text_encoder/config.json", {"pad_token_id": 10**6}),
        ("feature_extractor/preprocessor_config.json", {"image_std": [0, 0, 0]}),
        ("feature_extractor/preprocessor_config.json", {"image_mean": [float("nan")] * 3}),
    ]  # fmt: skip
    for name, entries in given:
        good = "pad_token_id" in entries or entries.get("prediction_type") == "sample" and name.startswith("scheduler")
        found.append((f"{name} {entries}"[:90], _sets(name, **entries), not good))
    return found


def scenes() -> list[tuple[str, Change, bool]]:
    """Return damages of a run's scene: (name, change, whether it must be refused)."""
    found: list[tuple[str, Change, bool]] = []
    for name in ("scene/diffusion_pytorch_model.safetensors", "scene/occupancy.safetensors"):
        for kind, (change, refused) in tensor_files(name).items():
            found.append((f"{name} {kind}", change, refused))
    for name in ("scene/config.json", "scene/renderer.json"):
        for kind, change in broken_json(name).items():
            found.append((f"{name} {kind}", change, True))
        found += [(f"{name} junk {i}", fuzz_json(name), False) for i in range(14)]
    for kind, (change, _) in tensor_files("input.safetensors").items():
        found.append((f"input.safetensors {kind}", change, False))
    for kind, change in broken_json("input.json").items():
        found.append((f"input.json {kind}", change, False))
    found += [(f"input.json junk {i}", fuzz_json("input.json"), False) for i in range(10)]
    for name, entries in (
        ("scene/renderer.json", {"radius": 0.5}), ("scene/renderer.json", {"radius": 1e9}),
        ("scene/renderer.json", {"num_samples": float("nan")}), ("scene/renderer.json", {"num_samples": 10**12}),
        ("scene/renderer.json", {"early_stop": "x"}), ("scene/renderer.json", {"early_stop": float("nan")}),
        ("scene/renderer.json", {"occupancy_resolution": 10**6}), ("scene/renderer.json", {"step_scale": -1}),
        ("scene/config.json", {"radius": float("nan")}), ("scene/config.json", {"hidden_width": 10**9}),
        ("scene/config.json", {"blob_scale": None}), ("scene/config.json", {"hidden_width": 0}),
    ):  # fmt: skip
        found.append((f"{name} {entries}", _sets(name, **entries), True))
    found.append(("scene a file", lambda f, r: (shutil.rmtree(f / "scene"), (f / "scene").write_text("x")), True))
    return found


def _metadata(name: str, **entries: Any) -> Change:
    def change(folder: Path, rng: Random) -> None:
        from safetensors import safe_open

        with safe_open(folder / name, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        metadata |= {key: json.dumps(value) for key, value in entries.items()}
        save_file(load_file(folder / name), folder / name, metadata=metadata)

    return change


def runs(verb: str) -> list[tuple[str, Change, bool]]:
    """Return damages of a run folder that a command goes on in: (name, change, whether it must be refused)."""
    found: list[tuple[str, Change, bool]] = []
    if verb != "generate again":
        name = "checkpoint.safetensors"
        for kind, (change, refused) in tensor_files(name).items():
            found.append((f"checkpoint {kind}", change, refused and kind not in ("missing", "no elements")))
        for step in (-1, "3", None, 1.5, 10**30, True, float("nan")):
            found.append((f"checkpoint step {step}", _metadata(name, step=step), True))
        found.append(("checkpoint verb", _metadata(name, verb="dance"), True))
        found.append(
            ("optimizer names", edit_tensors(name, lambda t, r: t.update({"optimizer.x": torch.zeros(1)})), False)
        )
        found.append(("partial folder", lambda f, r: (f / f"{name}.partial").mkdir(), False))
    for kind, change in broken_json("log.jsonl").items():
        found.append((f"log {kind}", change, False))
    for kind, change in YAML_TEXTS.items():
        found.append((f"config.yaml {kind}", write("config.yaml", change[0]), change[1] or kind == "empty"))
    found.append(("config.yaml folder", lambda f, r: ((f / "config.yaml").unlink(), (f / "config.yaml").mkdir()), True))
    found.append(("lock folder", lambda f, r: ((f / ".lock").unlink(missing_ok=True), (f / ".lock").mkdir()), True))
    found.append(("model partial file", write("model.partial", "x"), False))
    found.append(
        (
            "input.json folder",
            lambda f, r: ((f / "input.json").unlink(missing_ok=True), (f / "input.json").mkdir()),
            False,
        )
    )
    found.append(("read-only config", lambda f, r: os.chmod(f / "config.yaml", 0o444), False))
    return found


# ---- foreign weights ------------------------------------------------------------------------------------------------


def _release(edit: Callable[[dict[Any, Any]], Any]) -> Change:
    def change(folder: Path, rng: Random) -> None:
        path = folder / "release" / "ipmv.pt"
        content = edit(torch.load(path, weights_only=True))
        torch.save(content, path)

    return change


def _first(edit: Callable[[torch.Tensor], Any]) -> Callable[[dict[Any, Any]], Any]:
    def change(tensors: dict[Any, Any]) -> Any:
        key = next(iter(tensors))
        return tensors | {key: edit(tensors[key])}

    return change


def releases() -> list[tuple[str, Change, bool]]:
    """Return damages of ImageDream's file: (name, change, whether it must be refused)."""
    edits: dict[str, tuple[Callable[[dict[Any, Any]], Any], bool]] = {
        "nan": (_first(_with(math.nan)), True),
        "infinity": (_first(_with(math.inf)), True),
        "integers": (_first(lambda t: t.long()), True),
        "meta": (_first(lambda t: t.to("meta")), True),
        "sparse": (_first(lambda t: t.reshape(t.shape[0], -1).to_sparse()), True),
        "quantized": (_first(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), True),
        "complex": (_first(lambda t: t.to(torch.complex64)), True),
        "too large for half": (_first(lambda t: t * 0 + 1e38), False),
        "shape": (_first(lambda t: t[:1]), True),
        "missing key": (lambda t: dict(list(t.items())[1:]), True),
        "unknown key": (lambda t: t | {"other": torch.zeros(1)}, True),
        "number keys": (lambda t: {i: value for i, value in enumerate(t.values())}, True),
        "a list": (lambda t: list(t.values()), True),
        "a tensor": (lambda t: next(iter(t.values())), True),
        "empty": (lambda t: {}, True),
        "none": (lambda t: None, True),
        "values that are no tensors": (lambda t: t | {"betas": "text"}, True),
        "in model": (lambda t: {"model": t}, False),
        "in state_dict": (lambda t: {"state_dict": t, "step": 3}, False),
        "in module": (lambda t: {f"module.module.{key}": value for key, value in t.items()}, False),
        "a model that is a tensor": (lambda t: {"model": torch.zeros(3)}, True),
        "in itself": (lambda t: {"model": {"model": {"model": {}}}}, True),
    }
    found: list[tuple[str, Change, bool]] = [(kind, _release(edit), refused) for kind, (edit, refused) in edits.items()]
    name = "release/ipmv.pt"

    def flip(folder: Path, rng: Random) -> None:
        content = bytearray((folder / name).read_bytes())
        for _ in range(5):
            content[rng.randrange(200)] ^= 255
        (folder / name).write_bytes(content)

    def flip_pickle(folder: Path, rng: Random) -> None:
        with zipfile.ZipFile(folder / name) as archive:
            content = {each: archive.read(each) for each in archive.namelist()}
        key = next(each for each in content if each.endswith("data.pkl"))
        data = bytearray(content[key])
        for _ in range(5):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        content[key] = bytes(data)
        with zipfile.ZipFile(folder / name, "w") as archive:
            for each, value in content.items():
                archive.writestr(each, value)

    found.append(("code", evil_file(name), True))
    found += [(f"flipped bytes {i}", flip, False) for i in range(4)]
    found += [(f"flipped pickle {i}", flip_pickle, False) for i in range(12)]
    found.append(("cut", lambda f, r: os.truncate(f / name, (f / name).stat().st_size // 2), True))
    found.append(("bare pickle", write(name, pickle.dumps({"a": [1]})), True))
    found.append(("text", write(name, "x"), True))
    found.append(("no vocabulary", lambda f, r: shutil.rmtree(f / "release/tokenizer"), True))
    for part in ("vocab.json", "merges.txt", "tokenizer.json"):
        for kind, change in broken_json(f"release/tokenizer/{part}").items():
            found.append((f"{part} {kind}", _where_there(f"release/tokenizer/{part}", change), False))
    return found


def _where_there(name: str, change: Change) -> Change:
    return lambda folder, rng: change(folder, rng) if (folder / name).is_file() else None


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
    container, key = rng.choice(_leaves(content))
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

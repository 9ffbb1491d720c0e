"""The one reader of pictures: kinds of pixels, orientation, and files that are no pictures."""

import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourdiffusion.errors import UserError
from fourdiffusion.media.picture import is_picture, picture_size, read_gray16, read_picture

HEIGHT, WIDTH = 48, 80


def drawing() -> np.ndarray:
    """uint8 [H, W, 3]: flat patches, which JPEG keeps; no two corners alike."""
    pixels = np.full((HEIGHT, WIDTH, 3), 230, np.uint8)
    pixels[:16, :32], pixels[32:, 48:], pixels[32:, :32] = (200, 40, 30), (20, 60, 180), (30, 150, 60)
    return pixels


KINDS = ["RGB a.png", "RGB a.jpg", "RGB a.webp", "RGB a.bmp", "RGB a.tif", "P a.png", "P a.gif", "CMYK a.jpg"]
KINDS += ["CMYK a.tif", "YCbCr a.jpg", "RGBA a.png", "RGB a.txt"]


@pytest.mark.parametrize("kind", KINDS)
def test_colors_come_back(tmp_path: Path, kind: str) -> None:
    mode, name = kind.split()
    image = Image.fromarray(drawing())
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    kind = {"jpg": "JPEG", "tif": "TIFF", "txt": "PNG"}.get(name[2:], name[2:].upper())
    image.save(tmp_path / name, format=kind, **({"quality": 100} if kind in ("JPEG", "WEBP") else {}))
    pixels = read_picture(tmp_path / name)
    assert pixels.shape == (HEIGHT, WIDTH, 4) and pixels.dtype == np.uint8 and pixels[..., 3].min() == 255
    assert np.abs(pixels[..., :3].astype(int) - drawing()).mean() < 4
    assert is_picture(tmp_path / name) and picture_size(tmp_path / name) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_become_8(tmp_path: Path, name: str) -> None:
    gray = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(gray).save(tmp_path / name)
    assert np.array_equal(read_picture(tmp_path / name)[..., 0], (gray / 257).round())
    assert np.array_equal(read_gray16(tmp_path / name), gray)


def test_transparency_of_every_kind_is_kept(tmp_path: Path) -> None:
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[3:39, 5:65] = 255
    gray = np.full_like(alpha, 99)
    Image.fromarray(np.stack([gray, alpha], axis=-1), "LA").save(tmp_path / "la.png")
    Image.fromarray(np.concatenate([drawing(), alpha[..., None]], axis=-1)).save(tmp_path / "rgba.png")
    palette = Image.fromarray(np.where(alpha > 0, 1, 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.save(tmp_path / "p.png", transparency=0)
    for name in ("la.png", "rgba.png", "p.png"):
        assert np.array_equal(read_picture(tmp_path / name)[..., 3], alpha), name
    with pytest.raises(UserError, match="la.png: not a readable image .it is LA, a depth file is 16-bit gray"):
        read_gray16(tmp_path / "la.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_orientation_is_applied(tmp_path: Path, orientation: int, name: str) -> None:
    stored = {  # how the upright picture lies in a file of this orientation
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored[orientation](drawing()))).save(tmp_path / name, exif=tag, quality=100)
    assert np.abs(read_picture(tmp_path / name)[..., :3].astype(int) - drawing()).mean() < 4
    assert picture_size(tmp_path / name) == (WIDTH, HEIGHT)


def test_a_photo_with_its_thumbnail_is_one_picture(tmp_path: Path) -> None:
    """Phones write JPEGs that hold several pictures (MPO)."""
    small = Image.fromarray(drawing()).resize((8, 8))
    Image.fromarray(drawing()).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[small], quality=100)
    assert np.abs(read_picture(tmp_path / "a.jpg")[..., :3].astype(int) - drawing()).mean() < 4


# ---- what is no picture ---------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height pixels, and that holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a readable image"),
        (b"no image", "not a readable image, none of PNG, JPEG"),
        (EPS, "not a readable image, none of PNG"),
        (b"P6\n2 2\n255\n" + bytes(12), "none of PNG"),  # PPM: harmless, and not among the named formats
        (png(20_000, 20_000), "a.png: not a readable image .*pixels"),
        (png(9_000, 9_000), "9000 x 9000 pixels, at most 67108864 are read"),
        (png(12, 12), "a.png: not a readable image"),
    ],
)
def test_what_is_no_picture_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_picture(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Ghostscript, first on the path, would leave a mark."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "gs").chmod((tmp_path / "gs").stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "a.png").write_bytes(EPS)
    with pytest.raises(UserError):
        read_picture(tmp_path / "a.png")
    assert not is_picture(tmp_path / "a.png") and not (tmp_path / "called").exists()


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UserError, match="f.tif: not a readable image .floating-point pixels"):
        read_picture(tmp_path / "f.tif")
    Image.fromarray(np.full((4, 4), 100_000, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(UserError, match="i.tif: not a readable image .32-bit integer pixels"):
        read_picture(tmp_path / "i.tif")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path, message in (
        (tmp_path / "pipe.png", "pipe.png: is a pipe, not a file"),
        (tmp_path / "folder.png", "folder.png: is a folder, not a file"),
        (Path("/dev/null"), "/dev/null: is a device"),
        (tmp_path / "none.png", "none.png: missing"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (tmp_path / "red\x1b[31m.png", r"red\\x1b\[31m.png: missing"),
        (Path("a\0b"), "is not a file name"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_picture(path)
        assert str(caught.value).isprintable()

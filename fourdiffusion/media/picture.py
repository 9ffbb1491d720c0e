"""Read picture files: clips, frames of a video, masks and depth.

Pillow opens only listed formats (an EPS would start Ghostscript). Pipes, devices and pictures of more pixels than
``MAX_PIXELS`` are errors. All readers raise UserError with one line that names the file.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import printable, require_file

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 2**26  # 8192 x 8192
MAX_SEQUENCE_PIXELS = 2**31  # of all frames of an animated picture: about 15 s of decoding
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 exchange width and height


def read_picture(path: Path, content: bytes | None = None) -> np.ndarray:
    """Return uint8 [H, W, 4], straight alpha, upright by the EXIF orientation; opaque if a file has no alpha.

    Supports 8 and 16 bits, gray, palette, CMYK and RGB. Reads the first picture of a file with several. ``content`` is
    the file's content if it was already read, from an archive; ``path`` is then only its name.
    """
    with open_picture(path, content) as image:
        return to_rgba(ImageOps.exif_transpose(image))


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height of ``read_picture``'s result, reading only the header."""
    with open_picture(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def read_gray16(path: Path) -> np.ndarray:
    """Return uint16 [H, W] of a 16-bit gray picture; UserError for other pictures."""
    with open_picture(path) as image:
        if not image.mode.startswith("I"):
            raise ValueError(f"it is {image.mode}, a depth file is 16-bit gray")
        return _gray(image).astype(np.uint16)


def is_picture(path: Path) -> bool:
    """Return whether a file has a supported format, animated or not; UserError if it cannot be read."""
    require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS):
                return True
    except Image.DecompressionBombError:
        return True  # an error when it is opened
    except UnidentifiedImageError:
        return False
    except Exception as error:
        raise UserError(f"{printable(path)}: cannot be read ({_reason(error)}): give another file") from error


@contextmanager
def open_picture(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open a picture file with Pillow. Every error inside the block becomes a UserError that names the file."""
    if content is None:
        require_file(path, "restore it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # too many pixels are an error below
            with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
                yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise UserError(f"{printable(path)}: not a readable image, none of {kinds}: replace or remove it") from error
    except Exception as error:  # Pillow raises many types for damaged files
        raise UserError(f"{printable(path)}: not a readable image ({_reason(error)}): replace or remove it") from error


def to_rgba(image: Image.Image) -> np.ndarray:
    """Return uint8 [H, W, 4] of an open picture; ValueError for modes whose range is unknown."""
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 255
        image = Image.fromarray((_gray(image) / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    elif image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"):
        image = image.convert("RGB")
    return np.asarray(image.convert("RGBA"))


def _gray(image: Image.Image) -> np.ndarray:
    """Return int64 [H, W] in 0..65535 of a 16-bit gray picture."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit integer pixels, whose range is unknown")
    return values


def _reason(error: Exception) -> str:
    return printable((str(error) or type(error).__name__).splitlines()[0])

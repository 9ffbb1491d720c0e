"""Captions of clips: from a table by uid, the clip's own, or a captioning network with local weights."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourdiffusion.datasets.clips import open_clip
from fourdiffusion.datasets.curation.scores import choose_views
from fourdiffusion.datasets.curation.test_sets import ids_in
from fourdiffusion.errors import UserError

MAX_NEW_TOKENS = 30
Captioner = Callable[[Tensor], str]  # a picture [3, H, W] in [0, 1] -> what it shows


def read_caption_table(path: Path) -> dict[str, str]:
    """Return {uid: caption} of a table in Cap3D's format: one `uid,caption` per line, no header, UTF-8."""
    if not path.is_file():
        raise UserError(f"captions={path}: no such file; give a .csv of uid,caption")
    found = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row:
                    continue
                if len(row) != 2:
                    raise UserError(f"{path}:{number}: has {len(row)} columns; give uid,caption")
                found[row[0].strip()] = row[1].strip()
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of UTF-8 text ({error}); give a .csv of uid,caption") from error
    if not found:
        raise UserError(f"{path}: holds no caption; give a .csv of uid,caption")
    return found


def add_captions(lines: list[dict[str, Any]], captions: dict[str, str], captioner: str) -> list[dict[str, Any]]:
    """Return lines of score_log.py with captions by uid, or a captioner's for clips without one.

    A uid is a clip's name or an Objaverse uid in it. ``captioner`` is a folder, empty for none.
    """
    describe: Captioner | None = None
    result = []
    for line in lines:
        texts = [line["uid"], *ids_in(line["uid"], line.get("source", ""))]
        caption = next((captions[uid] for uid in texts if uid in captions), line.get("caption", ""))
        if not caption and captioner and "error" not in line:
            describe = describe or load_captioner(Path(captioner))
            caption = describe(middle_picture(Path(line["folder"])))
        result.append(line | {"caption": caption})
    return result


def middle_picture(folder: Path) -> Tensor:
    """Return the first view's middle frame on white, [3, H, W] in [0, 1]."""
    clip = open_clip(folder)
    rgba = clip.pictures[choose_views(clip.c2w, 8)[0], clip.pictures.shape[1] // 2].float() / 255
    return rgba[:3] * rgba[3:] + 1 - rgba[3:]


def load_captioner(folder: Path) -> Captioner:
    """Load a BLIP captioning model from a local folder as transformers writes it; nothing is downloaded."""
    from transformers import BlipForConditionalGeneration, BlipProcessor

    try:
        processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
        model = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"captioner={folder} is not a BLIP model that transformers can load ({reason})") from error

    @torch.no_grad()
    def describe(picture: Tensor) -> str:
        inputs = processor(images=(picture * 255).round().to(torch.uint8), return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
        return str(processor.decode(tokens[0], skip_special_tokens=True)).strip()

    return describe

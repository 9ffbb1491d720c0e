"""Cosine similarity of pictures in the features of a local image encoder (CLIP, DINO, ...).

The value depends more on the encoder than on the evaluated method: the metric's name must include the encoder's.
Letters: N pictures, F frames, D features.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError
from fourdiffusion.metrics.image import check_pair
from fourdiffusion.metrics.weights import Missing


class ImageEncoder:
    """A transformers image encoder with its own preprocessing.

    Args:
        folder: a local transformers folder (config.json, weights, preprocessor_config.json).
        name: for the metric's name, for example "openai/clip-vit-base-patch32".
        device: where the encoder runs.
    """

    def __init__(self, folder: Path, name: str, device: torch.device | None = None) -> None:
        from transformers import AutoModel

        try:
            settings = read_json(folder / "preprocessor_config.json", "give the folder of an image encoder")
            size = settings.get("crop_size") or settings["size"]
            if isinstance(size, dict):
                size = size.get("height") or size["shortest_edge"]
            self.size = int(size)
            self.mean, self.std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
            self.model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{folder} is not an image encoder that transformers can load ({reason})") from error
        self.name, self.device, self.folder = name, device, folder

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return unit features [N, D] of pictures [N, 3, H, W] in [0, 1].

        The shorter side is resized to the encoder's size (antialiased bicubic), then the center is cropped.
        """
        check_pair(images, images)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"pictures must be [N, 3, H, W], got {list(images.shape)}")
        height, width = images.shape[-2:]
        target = (self.size * height // min(height, width), self.size * width // min(height, width))
        resized = interpolate(images, target, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (target[0] - self.size) // 2, (target[1] - self.size) // 2
        crop = resized[..., top : top + self.size, left : left + self.size]
        pixels = ((crop - self.mean) / self.std).to(self.device)
        if hasattr(self.model, "get_image_features"):
            output = self.model.get_image_features(pixel_values=pixels)
        else:
            output = self.model(pixel_values=pixels)
        if not isinstance(output, Tensor):  # DINO and transformers 5: the pooled token
            output = output.pooler_output if output.pooler_output is not None else output.last_hidden_state[:, 0]
        return normalize(output.float().cpu(), dim=-1)

    @torch.no_grad()
    def text(self, caption: str) -> Tensor:
        """Return the unit features [D] of a text, truncated if too long; UserError without a text encoder."""
        from transformers import AutoTokenizer

        if not hasattr(self.model, "get_text_features"):
            raise UserError(f"{self.name} has no text encoder: give a CLIP model, protocol.clip_encoder=...")
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.folder} holds no tokenizer that transformers can load ({reason})") from error
        longest = int(self.model.config.text_config.max_position_embeddings)
        tokens = tokenizer([caption], padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        output = self.model.get_text_features(**{key: value.to(self.device) for key, value in tokens.items()})
        if not isinstance(output, Tensor):
            output = output.pooler_output
        return normalize(output.float().cpu(), dim=-1)[0]


def find_encoder(name: str, folders: list[str]) -> Path | Missing:
    """Return the folder of an encoder, or what is missing and the command that gets it.

    Args:
        name: a local folder, or a hub id, searched as FOLDER/<id>, FOLDER/<last part of the id> and in the cache of
            huggingface_hub.
        folders: the user's folders.
    """
    last = name.rsplit("/", 1)[-1]
    for place in [Path(name).expanduser(), *(Path(folder) / inner for folder in folders for inner in (name, last))]:
        if (place / "config.json").is_file():
            return place
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json") if name.count("/") == 1 else None
    if isinstance(cached, str):
        return Path(cached).parent
    remedy = f"hf download {name} --local-dir FOLDER/{last}, then weights=FOLDER"
    return Missing(f"clip [{last}]", f"no encoder {name}", remedy)


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 2 arcsin(|a - b| / 2)^2 of unit features [..., D]: half the squared angle (4DGen, lines 17-21)."""
    return 2 * ((a - b).norm(dim=-1) / 2).clamp(max=1).arcsin().square()


def adjacent_consistency(features: Tensor) -> float:
    """Return the mean cosine similarity of neighboring frames (CLIP-C over adjacent pairs); unit features [F, D]."""
    _check(features)
    return float((features[1:] * features[:-1]).sum(-1).double().mean())


def all_pairs_consistency(features: Tensor) -> float:
    """Return the mean cosine similarity of all pairs of different frames (CLIP-C over all pairs); [F, D]."""
    _check(features)
    num_frames = len(features)
    products = (features @ features.T).double()
    return float((products.sum() - products.diagonal().sum()) / (num_frames * (num_frames - 1)))


def _check(features: Tensor) -> None:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"consistency needs features [F, D] of at least 2 frames, got {list(features.shape)}")
    lengths = features.norm(dim=-1)
    if bool(((lengths - 1).abs() > 1e-3).any()):
        raise ValueError("consistency needs features of unit length: normalize them first")

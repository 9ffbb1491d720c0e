"""LPIPS with VGG-16 (Zhang et al. 2018, version 0.1), from weights on this disk.

No package ships them whole: torchvision downloads the backbone, the package lpips holds the linear heads. Both are read
as files, neither is imported.
"""

import importlib.util
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fourdiffusion.errors import UserError
from fourdiffusion.files import read_foreign
from fourdiffusion.metrics.image import check_pair

BACKBONE = "vgg16-397923af.pth"  # as torchvision names it
HEADS = "vgg.pth"  # as the package lpips names them
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # convolutions; pooling between the blocks
WIDTHS = (3, 64, 128, 256, 512, 512)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for pictures in [0, 1]


class Lpips(nn.Module):
    """Distance of two pictures in VGG's features, 0 for equal ones; gradients flow to the pictures, not to weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        for layers, (before, width) in zip(BLOCKS, pairwise(WIDTHS), strict=True):
            for number, layer in enumerate(layers):
                self.features[str(layer)] = nn.Conv2d(width if number else before, width, 3, padding=1)
        self.heads = nn.ParameterList([nn.Parameter(torch.zeros(1, width, 1, 1)) for width in WIDTHS[1:]])
        self.requires_grad_(False)

    def forward(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """[..., 3, H, W] in [0, 1], H and W at least 16 -> [...]"""
        check_pair(prediction, truth)
        if prediction.shape[-3] != 3 or min(prediction.shape[-2:]) < 16:
            raise ValueError(f"LPIPS needs RGB pictures of 16 pixels a side at least, got {list(prediction.shape)}")
        total = torch.zeros((), device=prediction.device)
        for head, a, b in zip(self.heads, self._taps(prediction), self._taps(truth), strict=True):
            total = total + functional.conv2d((a - b).square(), head).mean(dim=(1, 2, 3))
        return total.view(prediction.shape[:-3])

    def _taps(self, images: Tensor) -> list[Tensor]:
        """What each block sees, of unit length at every pixel."""
        x = (images.flatten(0, -4) if images.ndim > 3 else images[None]).float()
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        x, taps = (x - mean) / std, []
        for number, layers in enumerate(BLOCKS):
            if number:
                x = functional.max_pool2d(x, 2)
            for layer in layers:
                x = self.features[str(layer)](x).relu()
            taps.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return taps


def load_lpips(folder: str | None) -> Lpips | None:
    """LPIPS from the files of ``lpips_files``; None where there are none.

    UserError where a folder that was named lacks one, or a file holds other weights.
    """
    files = lpips_files(folder)
    if files is None:
        return None
    tensors = {key: value for key, value in read_foreign(files[0]).items() if key.startswith("features.")}
    heads = read_foreign(files[1])
    tensors |= {f"heads.{n}": heads[key] for n in range(len(BLOCKS)) if (key := f"lin{n}.model.1.weight") in heads}
    measure = Lpips()
    try:
        measure.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"{files[0]} and {files[1]} are not the weights of LPIPS with VGG-16 ({reason})") from error
    return measure


def lpips_files(folder: str | None) -> tuple[Path, Path] | None:
    """Where backbone and heads lie.

    Args:
        folder: with both; None looks where torch keeps torchvision's downloads, and into an installed package lpips.

    Returns:
        None where folder is None and one of the two is not there. UserError where a named folder lacks one.
    """
    if folder is not None:
        files = Path(folder, BACKBONE), Path(folder, HEADS)
    else:
        package = importlib.util.find_spec("lpips")
        places = list(package.submodule_search_locations or []) if package else []
        heads = Path(places[0] if places else "", "weights/v0.1", HEADS)
        files = Path(torch.hub.get_dir(), "checkpoints", BACKBONE), heads
    if all(file.is_file() for file in files):
        return files
    if folder is None:
        return None
    raise UserError(f"lpips={folder} lacks {BACKBONE} or {HEADS}: docs/weights.md says where they come from")

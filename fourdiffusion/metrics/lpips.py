"""LPIPS (Zhang et al. 2018, version 0.1) on VGG-16, AlexNet or SqueezeNet 1.1, from local weights.

No package has all weights: torchvision downloads the trunks, the package lpips 0.1.4 has the linear heads. Both are
read as files without importing the packages.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fourdiffusion.errors import UserError
from fourdiffusion.files import read_foreign
from fourdiffusion.metrics.image import check_pair
from fourdiffusion.metrics.weights import Missing, find_file, package_folder, torch_hub_cache

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for pictures in [0, 1]
HEADS_REMEDY = "pip install --no-deps lpips==0.1.4"


@dataclass(frozen=True)
class Trunk:
    """A feature network of LPIPS: its files and the compared layers of torchvision's ``features``."""

    files: tuple[str, ...]  # names of the trunk, keys with or without the prefix "features."
    taps: tuple[int, ...]  # indices of the layers whose outputs are compared
    widths: tuple[int, ...]  # channels of those outputs
    model: str  # torchvision's name of the network
    min_side: int  # side of the smallest valid picture


TRUNKS = {
    "vgg": Trunk(
        ("vgg16-397923af.pth", "vgg16_features.safetensors"), (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), "vgg16", 16
    ),
    "alex": Trunk(
        ("alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth", "alexnet_features.safetensors"),
        (1, 4, 7, 9, 11),
        (64, 192, 384, 256, 256),
        "alexnet",
        31,
    ),
    "squeeze": Trunk(
        ("squeezenet1_1-b8a52dc0.pth", "squeezenet1_1-f364aa15.pth", "squeezenet1_1_features.safetensors"),
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        "squeezenet1_1",
        17,
    ),
}
BACKBONE = TRUNKS["vgg"].files[0]  # as torchvision names it
HEADS = "vgg.pth"  # as the package lpips names them


class Fire(nn.Module):
    """SqueezeNet's block: a 1 x 1 squeeze, then parallel 1 x 1 and 3 x 3 expansions."""

    def __init__(self, before: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, before, H, W] -> [N, 2 expand, H, W]"""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


def _features(net: str) -> nn.Sequential:
    """Return torchvision's ``features`` of a network up to the last tap; the numbering is torchvision's."""
    layers: list[nn.Module] = []
    if net == "vgg":
        before = 3
        for block, (count, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
            layers += [nn.MaxPool2d(2)] if block else []
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
    elif net == "alex":
        layers += [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
        layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
        layers += [nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()]
    else:
        layers += [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
        layers += [Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True)]
        layers += [Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True)]
        layers += [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    return nn.Sequential(*layers)


class Lpips(nn.Module):
    """LPIPS distance of two pictures, 0 for equal ones.

    Differentiable in the pictures, not in the weights.

    Args:
        net: "vgg", "alex" or "squeeze".
        variant: normalization of the features. "lpips": x / (|x| + 1e-10), the package lpips 0.1.4;
            "torchmetrics": x / sqrt(|x|^2 + 1e-8), torchmetrics.
        spatial: enlarge every layer's map to the picture's size before averaging (``spatial=True`` of lpips);
            otherwise each layer's map is averaged at its own size.
    """

    def __init__(self, net: str = "vgg", variant: str = "lpips", spatial: bool = False) -> None:
        super().__init__()
        if net not in TRUNKS or variant not in ("lpips", "torchmetrics"):
            raise ValueError(f"LPIPS on {net!r}, variant {variant!r}: give {', '.join(TRUNKS)}; lpips or torchmetrics")
        self.net, self.variant, self.spatial = net, variant, spatial
        self.features = _features(net)
        self.heads = nn.ParameterList([nn.Parameter(torch.zeros(1, width, 1, 1)) for width in TRUNKS[net].widths])
        self.requires_grad_(False)

    def forward(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """[..., 3, H, W] in [0, 1] -> [...]; ValueError if pictures are too small for the network."""
        check_pair(prediction, truth)
        smallest = TRUNKS[self.net].min_side
        if prediction.shape[-3] != 3 or min(prediction.shape[-2:]) < smallest:
            raise ValueError(
                f"LPIPS on {self.net} needs RGB pictures of {smallest} pixels a side at least, "
                f"got {list(prediction.shape)}"
            )
        total = torch.zeros((), device=prediction.device)
        for head, a, b in zip(self.heads, self._taps(prediction), self._taps(truth), strict=True):
            distance = functional.conv2d((a - b).square(), head)
            if self.spatial:
                distance = functional.interpolate(distance, prediction.shape[-2:], mode="bilinear", align_corners=False)
            total = total + distance.mean(dim=(1, 2, 3))
        return total.view(prediction.shape[:-3])

    def _taps(self, images: Tensor) -> list[Tensor]:
        """Return the features of each tap, normalized at every pixel."""
        x = (images.flatten(0, -4) if images.ndim > 3 else images[None]).float()
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        x, taps = (x - mean) / std, []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in TRUNKS[self.net].taps:
                taps.append(self._unit(x))
        return taps

    def _unit(self, x: Tensor) -> Tensor:
        if self.variant == "lpips":
            return x / (x.norm(dim=1, keepdim=True) + 1e-10)
        return x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()


def load_lpips(folder: str | None, net: str = "vgg") -> Lpips | None:
    """Return LPIPS from the files of ``lpips_files``; None if there are none.

    UserError if a given folder lacks one, or a file has other weights.
    """
    files = lpips_files(folder, net)
    return None if files is None else read_lpips(files, net)


def find_lpips(net: str, folders: list[str]) -> tuple[Path, Path] | Missing:
    """Return trunk and heads of LPIPS on ``net``, or what is missing and the command that gets it.

    Args:
        net: "vgg", "alex" or "squeeze".
        folders: searched first; then torch's hub cache (trunk) and an installed package lpips (heads).
    """
    names = TRUNKS[net].files
    trunk = find_file(names, folders, [torch_hub_cache()])
    heads = find_file((f"{net}.pth",), folders, package_folder("lpips", "weights/v0.1"))
    if trunk is None:
        remedy = f"python -c \"import torchvision; torchvision.models.{TRUNKS[net].model}(weights='DEFAULT')\""
        return Missing(f"lpips_{net}", f"no trunk {names[0]}", f"{remedy}, or name its folder: weights=FOLDER")
    if heads is None:
        return Missing(f"lpips_{net}", f"no heads {net}.pth", f"{HEADS_REMEDY}, or name their folder: weights=FOLDER")
    return trunk, heads


def read_lpips(files: tuple[Path, Path], net: str = "vgg", variant: str = "lpips", spatial: bool = False) -> Lpips:
    """Return LPIPS from a trunk's and a heads' file. UserError for other weights."""
    measure = Lpips(net, variant, spatial)
    wanted = {key.removeprefix("features.") for key in measure.state_dict() if key.startswith("features.")}
    trunk = {key.removeprefix("features."): value for key, value in read_foreign(files[0]).items()}
    tensors = {f"features.{key}": value for key, value in trunk.items() if key in wanted}
    heads = read_foreign(files[1])
    count = len(measure.heads)
    tensors |= {f"heads.{n}": heads[key] for n in range(count) if (key := f"lin{n}.model.1.weight") in heads}
    try:
        measure.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"{files[0]} and {files[1]} are not the weights of LPIPS on {net} ({reason})") from error
    return measure


def lpips_files(folder: str | None, net: str = "vgg") -> tuple[Path, Path] | None:
    """Return the paths of trunk and heads.

    Args:
        folder: with both; None: torchvision's download cache and an installed package lpips.
        net: "vgg", "alex" or "squeeze".

    Returns:
        None if folder is None and one of the two is missing. UserError if a given folder lacks one.
    """
    if folder is None:
        found = find_lpips(net, [])
        return None if isinstance(found, Missing) else found
    trunk = find_file(TRUNKS[net].files, [folder], [])
    heads = find_file((f"{net}.pth",), [folder], package_folder("lpips", "weights/v0.1") if trunk else [])
    if trunk is None or heads is None:
        name = TRUNKS[net].files[0]
        raise UserError(f"lpips={folder} lacks {name} or {net}.pth: docs/weights.md says where they come from")
    return trunk, heads

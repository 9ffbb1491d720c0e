"""Full-reference metrics of single pictures without weights.

Every function takes prediction and truth [..., C, H, W], float in [0, 1], and returns one value per picture [...].
Values outside [0, 1] (such as 0..255) are an error and are not rescaled.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

PSNR_LIMIT_DB = 100.0


def check_pair(prediction: Tensor, truth: Tensor) -> None:
    """Raise ValueError unless both are [..., C, H, W] of one shape with values in [0, 1]."""
    if prediction.shape != truth.shape or prediction.ndim < 3:
        raise ValueError(
            f"prediction {list(prediction.shape)} and truth {list(truth.shape)} must have one shape [..., C, H, W]"
        )
    for name, images in (("prediction", prediction), ("truth", truth)):
        low, high = float(images.detach().min()), float(images.detach().max())
        if not (low >= -1e-4 and high <= 1 + 1e-4):
            raise ValueError(f"{name} is in [{low:.4g}, {high:.4g}]: pictures must be finite and in [0, 1]")


def psnr(prediction: Tensor, truth: Tensor, data_range: Tensor | float = 1.0) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, 10 log10(range^2 / mean squared error); equal pictures give 100.

    ``data_range``: 1, the length of [0, 1], or that of a protocol, [...]. [..., C, H, W] -> [...]
    """
    check_pair(prediction, truth)
    error = (prediction - truth).double().square().flatten(-3).mean(-1)
    relative = error / torch.as_tensor(data_range, dtype=torch.float64).square()
    return (-10 * relative.clamp(min=10 ** (-PSNR_LIMIT_DB / 10)).log10()).float()


def extent(images: Tensor) -> Tensor:
    """Return the maximum minus the minimum of each picture, [..., C, H, W] -> [...].

    torchmetrics uses it as the data range if none is given; it differs from picture to picture.
    """
    flat = images.flatten(-3)
    return flat.amax(-1) - flat.amin(-1)


def ssim(
    prediction: Tensor, truth: Tensor, window: int = 11, sigma: float = 1.5, data_range: Tensor | float = 1.0
) -> Tensor:
    """Return the structural similarity (Wang et al. 2004), mean over channels and over windows inside the picture.

    Gaussian window, K1 = 0.01, K2 = 0.03, population covariance; ``data_range`` as in ``psnr``.
    [..., C, H, W] -> [...], at most 1.
    """
    check_pair(prediction, truth)
    if min(prediction.shape[-2:]) < window:
        raise ValueError(f"ssim's window of {window} is larger than the pictures, {list(prediction.shape[-2:])} pixels")
    x, y = (images.double().contiguous().flatten(0, -3)[:, None] for images in (prediction, truth))
    offset = torch.arange(window, dtype=torch.float64, device=x.device) - (window - 1) / 2
    kernel = torch.exp(-offset.square() / (2 * sigma**2))
    taps = (kernel / kernel.sum()).tolist()
    extents = torch.as_tensor(data_range, dtype=torch.float64, device=x.device).expand(prediction.shape[:-3])
    extents = extents[..., None].expand(prediction.shape[:-2]).reshape(-1, 1, 1, 1)
    size = len(x) if x.requires_grad or y.requires_grad else 1  # one channel stays in the CPU's cache
    parts = zip(x.split(size), y.split(size), extents.split(size), strict=True)
    per_channel = torch.cat([_similarity(*part, taps) for part in parts]).reshape(prediction.shape[:-2])
    return per_channel.mean(-1).float()


def _similarity(x: Tensor, y: Tensor, extent: Tensor, taps: list[float]) -> Tensor:
    """Return the mean structural similarity of channels [N, 1, H, W] with data ranges [N, 1, 1, 1]: [N]."""

    def blur(images: Tensor) -> Tensor:
        # a float64 conv2d of one channel takes thirty times as long on the CPU
        for dim in (-2, -1):
            length = images.shape[dim] - len(taps) + 1
            total = images.narrow(dim, 0, length) * taps[0]
            for start, weight in enumerate(taps[1:], 1):
                total.add_(images.narrow(dim, start, length), alpha=weight)
            images = total
        return images

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.flatten(1).mean(1)


def gmsd(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the gradient magnitude similarity deviation (Xue et al. 2014) of RGB pictures, 0 if equal.

    Luma, 2 x 2 mean pooling, Prewitt gradients m; similarity (2 m1 m2 + c) / (m1^2 + m2^2 + c) per pixel with the
    authors' c = 170 / 255^2; the result is its standard deviation over the picture. [..., 3, H, W] -> [...]
    """
    check_pair(prediction, truth)
    if prediction.shape[-3] != 3:
        raise ValueError(f"gmsd needs RGB pictures [..., 3, H, W], got {list(prediction.shape)}")
    m1, m2 = _gradient_magnitude(prediction), _gradient_magnitude(truth)
    c = 170 / 255**2
    similarity = (2 * m1 * m2 + c) / (m1**2 + m2**2 + c)
    return similarity.flatten(1).std(dim=1, correction=0).reshape(prediction.shape[:-3]).float()


def _gradient_magnitude(images: Tensor) -> Tensor:
    """[..., 3, H, W] -> [N, 1, H // 2, W // 2]"""
    luma = torch.einsum("...chw,c->...hw", images.double(), images.new_tensor([0.299, 0.587, 0.114]).double())
    pooled = avg_pool2d(luma.reshape(math.prod(images.shape[:-3]), 1, *images.shape[-2:]), 2)
    prewitt = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64, device=images.device).expand(3, 3) / 3
    gradients = conv2d(pooled, torch.stack([prewitt, prewitt.T])[:, None], padding=1)
    return gradients.square().sum(dim=1, keepdim=True).sqrt()

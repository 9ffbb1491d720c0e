"""LPIPS against its definition, with weights made up here: the real ones are not at hand."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from fourdiffusion.errors import UserError
from fourdiffusion.metrics.lpips import BACKBONE, HEADS, Lpips, load_lpips

# torchvision's vgg16: convolutions of these widths at these places of `features`, a pooling where an M stands
LAYOUT = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files under the names and with the keys and shapes of torchvision and of the package lpips."""
    folder, generator = tmp_path_factory.mktemp("lpips"), torch.Generator().manual_seed(0)
    backbone: dict[str, Tensor] = {"classifier.0.weight": torch.zeros(2, 2)}
    place, width = 0, 3
    for entry in LAYOUT:
        if entry == "M":
            place += 1
            continue
        scale = (2 / (9 * width)) ** 0.5
        backbone[f"features.{place}.weight"] = torch.randn(entry, width, 3, 3, generator=generator) * scale
        backbone[f"features.{place}.bias"] = torch.randn(entry, generator=generator) * 0.1
        place, width = place + 2, int(entry)
    torch.save(backbone, folder / BACKBONE)
    heads = {
        f"lin{number}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for number, width in enumerate((64, 128, 256, 512, 512))
    }
    torch.save(heads, folder / HEADS)
    return folder


@pytest.fixture(scope="module")
def lpips(files: Path) -> Lpips:
    measure = load_lpips(str(files))
    assert measure is not None
    return measure


def pictures(seed: int) -> Tensor:
    return torch.rand(2, 2, 3, 32, 24, generator=torch.Generator().manual_seed(seed))


def by_hand(files: Path, a: Tensor, b: Tensor) -> Tensor:
    """Of two pictures [3, H, W]: the package's scaling of [-1, 1], torchvision's layers one after the other."""
    backbone, heads = torch.load(files / BACKBONE), torch.load(files / HEADS)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = (torch.stack([a, b]) * 2 - 1 - shift[:, None, None]) / scale[:, None, None]
    total, place, tap = torch.zeros(()), 0, 0
    for entry in LAYOUT:
        if entry != "M":
            x = functional.conv2d(
                x, backbone[f"features.{place}.weight"], backbone[f"features.{place}.bias"], padding=1
            )
            x, place = functional.relu(x), place + 2
            continue
        unit = x / x.square().sum(1, keepdim=True).sqrt()
        head = heads[f"lin{tap}.model.1.weight"][0, :, 0, 0]
        total = total + ((unit[0] - unit[1]).square() * head[:, None, None]).sum(0).mean()
        if tap == 4:
            return total
        x, place, tap = functional.max_pool2d(x, 2), place + 1, tap + 1
    raise AssertionError("five blocks end in a pooling each")


def test_it_is_the_definition(lpips: Lpips, files: Path) -> None:
    a, b = pictures(0), pictures(1)
    values = lpips(a, b)
    assert values.shape == (2, 2)
    for v in range(2):
        for f in range(2):
            torch.testing.assert_close(values[v, f], by_hand(files, a[v, f], b[v, f]), rtol=1e-4, atol=1e-6)


def test_equal_pictures_are_at_no_distance_and_the_gradient_reaches_the_picture(lpips: Lpips) -> None:
    a, b = pictures(0), pictures(1)
    assert float(lpips(a, a).abs().max()) == 0
    a.requires_grad_()
    lpips(a, b).mean().backward()
    assert a.grad is not None and float(a.grad.norm()) > 0
    assert all(parameter.grad is None for parameter in lpips.parameters())


def test_values_and_shapes_out_of_range_are_refused(lpips: Lpips) -> None:
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        lpips(pictures(0) * 255, pictures(1))
    with pytest.raises(ValueError, match="16 pixels"):
        lpips(torch.rand(3, 8, 8), torch.rand(3, 8, 8))


def test_without_the_files(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert load_lpips(None) is None
    with pytest.raises(UserError, match="lacks vgg16-397923af.pth or vgg.pth"):
        load_lpips(str(tmp_path))


def test_other_weights_under_these_names_are_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / HEADS).write_bytes((files / HEADS).read_bytes())
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / BACKBONE)
    with pytest.raises(UserError, match="not the weights of LPIPS") as caught:
        load_lpips(str(tmp_path))
    assert "\n" not in str(caught.value)

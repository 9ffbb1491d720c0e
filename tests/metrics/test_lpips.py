"""LPIPS against its definition with weights made up here, and against published numbers where the real ones lie."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from fourdiffusion.errors import UserError
from fourdiffusion.metrics.lpips import BACKBONE, HEADS, TRUNKS, Lpips, find_lpips, load_lpips, read_lpips
from fourdiffusion.metrics.weights import Missing

ROOT = Path(__file__).resolve().parents[2]
REAL = [str(ROOT.parent / "shared" / "weights" / "lpips")]

# torchvision's vgg16: convolutions of these widths at these places of `features`, a pooling where an M stands
LAYOUT = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files under the names and with the keys and shapes of torchvision and of the package lpips."""
    folder, generator = tmp_path_factory.mktemp("lpips"), torch.Generator().manual_seed(0)
    backbone: dict[str, Tensor] = {"classifier.0.weight": torch.zeros(2, 2)}
    place, width = 0, 3
    for entry in LAYOUT:
        if not isinstance(entry, int):  # "M", a pooling layer
            place += 1
            continue
        scale = (2 / (9 * width)) ** 0.5
        backbone[f"features.{place}.weight"] = torch.randn(entry, width, 3, 3, generator=generator) * scale
        backbone[f"features.{place}.bias"] = torch.randn(entry, generator=generator) * 0.1
        place, width = place + 2, entry
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


# ---- AlexNet and SqueezeNet -----------------------------------------------------------------------------------------

ALEX = [
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
]
FIRE = [(3, 64, 16, 64), (4, 128, 16, 64), (6, 128, 32, 128), (7, 256, 32, 128), (9, 256, 48, 192), (10, 384, 48, 192),
        (11, 384, 64, 256), (12, 512, 64, 256)]  # fmt: skip


def made_up(net: str) -> dict[str, Tensor]:
    """Weights under torchvision's keys, without the prefix."""
    generator, trunk = torch.Generator().manual_seed(1), {}

    def layer(key: str, before: int, width: int, kernel: int) -> None:
        scale = (2 / (before * kernel**2)) ** 0.5
        trunk[f"{key}.weight"] = torch.randn(width, before, kernel, kernel, generator=generator) * scale
        trunk[f"{key}.bias"] = torch.randn(width, generator=generator) * 0.1

    if net == "alex":
        for place, before, width, kernel, _, _ in ALEX:
            layer(str(place), before, width, kernel)
    else:
        layer("0", 3, 64, 3)
        for place, before, squeeze, expand in FIRE:
            layer(f"{place}.squeeze", before, squeeze, 1)
            layer(f"{place}.expand1x1", squeeze, expand, 1)
            layer(f"{place}.expand3x3", squeeze, expand, 3)
    return trunk


def taps_by_hand(net: str, trunk: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    def conv(key: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        return functional.conv2d(x, trunk[f"{key}.weight"], trunk[f"{key}.bias"], stride, padding).relu()

    taps = []
    if net == "alex":
        for place, _, _, _, stride, padding in ALEX:
            if place in (3, 6):
                x = functional.max_pool2d(x, 3, 2)
            x = conv(str(place), x, stride, padding)
            taps.append(x)
        return taps
    x = conv("0", x, 2)
    taps.append(x)
    for place, _, _, _ in FIRE:
        if place in (3, 6, 9):
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        x = conv(f"{place}.squeeze", x)
        x = torch.cat([conv(f"{place}.expand1x1", x), conv(f"{place}.expand3x3", x, padding=1)], 1)
        if place in (4, 7, 9, 10, 11, 12):
            taps.append(x)
    return taps


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_other_trunks_are_the_definition(net: str, spatial: bool, tmp_path: Path) -> None:
    trunk, generator = made_up(net), torch.Generator().manual_seed(2)
    widths = TRUNKS[net].widths
    heads = {f"lin{n}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for n, w in enumerate(widths)}
    torch.save({f"features.{key}": value for key, value in trunk.items()}, tmp_path / TRUNKS[net].files[0])
    torch.save(heads, tmp_path / f"{net}.pth")
    found = find_lpips(net, [str(tmp_path)])
    assert not isinstance(found, Missing)
    a, b = torch.rand(2, 1, 3, 70, 64, generator=generator)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = (torch.cat([a, b]) * 2 - 1 - shift[:, None, None]) / scale[:, None, None]
    expected = 0.0
    for n, tap in enumerate(taps_by_hand(net, trunk, x)):
        unit = tap / tap.square().sum(1, keepdim=True).sqrt().clamp(min=1e-9)
        distance = ((unit[0] - unit[1]).square() * heads[f"lin{n}.model.1.weight"][0]).sum(0)
        if spatial:
            distance = functional.interpolate(distance[None, None], (70, 64), mode="bilinear")
        expected += float(distance.mean())
    for variant in ("lpips", "torchmetrics"):
        measure = read_lpips(found, net, variant, spatial)
        assert float(measure(a, b)) == pytest.approx(expected, rel=1e-4)


def real(net: str) -> Lpips:
    found = find_lpips(net, REAL)
    if isinstance(found, Missing):
        pytest.skip(found.line())
    return read_lpips(found, net)


def test_squeeze_on_the_example_that_torchmetrics_publishes() -> None:
    measure = real("squeeze")
    torch.manual_seed(42)
    a, b = torch.rand(10, 3, 100, 100), torch.rand(10, 3, 100, 100)
    assert float(measure(a, b).mean()) == pytest.approx(0.1005, abs=5e-5)


def test_alex_on_the_pictures_of_the_package() -> None:
    """The pictures stand in that project's repository (imgs/ex_*.png); they are not committed here."""
    import numpy as np
    from PIL import Image

    measure, folder = real("alex"), ROOT.parent / "shared" / "weights" / "lpips"
    if not (folder / "ex_ref.png").is_file():
        pytest.skip(f"ex_ref.png, ex_p0.png and ex_p1.png are not in {folder}")
    names = ("ref", "p0", "p1")
    ref, p0, p1 = (torch.from_numpy(np.array(Image.open(folder / f"ex_{name}.png"))).permute(2, 0, 1) for name in names)
    assert float(measure(p0 / 255, ref / 255)) == pytest.approx(0.722, abs=5e-4)
    assert float(measure(p1 / 255, ref / 255)) == pytest.approx(0.138, abs=5e-4)


def test_what_is_missing_is_said_with_the_line_that_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    missing = find_lpips("alex", [])
    assert isinstance(missing, Missing) and "alexnet-owt" in missing.line() and "weights=" in missing.line()
    with pytest.raises(ValueError, match="31 pixels"):
        Lpips("alex")(torch.rand(3, 30, 40), torch.rand(3, 30, 40))
    with pytest.raises(ValueError, match="'resnet'"):
        Lpips("resnet")

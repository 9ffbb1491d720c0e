"""Preprocessing of pictures before the metrics, and the names of network metrics."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fourdiffusion.errors import UserError
from fourdiffusion.evaluate.cache import FeatureCache
from fourdiffusion.evaluate.measure import (
    Networks,
    Pictures,
    clip_logits,
    load_networks,
    matrix_clips,
    measure_video,
    prepare,
)
from fourdiffusion.evaluate.settings import ProtocolConfig, load_protocol
from fourdiffusion.evaluate.summary import Row, add_single_clip_fvd, summarize
from fourdiffusion.metrics.flow import estimate_flow
from fourdiffusion.metrics.frechet import consistent4d_distance, mean_distance
from fourdiffusion.metrics.i3d import I3D


def frames(seed: int, count: int = 2, size: int = 40) -> np.ndarray:
    """Opaque pictures, uint8 [F, H, W, 4]."""
    rgb = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
    return np.concatenate([rgb, np.full((count, size, size, 1), 255, np.uint8)], axis=-1)


def test_pictures_are_resized_in_8_bits_as_pillow_does() -> None:
    rgba = frames(0)
    pictures = prepare(rgba, ProtocolConfig(size=32, resize_filter="bicubic"), Path("x"))
    expected = np.asarray(Image.fromarray(rgba[1, ..., :3]).resize((32, 32)))  # Pillow's default is bicubic
    np.testing.assert_array_equal((pictures.rgb[1] * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    assert pictures.alpha is None
    swapped = prepare(rgba, ProtocolConfig(bgr=True), Path("x"))
    torch.testing.assert_close(swapped.rgb.flip(1), prepare(rgba, ProtocolConfig(), Path("x")).rgb)


def test_alpha_is_composited_dropped_or_refused() -> None:
    rgba = frames(0)
    rgba[:, :20, :, 3] = 0
    rgba[:, 20:25, :, 3] = 51
    white = prepare(rgba, ProtocolConfig(), Path("x"))
    assert float(white.rgb[:, :, :20].min()) == 1 and white.alpha is not None
    expected = rgba[0, 22, 3, :3] * 0.2 + 255 * 0.8
    np.testing.assert_allclose(white.rgb[0, :, 22, 3].numpy() * 255, expected, atol=0.5)
    gray = prepare(rgba, ProtocolConfig(background=0.5), Path("x"))
    assert float(gray.rgb[0, 0, 0, 0]) == pytest.approx(0.5, abs=2 / 255)
    hidden = prepare(rgba, ProtocolConfig(alpha="drop"), Path("x"))
    np.testing.assert_array_equal((hidden.rgb[0, :, 0, 0] * 255).round().byte().numpy(), rgba[0, 0, 0, :3])
    with pytest.raises(UserError, match="x has transparent pixels"):
        prepare(rgba, ProtocolConfig(alpha="refuse"), Path("x"))


def test_alpha_iou_needs_alpha_on_both_sides() -> None:
    rgba, moved = frames(0), frames(0)
    rgba[..., 3], moved[..., 3] = 0, 0
    rgba[:, 10:20, 10:20, 3], moved[:, 10:20, 15:25, 3] = 255, 255
    protocol = ProtocolConfig(metrics=["psnr", "alpha_iou"])
    a, b = (prepare(each, protocol, Path("x")) for each in (rgba, moved))
    assert measure_video(a, b, protocol, Networks()).per_view["alpha_iou"] == pytest.approx(1 / 3)
    opaque = measure_video(a, Pictures(b.rgb), protocol, Networks())
    assert "alpha_iou" not in opaque.per_view and "one side is opaque" in opaque.notes[0]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = size | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=size | {"vocab_size": 99}, vision_config=vision, projection_dim=16)
    folder = tmp_path_factory.mktemp("encoders") / "tiny-clip"
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_the_encoder_stands_in_the_name_of_its_metrics(encoder: Path) -> None:
    protocol = ProtocolConfig(metrics=["clip_i", "clip_c", "clip_c_all"], clip_encoder="somebody/tiny-clip")
    networks = load_networks(protocol, [str(encoder.parent)])
    assert not networks.missing and list(networks.weights) == ["clip [tiny-clip]"]
    a, b = (prepare(frames(seed, 6), protocol, Path("x")) for seed in (0, 1))
    result = measure_video(a, b, protocol, networks)
    assert list(result.per_view) == ["clip_i [tiny-clip]", "clip_c [tiny-clip]", "clip_c_all [tiny-clip]"]
    assert networks.encoder is not None
    predicted, true = networks.encoder(a.rgb), networks.encoder(b.rgb)
    assert result.per_frame["clip_i [tiny-clip]"] == pytest.approx((predicted * true).sum(-1).tolist(), abs=1e-5)
    assert measure_video(a, a, protocol, networks).per_view["clip_i [tiny-clip]"] == pytest.approx(1, abs=1e-5)
    arc = measure_video(a, b, dataclasses.replace(protocol, clip_distance="spherical"), networks)
    cosine = float((predicted[0] * true[0]).sum())
    expected = 2 * math.asin(math.sqrt((1 - cosine) / 2)) ** 2  # |a - b| = 2 sin(angle / 2)
    assert arc.per_frame["clip_i_spherical [tiny-clip]"][0] == pytest.approx(expected, rel=1e-3)


def test_clip_t_is_of_neighbors_and_clip_text_of_the_caption(encoder: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    words = {f"{letter}{end}": n for n, (letter, end) in enumerate((a, b) for a in "abcdt " for b in ("", "</w>"))}
    words |= {"<|startoftext|>": 97, "<|endoftext|>": 98}
    (encoder / "vocab.json").write_text(json.dumps(words))
    (encoder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(encoder / "vocab.json"), str(encoder / "merges.txt")).save_pretrained(encoder)
    protocol = ProtocolConfig(metrics=["clip_t", "clip_text"], clip_encoder="somebody/tiny-clip")
    networks = load_networks(protocol, [str(encoder.parent)])
    a, b = (prepare(frames(seed, 6), protocol, Path("x")) for seed in (0, 1))
    silent = measure_video(a, b, protocol, networks)
    assert list(silent.per_view) == ["clip_t [tiny-clip]"] and "has no caption" in silent.notes[0]
    b.caption = "a cat"
    result = measure_video(a, b, protocol, networks)
    assert networks.encoder is not None
    predicted, text = networks.encoder(a.rgb), networks.encoder.text("a cat")
    angles = (predicted[1:] * predicted[:-1]).sum(-1).clamp(max=1).arccos()
    assert result.per_view["clip_t [tiny-clip]"] == pytest.approx(float((angles**2 / 2).mean()), rel=1e-2, abs=1e-6)
    assert result.per_frame["clip_text [tiny-clip]"] == pytest.approx((predicted @ text).tolist(), abs=1e-6)
    output = (
        CLIPModel.from_pretrained(encoder)
        .eval()
        .get_text_features(
            **CLIPTokenizer.from_pretrained(encoder)(
                ["a cat"], padding="max_length", max_length=77, return_tensors="pt"
            )
        )
    )
    expected = output if isinstance(output, torch.Tensor) else output.pooler_output
    torch.testing.assert_close(text, torch.nn.functional.normalize(expected[0].detach(), dim=-1), atol=1e-5, rtol=0)


def test_another_file_of_weights_is_refused(encoder: Path) -> None:
    protocol = ProtocolConfig(metrics=["clip_i"], clip_encoder="somebody/tiny-clip")
    found = load_networks(protocol, [str(encoder.parent)]).weights["clip [tiny-clip]"]
    same = dataclasses.replace(protocol, weights={name: digest[:8] for name, digest in found.items()})
    assert load_networks(same, [str(encoder.parent)]).weights == {"clip [tiny-clip]": found}
    other = dataclasses.replace(protocol, weights={name: "0123abcd" for name in found})
    with pytest.raises(UserError, match="synthetic measures with 0123abcd"):
        load_networks(other, [str(encoder.parent)])


def test_the_flow_of_a_reference_is_estimated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = ProtocolConfig(metrics=["warped_error"])
    a, b, c = (prepare(frames(seed, 3), protocol, Path("x")) for seed in (0, 1, 2))
    plain = measure_video(a, b, protocol, Networks()).per_view
    networks = Networks(cache=FeatureCache(tmp_path))
    calls = []

    def counted(video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(torch.equal(video, b.rgb))
        return estimate_flow(video)

    monkeypatch.setattr("fourdiffusion.evaluate.measure.estimate_flow", counted)
    assert [measure_video(a, b, protocol, networks).per_view for _ in range(2)] == [plain, plain]
    assert measure_video(c, b, protocol, networks).per_view != plain and calls == [True]


def test_features_are_computed_once(encoder: Path, tmp_path: Path) -> None:
    protocol = ProtocolConfig(metrics=["clip_i"], clip_encoder="somebody/tiny-clip")
    networks = load_networks(protocol, [str(encoder.parent)])
    a, b, c = (prepare(frames(seed, 3), protocol, Path("x")) for seed in (0, 1, 2))
    plain = measure_video(a, b, protocol, networks).per_frame
    networks.cache = FeatureCache(tmp_path / "kept")
    calls: list[int] = []
    inner = networks.encoder

    class Counted:
        name = "tiny-clip"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            assert inner is not None
            return inner(images)

    networks.encoder = Counted()  # type: ignore[assignment]
    assert measure_video(a, b, protocol, networks).per_frame == plain and len(calls) == 2
    assert measure_video(a, b, protocol, networks).per_frame == plain and len(calls) == 2
    measure_video(a, c, protocol, networks)  # another reference
    assert len(calls) == 3
    networks.weights["clip [tiny-clip]"] = {"model.safetensors": "other"}  # other weights
    measure_video(a, b, protocol, networks)
    assert len(calls) == 5
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(b"cut off")
    assert measure_video(a, b, protocol, networks).per_frame == plain and len(calls) == 7


def test_clips_of_an_image_matrix() -> None:
    """Pictures are told apart by their value 10 v + f."""
    matrix = (10 * torch.arange(3)[:, None] + torch.arange(4)).float()[:, :, None, None, None]

    def values(axis: str) -> list[list[int]]:
        return [clip.flatten().int().tolist() for clip in matrix_clips(matrix, axis)]

    assert values("views") == [[0, 10, 20], [1, 11, 21], [2, 12, 22], [3, 13, 23]]
    assert values("diagonal") == [[0, 11, 22, 3]]
    assert values("raster") == [[0, 1, 2, 3, 13, 12, 11, 10, 20, 21, 22, 23]]
    with pytest.raises(ValueError, match="axis"):
        matrix_clips(matrix, "time")


class CountingI3D(I3D):
    """The network's shapes without its arithmetic: the logits are the clip's mean color and its number of frames."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        mean = clips.mean(dim=(2, 3, 4))
        return torch.cat([mean, torch.full((len(clips), 1), float(clips.shape[2])), torch.zeros(len(clips), 396)], 1)


def test_videos_are_cut_into_clips_and_each_formula_has_its_name() -> None:
    networks = Networks(i3d=CountingI3D())
    a, b = torch.rand(2, 20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    protocol = ProtocolConfig(metrics=["fvd"], fvd="consistent4d", clip_length=10)
    logits, note = clip_logits(a, b, protocol, networks)
    assert logits is not None and not note and logits[0].shape == (2, 400)
    assert logits[0][:, 3].tolist() == [10, 10] and not torch.equal(logits[0][0], logits[0][1])
    row = Row("o", "0", measure_video(Pictures(a), Pictures(b), protocol, networks))
    add_single_clip_fvd(row, protocol)
    expected = [consistent4d_distance(x, y) for x, y in zip(*logits, strict=True)]
    assert row.result.per_view["fvd [consistent4d]"] == pytest.approx(sum(expected) / 2)
    mean_only = dataclasses.replace(protocol, fvd="mean_only")
    add_single_clip_fvd(row, mean_only)
    assert row.result.per_view["fvd [mean_only]"] == pytest.approx(mean_distance(*logits))
    assert "fvd [set]" in summarize([row], dataclasses.replace(protocol, fvd="set"), {})["mean"]
    short, said = clip_logits(a[:8], b[:8], dataclasses.replace(protocol, clip_length=None), networks)
    assert short is None and "I3D needs 9" in said


def test_small_pictures_leave_a_network_out_by_name() -> None:
    protocol = load_protocol("synthetic")
    from fourdiffusion.metrics.lpips import Lpips

    small = prepare(frames(0, 2, 24), protocol, Path("x"))
    result = measure_video(small, small, protocol, Networks(lpips={"alex": Lpips("alex"), "squeeze": Lpips("squeeze")}))
    assert "lpips_squeeze" in result.per_view and "lpips_alex" not in result.per_view
    assert "pictures of 24 pixels" in result.notes[0]

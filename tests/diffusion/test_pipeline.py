"""The pipeline folder, its mistakes, and sampling."""

import dataclasses
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import CAPTIONS, FRAMES, LATENT, SIZE, tiny_clip, tiny_config, tiny_pipeline
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.diffusion.encoders import encode_latents, train_tokenizer
from fourdiffusion.diffusion.loading import fresh_pipeline, load_pipeline, open_pipeline
from fourdiffusion.diffusion.long_video import interleaved, windows
from fourdiffusion.diffusion.motion import frame_positions
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.schedulers import SCHEDULERS, noise_schedule, set_scheduler
from fourdiffusion.errors import UserError
from fourdiffusion.media.image import composite

pytestmark = pytest.mark.slow

PARTS = ("unet", "motion", "vae", "text_encoder", "image_encoder")


@pytest.fixture(scope="module")
def pipeline() -> FourDiffusionPipeline:
    pipeline = tiny_pipeline(moving=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def saved(pipeline: FourDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    pipeline.save_whole(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def video(index: int = 0) -> Tensor:
    """[F, 3, H, W]."""
    return composite(tiny_clip(index).rgba[0] / 255)


# ---- the folder -----------------------------------------------------------------------------------------------------


def test_round_trip(pipeline: FourDiffusionPipeline, saved: Path) -> None:
    loaded = load_pipeline(saved)
    for part in PARTS:
        before, after = getattr(pipeline, part).state_dict(), getattr(loaded, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before), part
        assert not getattr(loaded, part).training
    assert loaded.tokenizer("a green ball", padding="max_length").input_ids == (
        pipeline.tokenizer("a green ball", padding="max_length").input_ids
    )
    assert loaded.unet.config.prediction_type == pipeline.unet.config.prediction_type
    torch.testing.assert_close(loaded.scheduler.alphas_cumprod, noise_schedule().alphas_cumprod)
    # Kernels round by where weights lie in memory: equal weights, almost equal samples.
    torch.testing.assert_close(sample(loaded, video()), sample(pipeline, video()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_keeps_the_noise_schedule_of_the_model(tmp_path: Path, name: str) -> None:
    config = dataclasses.replace(tiny_config(), beta_end=0.03)
    fresh_pipeline(config, train_tokenizer(CAPTIONS, 512, 12), seed=0).save_whole(tmp_path / "steep")
    loaded = load_pipeline(tmp_path / "steep")
    set_scheduler(loaded, name, "trailing")
    betas = torch.linspace(0.00085**0.5, 0.03**0.5, 1000, dtype=torch.float64).square()
    expected = (1 - betas).cumprod(0)
    assert expected[-1] ** 0.5 < 0.0025 < 0.06 < noise_schedule().alphas_cumprod[-1] ** 0.5
    torch.testing.assert_close(loaded.scheduler.alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-9)


def test_files_are_safetensors_and_small_text(saved: Path) -> None:
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".txt"}


def test_the_files_do_not_depend_on_what_was_encoded(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(moving=True)
    pipeline.save_whole(tmp_path / "before")
    pipeline.prepare(video(), "two balls", None)
    pipeline.save_whole(tmp_path / "after")
    for path in (tmp_path / "before" / "tokenizer").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / "tokenizer" / path.name).read_bytes()


def test_save_whole_replaces(copy: Path) -> None:
    (copy / "left_over.txt").write_text("old")
    partial = copy.with_name(f"model.{2**22 + 1}.partial")  # a number that no process has
    partial.mkdir()  # as a killed run leaves it
    (partial / "left_over.txt").write_text("old")
    fresh = tiny_pipeline()
    fresh.save_whole(copy)
    assert not list(copy.parent.rglob("left_over.txt")) and not partial.exists()
    assert not any(load_pipeline(copy).motion.layers[0].proj_out.weight.flatten().tolist())


def refusal(folder: Path | str | None) -> str:
    """Return the error of load_pipeline."""
    with pytest.raises(UserError) as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    assert re.search("model.path=.*none holds no model: give a pipeline folder", refusal(tmp_path / "none"))
    assert re.search("holds no model", refusal(str(tmp_path)))
    assert re.search("model.path=None holds no model", refusal(None))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '"text"', '{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.36"}'],
)
def test_foreign_index(copy: Path, content: str) -> None:
    (copy / "model_index.json").write_text(content)
    words = r"the model in .* cannot be loaded \(.+\)|model_index.json: (not valid JSON|holds a \w+, not an object)"
    assert re.search(words, refusal(copy))


def test_index_without_a_part(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    del index["motion"]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert re.search("motion", refusal(copy))


def test_index_with_an_unknown_class(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["motion"][1] = "NoSuchModel"
    (copy / "model_index.json").write_text(json.dumps(index))
    assert re.search("cannot be loaded", refusal(copy))


@pytest.mark.parametrize("part", ["unet", "motion", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_part(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    assert re.search("cannot be loaded", refusal(copy))


def test_tokenizer_without_a_vocabulary(copy: Path) -> None:
    (copy / "tokenizer/tokenizer.json").unlink()
    assert re.search("tokenizer: its vocabulary has 2 entries", refusal(copy))


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_weights(copy: Path, part: str, damage: str) -> None:
    path = next((copy / part).glob("*.safetensors"))
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"no tensors here", "empty": b""}[damage])
    assert re.search("cannot be loaded", refusal(copy))


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_tensor_is_no_fresh_tensor(copy: Path, part: str) -> None:
    path = next((copy / part).glob("*.safetensors"))
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    assert re.search(f"cannot be loaded .*{part}.*{name}", refusal(copy))


@pytest.mark.parametrize("part", PARTS)
def test_an_extra_tensor_is_not_ignored(copy: Path, part: str) -> None:
    path = next((copy / part).glob("*.safetensors"))
    save_file(load_file(path) | {"stranger": torch.zeros(2)}, path, metadata={"format": "pt"})
    assert re.search(f"cannot be loaded .*{part}.*stranger", refusal(copy))


@pytest.mark.parametrize("part", ["unet", "motion"])
def test_a_tensor_of_another_shape(copy: Path, part: str) -> None:
    path = next((copy / part).glob("*.safetensors"))
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name] = torch.zeros(3, 3)
    save_file(tensors, path, metadata={"format": "pt"})
    assert re.search("cannot be loaded", refusal(copy))


# ---- sampling -------------------------------------------------------------------------------------------------------


def sample(pipeline: FourDiffusionPipeline, images: Tensor, seed: int = 0, use_motion: bool = True) -> Tensor:
    denoiser = pipeline.prepare(images, "two balls", "", use_motion)
    c2w = cameras.orbit(cameras.orthogonal_azimuths(2))
    return pipeline.sample(denoiser, c2w, 3, 2.0, torch.Generator().manual_seed(seed))


def test_a_sample_depends_on_its_seed_and_video_alone(pipeline: FourDiffusionPipeline) -> None:
    torch.manual_seed(1)
    first = sample(pipeline, video())
    assert first.shape == (FRAMES, 2, 4, LATENT, LATENT)
    torch.manual_seed(2)
    other_video, other_seed = sample(pipeline, video(1)), sample(pipeline, video(), seed=1)
    assert torch.equal(sample(pipeline, video()), first)
    assert not torch.allclose(other_video, first) and not torch.allclose(other_seed, first)


@torch.no_grad()
def test_branches_of_the_denoiser_never_meet(pipeline: FourDiffusionPipeline) -> None:
    """Conditional and unconditional run as one batch; each is what it would be with any other beside it."""
    c2w = cameras.orbit(cameras.orthogonal_azimuths(2))
    z = torch.randn(FRAMES, 2, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    conditional, unconditional = pipeline.prepare(video(), "two balls", "")(z, 500, c2w)
    for alone in pipeline.prepare(video(), "two balls", None)(z, 500, c2w):
        torch.testing.assert_close(alone, conditional, atol=1e-5, rtol=1e-4)
    other_negative, other_positive = (pipeline.prepare(video(), *words) for words in (("two balls", "ugly"), ("a", "")))
    torch.testing.assert_close(other_negative(z, 500, c2w)[0], conditional, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other_positive(z, 500, c2w)[1], unconditional, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pipeline.prepare(video(1), "a", "")(z, 500, c2w)[1], unconditional, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(other_negative(z, 500, c2w)[1], unconditional, atol=1e-4)


@torch.no_grad()
def test_without_motion_frames_are_denoised_alone(pipeline: FourDiffusionPipeline) -> None:
    c2w = cameras.orbit(cameras.orthogonal_azimuths(2))
    z = torch.randn(FRAMES, 2, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    images = video()
    together = pipeline.prepare(images, "two balls", "", use_motion=False)
    assert together.motion is None
    for f in range(FRAMES):
        alone = pipeline.prepare(images[f : f + 1], "two balls", "", use_motion=False)
        for a, b in zip(together(z, 500, c2w), alone(z[f : f + 1], 500, c2w), strict=True):
            torch.testing.assert_close(a[f : f + 1], b, atol=1e-5, rtol=1e-4)
    with_motion = dataclasses.replace(together, motion=pipeline.motion)
    assert not torch.allclose(with_motion(z, 500, c2w)[0], together(z, 500, c2w)[0], atol=1e-3)


@torch.no_grad()
def test_velocity_and_epsilon_tell_of_the_same_noise(pipeline: FourDiffusionPipeline) -> None:
    """Both branches' noise is sqrt(alpha_bar) v + sqrt(1 - alpha_bar) z_t of the network's raw output v."""
    c2w = cameras.orbit(cameras.orthogonal_azimuths(2))
    z = torch.randn(FRAMES, 2, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    denoiser = pipeline.prepare(video(), "two balls", "")
    raw = denoiser(z, 500, c2w)
    alpha_bar = pipeline.scheduler.alphas_cumprod[500]
    pipeline.unet.register_to_config(prediction_type="v_prediction")
    try:
        noise = denoiser(z, 500, c2w)
    finally:
        pipeline.unet.register_to_config(prediction_type="epsilon")
    for v, got in zip(raw, noise, strict=True):
        torch.testing.assert_close(got, alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * z)


def test_call_gives_videos_of_the_views(pipeline: FourDiffusionPipeline) -> None:
    views = pipeline(video(), "two balls", num_views=3, num_inference_steps=2)
    assert views.shape == (3, FRAMES, 3, SIZE, SIZE) and views.dtype == torch.float32
    assert 0 <= views.min() and views.max() <= 1
    again = pipeline(video(), "two balls", num_views=3, num_inference_steps=2)
    assert torch.equal(again, views)


@pytest.mark.parametrize("frames, length", [(9, 8), (16, 8), (25, 8), (7, 2), (5, 1)])
def test_groups_of_frames_cover_the_video(frames: int, length: int) -> None:
    for kind in (windows, interleaved):
        groups = kind(frames, length)
        for step in range(4):
            assert all(0 < len(group) <= length and (group.diff() > 0).all() for group in groups(step))
            assert torch.cat(groups(step)).unique().tolist() == list(range(frames))
    runs = windows(frames, length)(0)
    assert all(len(run) == length and (run.diff() == 1).all() for run in runs)
    assert all(b[0] - a[0] <= max(length // 2, 1) for a, b in pairwise(runs))


@torch.no_grad()
def test_windows_of_a_video_that_fits_change_nothing() -> None:
    pipeline = tiny_pipeline(moving=True)
    images = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    settings = {"num_views": 2, "num_inference_steps": 2}
    whole = pipeline(images, **settings)
    assert torch.equal(whole, pipeline(images, **settings, groups=windows(4, 8)))
    assert not torch.allclose(whole, pipeline(images, **settings, groups=windows(4, 2)), atol=1e-4)


@torch.no_grad()
def test_a_denoiser_of_some_frames_knows_their_conditions() -> None:
    pipeline = tiny_pipeline()  # without motion: frames are independent
    images = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    denoiser = pipeline.prepare(images, "a ball", "")
    z = torch.randn(4, 2, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(1))
    c2w = cameras.orbit(cameras.orthogonal_azimuths(2))
    frames = torch.tensor([3, 1])
    for whole, part in zip(denoiser(z, 500, c2w), denoiser.at_frames(frames)(z[frames], 500, c2w), strict=True):
        torch.testing.assert_close(part, whole[frames], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def sampled(scheduler: str, steps: int) -> Tensor:
    """One frame of one view by some steps of a scheduler, from one noise."""
    pipeline = tiny_pipeline(moving=True)
    set_scheduler(pipeline, scheduler)
    denoiser = pipeline.prepare(torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), "", "")
    c2w = cameras.orbit(cameras.orthogonal_azimuths(1))
    return pipeline.sample(denoiser, c2w, steps, 1.5, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def by_many_steps() -> Tensor:
    return sampled("ddim", 125)


@pytest.mark.parametrize("name", ["dpm++", "unipc", "euler"])
def test_every_sampler_nears_the_same_video(name: str, by_many_steps: Tensor) -> None:
    """Their first noise is the same and none adds any, so with many steps all solve one equation."""
    expected = by_many_steps
    errors = [(sampled(name, steps) - expected).norm() / expected.norm() for steps in (5, 50)]
    assert errors[1] < 0.1 and errors[1] < errors[0]


def test_few_trailing_steps_begin_in_noise_and_leading_ones_do_not() -> None:
    pipeline = tiny_pipeline()
    firsts = {}
    for spacing in (None, "leading", "trailing"):
        set_scheduler(pipeline, "ddim", spacing)
        pipeline.scheduler.set_timesteps(2)
        firsts[spacing] = int(pipeline.scheduler.timesteps[0])
    assert firsts == {None: 501, "leading": 501, "trailing": 999}


def test_unknown_samplers_are_named() -> None:
    with pytest.raises(UserError, match="model.scheduler=magic is not one of ddim, dpm"):
        set_scheduler(tiny_pipeline(), "magic")
    with pytest.raises(UserError, match="model.timestep_spacing=even is not one of leading, trailing"):
        set_scheduler(tiny_pipeline(), "ddim", "even")


# ---- precision, layout and place ------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def opened(folder: Path, **switches: object) -> FourDiffusionPipeline:
    pipeline = open_pipeline(dataclasses.replace(tiny_config(str(folder)), **switches), CPU)  # type: ignore[arg-type]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def views(pipeline: FourDiffusionPipeline) -> Tensor:
    return pipeline(video(), "two balls", num_views=2, num_inference_steps=2, guidance_scale=2.0)


def picture_gradient(pipeline: FourDiffusionPipeline) -> Tensor:
    """The VAE's part of distillation."""
    pipeline.vae.requires_grad_(False)
    images = video().requires_grad_()
    z = encode_latents(pipeline.vae, images)
    assert z.dtype == torch.float32
    (z * torch.linspace(-1, 1, z.numel()).view_as(z)).sum().backward()
    assert images.grad is not None
    return images.grad


def test_half_precision_is_near_single(pipeline: FourDiffusionPipeline, saved: Path) -> None:
    half = opened(saved, dtype="bfloat16")
    for part in PARTS:
        assert {weight.dtype for weight in getattr(half, part).parameters()} == {torch.bfloat16}
    for layer, width in zip(half.motion.layers, half.unet.block_channels(), strict=True):
        expected = frame_positions(len(layer.positions), width)
        torch.testing.assert_close(layer.positions.float(), expected, atol=2**-8, rtol=0)  # rounded once
    got, expected = views(half), views(pipeline)
    assert got.dtype == torch.float32 and sample(half, video()).dtype == torch.float32
    assert not torch.equal(got, expected) and (got - expected).abs().max() < 0.03  # seen: 0.010
    gradient, expected = picture_gradient(half), picture_gradient(pipeline)
    assert (gradient - expected).norm() < 0.1 * expected.norm()  # seen: 0.042


def test_weights_may_lie_in_half_and_compute_in_single_precision(pipeline: FourDiffusionPipeline, saved: Path) -> None:
    stored = opened(saved, storage_dtype="bfloat16")

    def share(part: str) -> float:
        """Of single precision's bytes; normalisations and the patches' embedding keep them."""
        theirs, ours = (sum(w.nbytes for w in getattr(x, part).parameters()) for x in (pipeline, stored))
        return ours / theirs

    for _ in range(2):  # as it lies after loading, and after use
        assert all(share(part) == 1.0 if part == "vae" else share(part) < 0.65 for part in PARTS)
        got, expected = views(stored), views(pipeline)
        assert not torch.equal(got, expected) and (got - expected).abs().max() < 0.03
    torch.testing.assert_close(picture_gradient(stored), picture_gradient(pipeline), atol=1e-6, rtol=1e-5)


def test_channels_last_changes_nothing_but_the_layout(pipeline: FourDiffusionPipeline, saved: Path) -> None:
    other = opened(saved, channels_last=True)
    for weight in (other.unet.conv_in.weight, other.vae.decoder.conv_out.weight):
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    torch.testing.assert_close(views(other), views(pipeline), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(picture_gradient(other), picture_gradient(pipeline), atol=1e-5, rtol=1e-4)


def test_compile_reaches_the_unet_and_nothing_else(saved: Path) -> None:
    """Compiling takes minutes: here torch runs what it would compile as it stands."""
    compiled = opened(saved, compile=True)
    assert [part for part in PARTS if getattr(compiled, part)._compiled_call_impl is not None] == ["unet"]
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(views(compiled), views(opened(saved)))


def test_offload_runs_the_parts_that_are_elsewhere(pipeline: FourDiffusionPipeline) -> None:
    """The CPU stands in for the GPU: the hooks run, nothing moves. A second call starts where the first ended."""
    offloaded = tiny_pipeline(moving=True)
    offloaded.set_progress_bar_config(disable=True)
    offloaded.enable_model_cpu_offload(device=CPU)
    hooked = [part for part in PARTS if hasattr(getattr(offloaded, part), "_hf_hook")]
    assert hooked == ["unet", "text_encoder", "image_encoder"]
    first = views(offloaded)
    torch.testing.assert_close(first, views(pipeline), atol=1e-5, rtol=1e-5)
    assert torch.equal(first, views(offloaded))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_offload_on_a_gpu(pipeline: FourDiffusionPipeline, saved: Path) -> None:
    offloaded = open_pipeline(dataclasses.replace(tiny_config(str(saved)), offload="model"), torch.device("cuda"))
    assert {part for part in PARTS if getattr(offloaded, part).device.type == "cuda"} == {"motion", "vae"}
    got = sample(offloaded, video())
    assert {part for part in PARTS if getattr(offloaded, part).device.type == "cuda"} == {"unet", "motion", "vae"}
    torch.testing.assert_close(got.cpu(), sample(pipeline, video()), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    "switch, message",
    [
        ({"dtype": "fp16"}, "model.dtype=fp16 is not one of float32, bfloat16, float16"),
        ({"storage_dtype": "int4"}, "model.storage_dtype=int4 is not one of float32, bfloat16, float16"),
        ({"offload": "disk"}, "model.offload=disk is not one of none, model"),
        ({"offload": "model"}, "model.offload=model needs a GPU"),
    ],
)
def test_switches_that_cannot_be_had(saved: Path, switch: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(saved, **switch)
    assert "\n" not in str(caught.value)

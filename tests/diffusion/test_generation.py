"""One way to sample: input images, the model's own settings, frame windows, and numbers that are not finite."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import FRAMES, LATENT, SIZE, tiny_config, tiny_pipeline
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.cli import config
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.distillation import add_noise, guide
from fourdiffusion.diffusion.generation import check_image_size, generate_views, sample_latents
from fourdiffusion.diffusion.generation_config import read_generation_config, sampling_settings
from fourdiffusion.diffusion.images import to_frames
from fourdiffusion.diffusion.loading import load_pipeline, open_pipeline, with_own_settings
from fourdiffusion.diffusion.long_video import windows
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.schedulers import noise_schedule
from fourdiffusion.diffusion.settings import GenerationConfig, ModelConfig
from fourdiffusion.errors import UserError

pytestmark = pytest.mark.slow

SHIPPED = ROOT / "data/models/small"
CPU = torch.device("cpu")


def images(count: int = FRAMES, size: int = SIZE) -> Tensor:
    """[F, 3, H, W]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count))


@pytest.fixture
def pipeline() -> FourDiffusionPipeline:
    pipeline = tiny_pipeline(moving=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation") / "model"
    tiny_pipeline(moving=True).save_whole(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


# ---- input images ---------------------------------------------------------------------------------------------------


def test_tensors_arrays_and_pictures_are_the_same_frames() -> None:
    pixels = (images(2, 8) * 255).round().to(torch.uint8)
    expected = pixels.float() / 255
    array = pixels.movedim(1, -1).numpy()
    pictures = [Image.fromarray(frame) for frame in array]
    for given in (expected, pixels, array, array.astype(np.float32) / 255, pictures, tuple(pictures)):
        torch.testing.assert_close(to_frames(given, 8), expected)
    assert to_frames(expected.double(), 8).dtype == torch.float32


def test_pictures_are_put_on_white_and_brought_to_the_size() -> None:
    half = Image.new("RGBA", (6, 6), (255, 0, 0, 128))
    frames = to_frames([half], 12)
    assert frames.shape == (1, 3, 12, 12)
    torch.testing.assert_close(frames[0, :, 5, 5], torch.tensor([1.0, 0.5, 0.5]), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "given, message",
    [
        (torch.rand(3, 8, 8), r"shape \[3, 8, 8\]"),
        (torch.rand(2, 4, 8, 8), r"shape \[2, 4, 8, 8\]"),
        (np.zeros((2, 3, 8, 8)), r"shape \[2, 3, 8, 8\], give \[F, H, W, 3\]"),
        (torch.rand(2, 3, 8, 10), "2 pictures of 10 x 8 pixels"),
        (torch.rand(0, 3, 8, 8), "0 pictures"),
        (torch.rand(2, 3, 8, 8) * 255, "values run from .* to 25"),
        (torch.rand(2, 3, 8, 8) - 0.5, "values run from -0.4"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN or infinite"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "dtype torch.int64"),
        ("cat.png", "a str"),
        ([np.zeros((8, 8, 3))], "a list of ndarray"),
        ([], "0 pictures"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 5))], "sizes"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_their_value(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_frames(given, 8)  # type: ignore[arg-type]


# ---- the pipeline in Python -----------------------------------------------------------------------------------------


def test_the_shipped_model_loads_without_a_dtype_and_samples_as_the_command_does() -> None:
    pipeline = FourDiffusionPipeline.from_pretrained(SHIPPED)
    pipeline.set_progress_bar_config(disable=True)
    own = pipeline.generation_config
    assert (own.image_size, own.num_inference_steps, own.guidance_scale) == (128, 4, 1.0)
    assert (own.scheduler, own.timestep_spacing, own.negative_prompt) == ("ddim", "trailing", "")
    assert {part.dtype for part in (pipeline.unet, pipeline.motion, pipeline.vae)} == {torch.float32}
    given = images(2, 128)
    views = pipeline(given, "a bird", num_views=1)
    assert views.shape == (1, 2, 3, 128, 128) and pipeline.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    opened = open_pipeline(ModelConfig(str(SHIPPED)), CPU)
    torch.testing.assert_close(generate_views(opened, given, "a bird", num_views=1), views, atol=1e-4, rtol=1e-4)


def test_call_returns_the_asked_type(pipeline: FourDiffusionPipeline) -> None:
    """Large pictures are brought to the model's size."""
    arguments: dict[str, Any] = {"num_views": 2, "num_inference_steps": 1}
    views = pipeline(images(2, 40), "a ball", **arguments)
    assert views.shape == (2, 2, 3, SIZE, SIZE) and views.dtype == torch.float32
    array = pipeline(images(2, 40), "a ball", **arguments, output_type="np")
    np.testing.assert_array_equal(array, views.movedim(2, -1).numpy())
    pictures = pipeline(images(2, 40), "a ball", **arguments, output_type="pil")
    assert [len(video) for video in pictures] == [2, 2] and pictures[0][0].size == (SIZE, SIZE)
    np.testing.assert_allclose(np.asarray(pictures[1][0]) / 255, array[1, 0], atol=0.5 / 255 + 1e-6)
    z = pipeline(images(2, 40), "a ball", **arguments, output_type="latent")
    torch.testing.assert_close(encoders.decode_latents(pipeline.vae, z).transpose(0, 1), views)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"output_type": "jpg"}, "output_type='jpg' is not one of pt"),
        ({"num_views": 0}, "num_views=0"),
        ({"num_inference_steps": 0}, "num_inference_steps=0: give 1 to 999"),
        ({"num_inference_steps": 1000}, "num_inference_steps=1000: give 1 to 999"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan: give 0 to 100"),
    ],
)
def test_arguments_out_of_range_are_named(
    pipeline: FourDiffusionPipeline, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(images(), "a ball", **arguments)  # type: ignore[arg-type]


# ---- the model's own settings ---------------------------------------------------------------------------------------


def test_four_views_are_sampled_and_no_graph_is_kept(pipeline: FourDiffusionPipeline) -> None:
    for network in (pipeline.unet, pipeline.motion, pipeline.vae):
        network.requires_grad_(True)
    z = generate_views(pipeline, images(), output_type="latent")
    called = pipeline(images(), output_type="latent", num_inference_steps=1)
    assert z.shape[:2] == called.shape[:2] == (FRAMES, 4) and not z.requires_grad and not called.requires_grad
    assert not generate_views(pipeline, images(), num_views=1).requires_grad
    conditions = pipeline.prepare(images(), "a ball", None)
    states = [value for part in conditions.context if part for value in (*part.text, *part.image)]
    assert not conditions.extra.requires_grad and not any(value.requires_grad for value in states)


def test_a_size_is_halved_between_the_levels_of_vae_and_unet() -> None:
    deep = SimpleNamespace(
        vae=SimpleNamespace(config=SimpleNamespace(block_out_channels=(8, 8, 8))),
        unet=SimpleNamespace(config=SimpleNamespace(channels=(8, 8, 8, 8))),
    )
    for size in (32, 96):
        check_image_size(deep, size)  # type: ignore[arg-type]
    for size in (0, 16, 48):
        with pytest.raises(ValueError, match=f"image_size={size}: .* a multiple of 32"):
            check_image_size(deep, size)  # type: ignore[arg-type]


def test_settings_travel_with_the_weights(copy: Path) -> None:
    own = read_generation_config(copy)
    assert own is not None and (own.image_size, own.num_inference_steps, own.guidance_scale) == (SIZE, 3, 2.0)
    loaded = load_pipeline(copy)
    loaded.generation_config = dataclasses.replace(own, num_inference_steps=7, timestep_spacing="trailing")
    loaded.save_whole(copy)
    again = load_pipeline(copy)
    assert again.generation_config == loaded.generation_config
    assert again.scheduler.config.timestep_spacing == "trailing"


def test_the_command_samples_each_model_as_it_is_made_to_be(copy: Path) -> None:
    """Only model.path on the command line: another folder, other settings; what the user gives is used instead."""
    (copy / "generation_config.json").unlink()  # as older folders: the release's
    schema = config.load_settings_class("fourdiffusion.settings:GenerateConfig")

    def settings(*words: str) -> GenerationConfig:
        composed = config.compose("generate", schema, ["video=none", *words])
        return sampling_settings(config.build(composed, schema).model)

    released = settings(f"model.path={copy}")
    assert (released.image_size, released.num_inference_steps, released.guidance_scale) == (256, 100, 5.0)
    assert released == GenerationConfig()
    shipped = settings()
    assert (shipped.image_size, shipped.num_inference_steps, shipped.guidance_scale) == (128, 4, 1.0)
    given = settings("model.guidance_scale=3", "model.image_size=128")
    assert given == dataclasses.replace(shipped, guidance_scale=3.0)
    preset = settings("experiment=look")
    assert (preset.num_inference_steps, preset.guidance_scale) == (8, 1.5)
    assert settings("experiment=score").num_inference_steps == 1
    with pytest.raises(UserError, match="model.image_size=64: the model in model.path=.* makes pictures of 128 pixels"):
        settings("model.image_size=64")


def test_a_folder_without_the_file_says_so_in_one_line(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "generation_config.json").unlink()
    assert load_pipeline(copy).generation_config == GenerationConfig()
    lines = [line for line in capsys.readouterr().err.splitlines() if "generation_config.json" in line]
    assert len(lines) == 1 and "256 pixels, 100 steps, guidance scale 5" in lines[0]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot be read"),
        ("[]", "holds a list"),
        ('{"steps": 3}', "there is no setting 'steps', only"),
        ('{"image_size": "64"}', "image_size='64' is not of the type of 256"),
        ('{"image_size": true}', "image_size=True is not of the type"),
        ('{"num_inference_steps": 0}', "num_inference_steps=0: give 1 to 999"),
        ('{"guidance_scale": NaN}', "guidance_scale=nan is not of the type|guidance_scale=nan: give"),
        ('{"scheduler": "magic"}', "scheduler=magic is not one of ddim"),
    ],
)
def test_a_damaged_file_is_named(copy: Path, content: str, message: str) -> None:
    (copy / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        sampling_settings(ModelConfig(str(copy)))
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"channels": [32, 64]}, r"model.channels=\[32, 64\] contradicts .* which have channels=\[32, 32\]"),
        ({"prediction_type": "velocity"}, "model.prediction_type=v_prediction contradicts .* prediction_type=epsilon"),
        ({"max_frames": 16}, "model.max_frames=16 contradicts .* max_frames=8"),
        ({"vae_attention": True}, "model.vae_attention=True contradicts .* vae_attention=False"),
        ({"image_size": 18}, "model.image_size=18: .* need a multiple of 8, and model.path="),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(saved: Path, given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_pipeline(ModelConfig(str(saved), **given), CPU)  # type: ignore[arg-type]
    assert str(saved) in str(caught.value)


def test_every_size_is_known_of_a_loaded_model(saved: Path) -> None:
    """The settings of a fresh model are found in its weights, so a run folder records them all."""
    sizes = dataclasses.replace(tiny_config(str(saved)))
    pipeline = open_pipeline(sizes, CPU)
    full = with_own_settings(ModelConfig(str(saved)), pipeline)
    missing = {f.name for f in dataclasses.fields(full) if getattr(full, f.name) is None}
    assert missing == {"timestep_spacing", "storage_dtype"}
    for field in dataclasses.fields(sizes):
        if getattr(sizes, field.name) is not None:
            assert getattr(full, field.name) == getattr(sizes, field.name), field.name


def test_former_names_in_a_model_folder_are_read(copy: Path) -> None:
    content = json.loads((copy / "unet/config.json").read_text())
    assert content.pop("prediction_type") == "epsilon"
    (copy / "unet/config.json").write_text(json.dumps(content | {"prediction": "velocity"}))
    assert load_pipeline(copy).unet.config.prediction_type == "v_prediction"


# ---- direction ------------------------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """A denoiser that knows the clean latents: a sampler that goes the right way ends there."""

    clean: Tensor  # [F, V, C, h, w]
    alphas_cumprod: Tensor
    frames: Tensor
    seen: list[int]

    @property
    def extra(self) -> Tensor:
        return self.clean[None, self.frames, 0]

    def at_frames(self, frames: Tensor) -> "Oracle":
        return dataclasses.replace(self, frames=self.frames[frames])

    def __call__(self, z: Tensor, timestep: int, c2w: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(timestep)
        alpha_bar = self.alphas_cumprod[timestep]
        noise = (z - alpha_bar.sqrt() * self.clean[self.frames]) / (1 - alpha_bar).sqrt()
        return noise, noise


@pytest.mark.parametrize("steps", [4, 20])
def test_the_sampler_walks_from_noise_to_the_clean_latents(steps: int) -> None:
    scheduler = noise_schedule()
    clean = torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    oracle = Oracle(clean, scheduler.alphas_cumprod, torch.arange(3), [])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(6))
    z = sample_latents(oracle, scheduler, torch.eye(4).expand(2, 4, 4), steps, 5.0, latents=noise)  # type: ignore[arg-type]
    assert oracle.seen == sorted(oracle.seen, reverse=True) and len(oracle.seen) == steps
    # DDIM keeps the noise that it began with: it ends at the first level of the schedule
    first = scheduler.alphas_cumprod[oracle.seen[0]]
    eps = (noise - first.sqrt() * clean) / (1 - first).sqrt()
    torch.testing.assert_close(z, add_noise(clean, eps, scheduler.alphas_cumprod[0]), atol=1e-4, rtol=1e-4)


def test_overlapping_windows_of_independent_frames_equal_the_whole() -> None:
    """Fresh motion layers join no frames, so it does not matter which frames the model sees together."""
    pipeline = tiny_pipeline()
    given = images(7)
    settings = dataclasses.replace(pipeline.generation_config, window=8)
    results = []
    for groups in (None, windows(7, 4), lambda step: [torch.arange(7), torch.tensor([2, 5]), torch.tensor([5])]):
        results.append(
            generate_views(
                pipeline, given, "a ball", num_views=2, settings=settings, groups=groups, output_type="latent"
            )
        )
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(results[2], results[0], atol=1e-4, rtol=1e-4)
    cut = generate_views(
        pipeline, given, "a ball", num_views=2, settings=dataclasses.replace(settings, window=3), output_type="latent"
    )
    torch.testing.assert_close(cut, results[0], atol=1e-4, rtol=1e-4)


def test_windows_of_the_settings_are_used(pipeline: FourDiffusionPipeline) -> None:
    """With motion layers that join frames, shorter windows give other videos."""
    whole, cut = (
        generate_views(
            pipeline, images(), "", num_views=1, settings=dataclasses.replace(pipeline.generation_config, window=window)
        )
        for window in (FRAMES, FRAMES // 2)
    )
    assert not torch.allclose(whole, cut, atol=1e-4)


def test_guidance_leads_away_from_the_unconditional_prediction() -> None:
    cond, uncond = torch.tensor([2.0]), torch.tensor([1.0])
    assert [float(guide(cond, uncond, scale)) for scale in (0.0, 1.0, 5.0)] == [1.0, 2.0, 6.0]


@torch.no_grad()
def test_the_denoiser_gives_each_branch_its_conditions(pipeline: FourDiffusionPipeline) -> None:
    """Against the UNet called by hand, one branch after the other: the extra view last, its camera zero, dropped after;
    zero image tokens and a zero extra view in the unconditional branch."""
    given, c2w = images(), cameras.orbit(cameras.orthogonal_azimuths(2), 10.0, 1.7)
    z = torch.randn(FRAMES, 2, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    branches = pipeline.prepare(given, "a ball", "ugly")(z, 500, c2w)
    unet, camera = pipeline.unet, torch.zeros(1, 3, 16)
    for view in range(2):
        unit = c2w[view].clone()
        unit[:3, 3] /= unit[:3, 3].norm()
        camera[0, view] = unit.flatten()
    tokens = encoders.encode_image(pipeline.feature_extractor, pipeline.image_encoder, given)
    extra = encoders.encode_latents(pipeline.vae, given)
    for noise, prompt, keep in zip(branches, ("a ball", "ugly"), (1, 0), strict=True):
        text = encoders.encode_text(pipeline.tokenizer, pipeline.text_encoder, [prompt])
        context = unet.encode_context(text, tokens[None] * keep)
        views = torch.cat([z, extra[:, None] * keep], dim=1)[None]
        expected = unet(views, torch.tensor([500]), context, camera, pipeline.motion)[0, :, :2]
        torch.testing.assert_close(noise, expected, atol=1e-5, rtol=1e-4)


# ---- not finite -----------------------------------------------------------------------------------------------------


def spoil_unet(pipeline: FourDiffusionPipeline) -> None:
    pipeline.unet.conv_out.bias.data[0] = float("nan")


def spoil_text(pipeline: FourDiffusionPipeline) -> None:
    next(pipeline.text_encoder.parameters()).data.fill_(float("inf"))


def spoil_image(pipeline: FourDiffusionPipeline) -> None:
    next(pipeline.image_encoder.parameters()).data.fill_(float("nan"))


def spoil_encoder(pipeline: FourDiffusionPipeline) -> None:
    pipeline.vae.quant_conv.bias.data.fill_(float("nan"))


def spoil_decoder(pipeline: FourDiffusionPipeline) -> None:
    pipeline.vae.decoder.conv_out.bias.data.fill_(float("inf"))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_unet, r"sampling step 1 of 3 \(timestep \d+\): the UNet's conditional prediction has"),
        (spoil_text, "conditions: the text encoder's output"),
        (spoil_image, "conditions: the image encoder's output"),
        (spoil_encoder, "conditions: the VAE encoder's output"),
        (spoil_decoder, "decoding: the VAE's images"),
    ],
)
def test_the_first_network_that_is_not_finite_is_named(
    pipeline: FourDiffusionPipeline, spoil: Callable[[FourDiffusionPipeline], None], message: str
) -> None:
    spoil(pipeline)
    with pytest.raises(UserError, match=message) as caught:
        pipeline(images(2), "a ball", num_views=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "motion", "vae", "text_encoder", "image_encoder"])
def test_weights_that_are_not_finite_are_not_loaded(copy: Path, part: str) -> None:
    path = next((copy / part).glob("*.safetensors"))
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"cannot be loaded .*{part}: {name} has numbers that are NaN"):
        load_pipeline(copy)

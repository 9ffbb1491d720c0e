"""The networks and formulas against the original ones' known answers (float32, CPU).

Each set of weights goes in through ``convert``, as a user's would. The sets in tests/data/reference follow from a rule
on the key's name and are always checked; the larger set beside the repository has stored random weights. They are parts
of no one model, so each is put into a release whose other parts are fresh.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from released import ANSWERS, rule_weights, write_release
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.convert import convert
from fourdiffusion.diffusion import distillation
from fourdiffusion.diffusion.denoiser import Denoiser
from fourdiffusion.diffusion.generation import sample_latents
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.schedulers import noise_schedule
from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.settings import ConvertConfig

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # relative


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def section(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


# ---- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["unet", "unet_motion", "unet64", "unet64_motion", "vae", "clip"])
def test_the_rule_gives_the_weights_of_the_answers(group: str) -> None:
    """If this fails, numpy's random numbers changed, not a network."""
    check = json.loads((ANSWERS / "configs.json").read_text())["rule_check"]
    weights = {key: value for key, value in rule_weights(group).items() if not key.endswith("pos_encoder.pe")}
    digest = 0
    for key in sorted(weights):
        digest = zlib.crc32(weights[key].numpy().tobytes(), digest)
    for key in weights.keys() & check["first_values"].keys():
        if group in ("unet", "unet_motion"):
            expected = torch.tensor(check["first_values"][key])
            torch.testing.assert_close(weights[key].flatten()[:4], expected, atol=1e-6, rtol=0)
    assert digest == check["crc32"][group]


# ---- UNet, motion layers and sampler --------------------------------------------------------------------------------


@dataclass
class Case:
    """A UNet with motion layers, and its known answers."""

    pipeline: FourDiffusionPipeline
    elevation_deg: float
    steps: int
    sampling_tolerance: float
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    ddim: dict[str, Tensor]


def converted(folder: Path, channels: int, imagedream: dict[str, Tensor], motion: Path) -> FourDiffusionPipeline:
    sizes = ModelConfig(
        channels=[channels, 2 * channels, 2 * channels, 2 * channels],
        blocks_per_level=1,
        head_dim=16,
        context_dim=32,
        num_image_tokens=4,
        motion_heads=4,
        vae_channels=[32],
        vae_blocks_per_level=1,
        vocab_size=600,
        text_layers=1,
        text_heads=2,
        image_encoder_size=28,
        image_layers=1,
    )
    write_release(folder / "ipmv.pt", sizes, imagedream)
    convert(ConvertConfig(str(folder / "ipmv.pt"), str(motion), str(folder / "model"), model=sizes))
    return FourDiffusionPipeline.from_pretrained(folder / "model")


@pytest.fixture(scope="module", params=["unet", "unet64", "larger"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "larger":
        reference = request.getfixturevalue("reference") / "unet"
        pipeline = converted(
            folder, 32, load_file(reference / "imagedream.safetensors"), reference / "4dm_motion.safetensors"
        )
        answers = [load_file(reference / f"{name}.safetensors") for name in ("inputs", "outputs", "ddim")]
        return Case(pipeline, 0.0, 10, 1e-4, *answers)
    save_file(rule_weights(f"{request.param}_motion"), folder / "motion.safetensors")
    channels = {"unet": 32, "unet64": 64}[request.param]
    pipeline = converted(folder, channels, rule_weights(request.param), folder / "motion.safetensors")
    known = load_file(ANSWERS / f"{request.param}.safetensors")
    sizes = json.loads((ANSWERS / "configs.json").read_text())[request.param]
    answers = [section(known, name) for name in ("inputs", "outputs", "ddim")]
    return Case(pipeline, sizes["elevation"], sizes["steps"], TOLERANCE, *answers)


@pytest.mark.parametrize(
    "answer, with_motion, with_image",
    [
        ("noise_pred", True, True),
        ("noise_pred_without_motion", False, True),
        ("noise_pred_without_motion_zero_image", False, False),
    ],
)
@torch.no_grad()
def test_unet(case: Case, answer: str, with_motion: bool, with_image: bool) -> None:
    unet, inputs = case.pipeline.unet, case.inputs
    z = inputs["latents"].clone()
    z[:, -1] = inputs["image_latents"] * with_image
    context = unet.encode_context(inputs["text_tokens"], inputs["image_tokens"][None] * with_image)
    motion = case.pipeline.motion if with_motion else None
    noise = unet(z[None], inputs["timestep"], context, inputs["camera"][None], motion)[0]
    assert distance(noise, case.outputs[answer].view_as(noise)) < TOLERANCE


@torch.no_grad()
def test_ddim_with_guidance(case: Case) -> None:
    """Through ``sample_latents``: noise schedule, order of timesteps, branches, guidance, extra view, cameras."""
    unet, inputs, answers = case.pipeline.unet, case.inputs, case.ddim
    text = torch.cat([inputs["text_tokens"], answers["negative_text_tokens"]])
    image = torch.stack([inputs["image_tokens"], torch.zeros_like(inputs["image_tokens"])])
    extra = torch.stack([inputs["image_latents"], torch.zeros_like(inputs["image_latents"])])
    scheduler = case.pipeline.scheduler
    denoiser = Denoiser(unet, case.pipeline.motion, unet.encode_context(text, image), extra, scheduler.alphas_cumprod)
    c2w = cameras.orbit(cameras.orthogonal_azimuths(4), case.elevation_deg)
    torch.testing.assert_close(cameras.conditioning(c2w), inputs["camera"][:4], atol=1e-6, rtol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, answers["alphas_cumprod"])
    z = sample_latents(denoiser, scheduler, c2w, case.steps, 5.0, latents=answers["initial_noise"][:, :4])
    assert sorted(scheduler.timesteps.tolist()) == sorted(answers["timesteps"].tolist())
    assert distance(z, answers["latents"][:, :4]) < case.sampling_tolerance


# ---- encoders -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["rule", "larger"])
def encoders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FourDiffusionPipeline, dict[str, Tensor], dict[str, Tensor]]:
    """A pipeline with the VAE and the CLIP encoders of the known answers, and the answers of each."""
    folder = tmp_path_factory.mktemp("encoders")
    sizes = ModelConfig(
        channels=[32, 32],
        attention_levels=[True, True],
        blocks_per_level=1,
        head_dim=16,
        context_dim=48,
        num_image_tokens=2,
        resampler_layers=1,
        resampler_heads=2,
        resampler_head_dim=16,
        vae_channels=[32, 64, 64],
        vae_blocks_per_level=1,
        vocab_size=600,
        text_layers=2,
        text_heads=3,
        image_encoder_size=56,
        image_dim=64,
        image_layers=3,
        image_heads=2,
    )
    if request.param == "rule":
        weights = rule_weights("vae") | rule_weights("clip")
        answers = [load_file(ANSWERS / f"{name}.safetensors") for name in ("vae", "clip")]
    else:
        reference = request.getfixturevalue("reference")
        weights = load_file(reference / "vae/imagedream_vae.safetensors")
        weights |= load_file(reference / "clip/imagedream_clip.safetensors")
        answers = [load_file(reference / name / "inputs_outputs.safetensors") for name in ("vae", "clip")]
    write_release(folder / "ipmv.pt", sizes, weights)
    convert(ConvertConfig(str(folder / "ipmv.pt"), output=str(folder / "model"), model=sizes))
    return FourDiffusionPipeline.from_pretrained(folder / "model"), answers[0], answers[1]


@torch.no_grad()
def test_vae(encoders: tuple[FourDiffusionPipeline, dict[str, Tensor], dict[str, Tensor]]) -> None:
    pipeline, known, _ = encoders
    moments = pipeline.vae.encode(known["image"]).latent_dist
    assert distance(moments.mean, known["mean"]) < TOLERANCE
    assert distance(moments.logvar, known["logvar"]) < TOLERANCE
    assert distance(pipeline.vae.decode(known["mean"]).sample, known["decoded"]) < TOLERANCE


@torch.no_grad()
def test_clip_encoders(encoders: tuple[FourDiffusionPipeline, dict[str, Tensor], dict[str, Tensor]]) -> None:
    pipeline, _, known = encoders
    text = pipeline.text_encoder(known["tokens"]).last_hidden_state
    assert distance(text, known["text_hidden"]) < TOLERANCE
    image = pipeline.image_encoder(known["pixels"], output_hidden_states=True).hidden_states[-2]
    assert distance(image, known["image_hidden"]) < TOLERANCE


# ---- SDS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rule", "a", "b", "c"])
def test_distillation(request: pytest.FixtureRequest, name: str) -> None:
    if name == "rule":
        known = load_file(ANSWERS / "sds.safetensors")
    else:
        known = section(load_file(request.getfixturevalue("reference") / "sds.safetensors"), name)
    rescale, guidance, timestep = known["params"].tolist()
    alpha_bar = noise_schedule().alphas_cumprod[int(timestep)]
    z_t = distillation.add_noise(known["latents"], known["noise"], alpha_bar)
    assert distance(z_t, known["latents_noisy"]) < 1e-6
    predictions = known["noise_pred_cond"], known["noise_pred_uncond"]
    target = distillation.sds_target(z_t, *predictions, alpha_bar, guidance, rescale)
    assert distance(target, known["latents_target"]) < TOLERANCE
    z = known["latents"].clone().requires_grad_()
    loss = distillation.sds_loss(z, target)
    loss.backward()
    assert distance(loss.detach()[None], known["loss"]) < TOLERANCE
    assert z.grad is not None and distance(z.grad, known["grad"]) < 1e-4

"""The networks and formulas against the original ones' known answers (random weights, float32, CPU).

The files go in through ``convert``, as a user's would. They are parts of no one model, so each is put into a release
whose other parts are fresh.
"""

import pytest
import torch
from diffusers import DDIMScheduler
from released import write_release
from safetensors.torch import load_file
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.convert import convert
from fourdiffusion.diffusion import distillation
from fourdiffusion.diffusion.loading import noise_schedule
from fourdiffusion.diffusion.pipeline import Denoiser, FourDiffusionPipeline
from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.settings import ConvertConfig


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def model(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    sizes = ModelConfig(
        channels=[32, 64, 64, 64],
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
    write_release(folder / "ipmv.pt", sizes, load_file(reference / "unet/imagedream.safetensors"))
    motion = str(reference / "unet/4dm_motion.safetensors")
    convert(ConvertConfig(str(folder / "ipmv.pt"), motion, str(folder / "model"), model=sizes))
    pipeline = FourDiffusionPipeline.from_pretrained(folder / "model")
    return pipeline.unet, pipeline.motion


@pytest.fixture(scope="module")
def encoders(reference, tmp_path_factory):
    """The VAE and the CLIP towers of the known answers."""
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
    known = load_file(reference / "vae/imagedream_vae.safetensors")
    known |= load_file(reference / "clip/imagedream_clip.safetensors")
    write_release(folder / "ipmv.pt", sizes, known)
    convert(ConvertConfig(str(folder / "ipmv.pt"), output=str(folder / "model"), model=sizes))
    return FourDiffusionPipeline.from_pretrained(folder / "model")


@torch.no_grad()
def test_vae(reference, encoders):
    known = load_file(reference / "vae/inputs_outputs.safetensors")
    moments = encoders.vae.encode(known["image"]).latent_dist
    assert distance(moments.mean, known["mean"]) < 1e-5
    assert distance(moments.logvar, known["logvar"]) < 1e-5
    assert distance(encoders.vae.decode(known["mean"]).sample, known["decoded"]) < 1e-5


@torch.no_grad()
def test_clip_towers(reference, encoders):
    known = load_file(reference / "clip/inputs_outputs.safetensors")
    text = encoders.text_encoder(known["tokens"]).last_hidden_state
    assert distance(text, known["text_hidden"]) < 1e-5
    image = encoders.image_encoder(known["pixels"], output_hidden_states=True).hidden_states[-2]
    assert distance(image, known["image_hidden"]) < 1e-5


@pytest.fixture(scope="module")
def inputs(reference):
    return load_file(reference / "unet/inputs.safetensors")


@pytest.mark.parametrize(
    "answer, with_motion, with_image",
    [
        ("noise_pred", True, True),
        ("noise_pred_without_motion", False, True),
        ("noise_pred_without_motion_zero_image", False, False),
    ],
)
@torch.no_grad()
def test_unet(reference, model, inputs, answer, with_motion, with_image):
    unet, motion = model
    z = inputs["latents"].clone()
    z[:, -1] = inputs["image_latents"] * with_image
    context = unet.encode_context(inputs["text_tokens"], inputs["image_tokens"][None] * with_image)
    noise = unet(z[None], inputs["timestep"], context, inputs["camera"][None], motion if with_motion else None)[0]
    expected = load_file(reference / "unet/outputs.safetensors")[answer]
    assert distance(noise, expected.view_as(noise)) < 1e-5


@torch.no_grad()
def test_ddim_with_guidance(reference, model, inputs):
    unet, motion = model
    answers = load_file(reference / "unet/ddim.safetensors")
    text = torch.cat([inputs["text_tokens"], answers["negative_text_tokens"]])
    image = torch.stack([inputs["image_tokens"], torch.zeros_like(inputs["image_tokens"])])
    extra = torch.stack([inputs["image_latents"], torch.zeros_like(inputs["image_latents"])])
    denoise = Denoiser(unet, motion, unet.encode_context(text, image), extra, answers["alphas_cumprod"])
    c2w = cameras.orbit(cameras.orthogonal_azimuths(4))
    torch.testing.assert_close(cameras.conditioning(c2w), inputs["camera"][:4], atol=1e-6, rtol=0)
    scheduler: DDIMScheduler = noise_schedule()
    torch.testing.assert_close(scheduler.alphas_cumprod, answers["alphas_cumprod"])
    scheduler.set_timesteps(10)
    assert sorted(scheduler.timesteps.tolist()) == sorted(answers["timesteps"].tolist())
    z = answers["initial_noise"][:, :4]
    for timestep in scheduler.timesteps:
        noise = distillation.guide(*denoise(z, int(timestep), c2w), 5.0)
        z = scheduler.step(noise, timestep, z).prev_sample
    assert distance(z, answers["latents"][:, :4]) < 1e-4


@pytest.mark.parametrize("case", "abc")
def test_distillation(reference, case):
    answers = load_file(reference / "sds.safetensors")
    known = {name[2:]: value for name, value in answers.items() if name.startswith(case + ".")}
    rescale, guidance, timestep = known["params"].tolist()
    alpha_bar = noise_schedule().alphas_cumprod[int(timestep)]
    z_t = distillation.add_noise(known["latents"], known["noise"], alpha_bar)
    assert distance(z_t, known["latents_noisy"]) < 1e-6
    predictions = known["noise_pred_cond"], known["noise_pred_uncond"]
    target = distillation.sds_target(z_t, *predictions, alpha_bar, guidance, rescale)
    assert distance(target, known["latents_target"]) < 1e-5
    z = known["latents"].clone().requires_grad_()
    loss = distillation.sds_loss(z, target)
    loss.backward()
    assert distance(loss[None], known["loss"]) < 1e-5
    assert distance(z.grad, known["grad"]) < 1e-4

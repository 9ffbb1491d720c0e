"""The networks and formulas against the original ones' known answers (random weights, float32, CPU)."""

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.diffusion import distillation, release
from fourdiffusion.diffusion.motion import MotionModules, frame_positions
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet
from fourdiffusion.diffusion.pipeline import Denoiser, noise_schedule


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def model(reference):
    unet = MultiviewUNet(
        channels=[32, 64, 64, 64], blocks_per_level=1, head_dim=16, context_dim=32, num_image_tokens=4
    ).eval()
    motion = MotionModules(unet.block_channels(), num_heads=4)
    frozen = load_file(reference / "unet/imagedream.safetensors")
    keys = release.unet_keys(unet)
    assert {"model.diffusion_model." + key for key in keys.values()} == set(frozen)
    unet.load_state_dict({name: frozen["model.diffusion_model." + key] for name, key in keys.items()})
    trained = load_file(reference / "unet/4dm_motion.safetensors")
    keys = release.motion_keys(unet, motion)
    positions = {key: value for key, value in trained.items() if key.endswith("pos_encoder.pe")}
    assert {"module." + key for key in keys.values()} == set(trained) - set(positions)
    for value in positions.values():
        torch.testing.assert_close(frame_positions(*value.shape[1:]), value[0])
    motion.load_state_dict({name: trained["module." + key] for name, key in keys.items()})
    return unet, motion


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

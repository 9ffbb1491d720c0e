"""The trained networks of each stage, condition dropout, and the weights of the noise levels."""

from typing import Literal

import pytest
import torch
from tiny_model import CAPTIONS, LATENT, SIZE, tiny_pipeline
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.diffusion.encoders import encode_latents
from fourdiffusion.diffusion.objectives import AutoencoderObjective, DiffusionObjective
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline

BATCH, FRAMES, VIEWS = 2, 2, 2


@pytest.fixture
def pipeline() -> FourDiffusionPipeline:
    return tiny_pipeline(moving=True)


def arguments(**changes: object) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    values: dict[str, object] = {
        "target": torch.rand(BATCH, FRAMES, VIEWS, 3, SIZE, SIZE, generator=generator),
        "given": torch.rand(BATCH, FRAMES, 3, SIZE, SIZE, generator=generator),
        "c2w": cameras.orbit(torch.tensor([[0.0, 90.0], [33.0, 123.0]])),
        "captions": CAPTIONS,
        "timestep": torch.tensor([300, 700]),
        "noise": torch.randn(BATCH, FRAMES, VIEWS, 4, LATENT, LATENT, generator=generator),
        "dropout": torch.ones(BATCH, 2),
    }
    return values | changes


@torch.no_grad()
def loss(objective: DiffusionObjective, **changes: object) -> float:
    terms = objective(**arguments(**changes))
    return float(torch.stack(list(terms.values())).sum())


@torch.no_grad()
def predict(objective: DiffusionObjective, **changes: object) -> Tensor:
    """Return the UNet's prediction for the target views."""
    outputs: list[Tensor] = []
    hook = objective.pipeline[0].unet.register_forward_hook(lambda *call: outputs.append(call[2][:, :, :-1]))
    objective(**arguments(**changes))
    hook.remove()
    return outputs[0]


def matters(objective: DiffusionObjective, chance: Tensor, **changes: object) -> bool:
    return not torch.equal(predict(objective, dropout=chance, **changes), predict(objective, dropout=chance))


OTHER_VIDEO = torch.rand(BATCH, FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9))
OTHER_CAMERAS = cameras.orbit(torch.tensor([[10.0, 100.0], [-40.0, 50.0]]))
OTHER_WORDS = ["a red snail", "a blue cow"]


@pytest.mark.parametrize("drop_camera", [True, False])
def test_dropping(pipeline: FourDiffusionPipeline, drop_camera: bool) -> None:
    objective = DiffusionObjective(pipeline, "motion", 0.5, 0.5, drop_camera, None)
    kept, dropped = torch.tensor([0.5, 0.9]), torch.tensor([0.499, 0.0])  # at the probability itself it stays
    image_dropped, text_dropped = torch.stack([dropped, kept], 1), torch.stack([kept, dropped], 1)
    kept = torch.stack([kept, kept], 1)
    assert matters(objective, kept, given=OTHER_VIDEO)
    assert matters(objective, kept, c2w=OTHER_CAMERAS)
    assert matters(objective, kept, captions=OTHER_WORDS)
    assert not matters(objective, image_dropped, given=OTHER_VIDEO)
    assert matters(objective, image_dropped, c2w=OTHER_CAMERAS) != drop_camera
    assert matters(objective, image_dropped, captions=OTHER_WORDS)
    assert not matters(objective, text_dropped, captions=OTHER_WORDS)
    assert matters(objective, text_dropped, given=OTHER_VIDEO)
    assert torch.equal(predict(objective, dropout=text_dropped), predict(objective, captions=["", ""]))


def test_text_is_dropped_with_a_probability_of_its_own(pipeline: FourDiffusionPipeline) -> None:
    objective = DiffusionObjective(pipeline, "motion", 0.9, 0.1, True, None)
    draws = torch.tensor([[0.5, 0.5], [0.5, 0.5]])  # below 0.9: image prompt dropped; above 0.1: text kept
    assert matters(objective, draws, captions=OTHER_WORDS) and not matters(objective, draws, given=OTHER_VIDEO)


def test_dropping_is_each_samples_own(pipeline: FourDiffusionPipeline) -> None:
    objective = DiffusionObjective(pipeline, "motion", 0.5, 0.5, True, None)
    chance = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    first, second = OTHER_VIDEO.clone(), OTHER_VIDEO.clone()
    first[1], second[0] = arguments()["given"][1], arguments()["given"][0]  # type: ignore[index]
    assert not matters(objective, chance, given=first)
    assert matters(objective, chance, given=second)


def test_dropped_is_what_the_sampler_calls_unconditional(pipeline: FourDiffusionPipeline) -> None:
    """With everything dropped but the camera, the noise error is that of the denoiser's second branch."""
    objective = DiffusionObjective(pipeline, "motion", 0.5, 0.5, False, None)
    whole = arguments()
    one = {key: value[:1] for key, value in whole.items()}  # type: ignore[index]
    with torch.no_grad():
        z = encode_latents(pipeline.vae, one["target"][0])
        alpha_bar = pipeline.scheduler.alphas_cumprod[300]
        z_t = alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * one["noise"][0]
        denoise = pipeline.prepare(one["given"][0], CAPTIONS[0], "")
        branches = denoise(z_t, 300, one["c2w"][0])
    for branch, chance in zip(branches, (1.0, 0.0), strict=True):
        expected = float((branch - one["noise"][0]).square().mean())
        assert loss(objective, **one | {"dropout": torch.full((1, 2), chance)}) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("prediction, extra", [("epsilon", 0.0), ("v_prediction", 1.0)])
def test_min_snr_caps_the_weight_of_easy_steps(pipeline: FourDiffusionPipeline, prediction: str, extra: float) -> None:
    """Weight min(1, gamma / SNR): 1 on noisy steps; of velocity, SNR + 1 takes the place of SNR."""
    pipeline.unet.register_to_config(prediction_type=prediction)
    plain = DiffusionObjective(pipeline, "motion", 0.0, 0.0, True, None)
    weighed = DiffusionObjective(pipeline, "motion", 0.0, 0.0, True, 5.0)
    for timestep in (10, 100, 300, 900):
        alpha_bar = float(pipeline.scheduler.alphas_cumprod[timestep])
        snr = alpha_bar / (1 - alpha_bar)
        step = torch.full((BATCH,), timestep)
        ratio = loss(weighed, timestep=step) / loss(plain, timestep=step)
        assert ratio == pytest.approx(min(1, 5 / (snr + extra)), rel=1e-4)
    mixed = [loss(weighed, timestep=torch.tensor([10, 900])), loss(plain, timestep=torch.tensor([10, 900]))]
    assert mixed[0] < mixed[1]  # each sample has its own weight


def test_a_perfect_prediction_costs_nothing(pipeline: FourDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = arguments()["noise"]
    extra = torch.zeros_like(noise[:, :, :1])  # type: ignore[index]
    monkeypatch.setattr(pipeline.unet, "forward", lambda *_: torch.cat([noise, extra], dim=2))  # type: ignore[list-item]
    assert loss(DiffusionObjective(pipeline, "motion", 0.1, 0.1, True, None)) == 0


@pytest.mark.parametrize("stage, names", [("base", {"unet", "text_encoder", "image_encoder"}), ("motion", {"motion"})])
def test_what_a_stage_trains(
    pipeline: FourDiffusionPipeline, stage: Literal["base", "motion"], names: set[str]
) -> None:
    objective = DiffusionObjective(pipeline, stage, 0.0, 0.0, True, None)
    assert set(objective.trainable) == names
    torch.stack(list(objective(**arguments()).values())).sum().backward()
    for part in ("unet", "motion", "vae", "text_encoder", "image_encoder"):
        for name, parameter in getattr(pipeline, part).named_parameters():
            learns = parameter.grad is not None and bool(parameter.grad.any())
            assert parameter.requires_grad == learns, (part, name)  # DDP waits for every gradient that is asked for
            assert part in names or not learns, (part, name)
    trained = {p.data_ptr() for p in objective.parameters()}
    assert trained == {p.data_ptr() for name in names for p in getattr(pipeline, name).parameters()}


def test_autoencoder(pipeline: FourDiffusionPipeline) -> None:
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    objective = AutoencoderObjective(pipeline, kl_weight=1e-2)
    assert set(objective.trainable) == {"vae"}
    noise = torch.zeros(3, 4, LATENT, LATENT)
    terms = objective(images, noise)
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in pipeline.vae.parameters())
    decoded = pipeline.vae.decode(pipeline.vae.encode(images * 2 - 1).latent_dist.mean).sample / 2 + 0.5
    torch.testing.assert_close(terms["l2"], 10 * (decoded - images).square().mean())
    without = AutoencoderObjective(pipeline, kl_weight=0.0)(images, noise)
    assert without["kl"].item() == 0 < terms["kl"].item()

"""One step of the 4D stage against a truth that is known: its direction, and every schedule and draw at its use."""

import math

import pytest
import torch
from small_problem import FRAMES, TIMES, VIEWS, Oracle, psnr_of, small_config, small_problem, truth
from tiny_model import SIZE
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.diffusion import distillation, encoders
from fourdiffusion.diffusion.settings import GenerationConfig
from fourdiffusion.errors import UserError
from fourdiffusion.fit import loop
from fourdiffusion.fit.loop import update
from fourdiffusion.fit.step import Problem, distill, draw_input_pixels, draw_pixels, draw_side, plan_step
from fourdiffusion.randomness import stream
from fourdiffusion.scene.optimization import make_optimizer
from fourdiffusion.scene.render_pass import RenderPass, view_rays
from fourdiffusion.scene.renderer import OccupancyGrid

STEPS, RAMP = 40, 20


def run(problem: Problem, numbers: range | list[int]) -> list[dict[str, float]]:
    """Do the steps of some numbers and return what each logs."""
    optimizer = make_optimizer(problem.scene, problem.config.grid_lr, problem.config.mlp_lr)
    found = []
    for number in numbers:
        terms = update(problem, optimizer, plan_step(problem.config, number), stream(0, 0, number))
        found.append({name: float(value) for name, value in terms.items()})
    return found


class Recorded(RenderPass):
    """A render pass that is remembered."""

    passes: list["Recorded"] = []

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        Recorded.passes.append(self)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    monkeypatch.setattr(Recorded, "passes", [])
    monkeypatch.setattr(loop, "RenderPass", Recorded)
    return Recorded.passes


# ---- directions -----------------------------------------------------------------------------------------------------


def test_photometric_steps_approach_the_views() -> None:
    problem = small_problem(small_config(lambda_rgb=1e3))
    run(problem, range(STEPS))
    assert psnr_of(problem) > 11.6  # a fresh scene has 10.0; ascending stays below


def test_pixels_have_the_colors_of_their_view_frame_and_place() -> None:
    problem = small_problem(small_config())
    rays, colors, empty = draw_pixels(problem.target, 64, torch.Generator().manual_seed(0))
    origins, directions = cameras.rays(problem.target.c2w, cameras.FOVY_DEG, SIZE, SIZE)
    for i in range(64):
        view = int((origins[:, 0, 0] - rays.origins[i]).norm(dim=-1).argmin())
        frame = int((TIMES - rays.times[i]).abs().argmin())
        row, column = divmod(int((directions[view] - rays.directions[i]).norm(dim=-1).argmin()), SIZE)
        assert torch.equal(colors[i], problem.target.views[view, frame, :, row, column])
        assert empty[i] == problem.target.empty[view, frame, row, column]
    assert (
        0 < empty.float().mean() < 1 and len(rays.times.unique()) == FRAMES and len(rays.origins.unique(dim=0)) == VIEWS
    )


def test_input_pixels_have_the_color_and_the_matte_of_their_frame_and_place() -> None:
    target = small_problem(small_config()).target
    rays, rgba = draw_input_pixels(target, 200, torch.Generator().manual_seed(0))
    side = target.rgba.shape[-1]
    origins, directions = cameras.rays(target.input.c2w, target.input.fovy_deg, side, side)
    for i in range(0, 200, 5):
        frame = int((TIMES - rays.times[i]).abs().argmin())
        row, column = divmod(int((directions[0] - rays.directions[i]).norm(dim=-1).argmin()), side)
        assert torch.equal(rgba[i], target.rgba[frame, :, row, column])
        assert torch.equal(rays.origins[i], origins[0, 0, 0])
    inside = rgba[:, 3] > 0.5
    assert inside[:100].float().mean() > 1.2 * inside[100:].float().mean()  # half of them in and around the object


def test_a_fit_of_the_input_approaches_it_in_color_and_in_opacity() -> None:
    problem = small_problem(small_config(lambda_input=1e3, lambda_mask=1e3, input_rays=512))
    found = run(problem, range(STEPS))
    assert all(found[-1][name] < 0.8 * found[0][name] for name in ("input", "mask"))


def test_empty_pixels_lose_their_fog() -> None:
    problem = small_problem(small_config(lambda_empty=10.0))
    found = run(problem, range(8))
    assert found[-1]["empty"] < found[0]["empty"]


@pytest.fixture(scope="module")
def distilled() -> tuple[Problem, Oracle]:
    """A scene after STEPS steps of SDS with a denoiser that knows the truth."""
    config = small_config(
        source="fourdm", t_start=0.6, t_min_end=0.02, t_max_end=0.5, ramp_steps=RAMP, elevation_max_deg=20.0
    )
    problem = small_problem(config)
    run(problem, range(STEPS))
    oracle = problem.denoiser
    assert isinstance(oracle, Oracle)
    return problem, oracle


def test_distillation_with_an_oracle_approaches_the_truth(distilled: tuple[Problem, Oracle]) -> None:
    problem, _ = distilled
    assert psnr_of(problem, azimuth_deg=30.0) > 11.6  # a fresh scene has 10.0 there


def test_sides_are_orthogonal_and_come_from_everywhere(distilled: tuple[Problem, Oracle]) -> None:
    c2w = torch.stack([call[2] for call in distilled[1].calls])  # [steps, V, 4, 4]
    azimuths = cameras.azimuth_deg(c2w)
    turns = (azimuths - azimuths[:, :1]) % 360
    torch.testing.assert_close(turns, torch.arange(VIEWS).expand(STEPS, -1) * 90.0, rtol=0, atol=0.01)
    first = azimuths[:, 0] % 360
    assert {int(azimuth // 90) for azimuth in first} == {0, 1, 2, 3} and len(first.unique()) == STEPS
    elevations = (c2w[:, 0, 2, 3] / c2w[:, 0, :3, 3].norm(dim=-1)).asin() * (180 / math.pi)
    assert 0 <= elevations.min() < 5 and 15 < elevations.max() <= 20


def test_noise_levels_lie_between_the_two_ramps(distilled: tuple[Problem, Oracle]) -> None:
    timesteps = [call[1] for call in distilled[1].calls]
    for number, timestep in enumerate(timesteps):
        share = min(number / RAMP, 1)
        assert int(1000 * (0.6 + share * (0.02 - 0.6))) <= timestep <= 1000 * (0.6 + share * (0.5 - 0.6))
    assert timesteps[0] == 600 and min(timesteps[RAMP:]) < 150 and max(timesteps[RAMP:]) > 350


def test_regularizers_pull_the_way_they_say() -> None:
    """Sparsity empties, binary entropy decides; both without any guidance."""

    def opacity(problem: Problem) -> Tensor:
        draw = draw_side(problem, plan_step(problem.config, 0), stream(0, 0, 0))
        rays = view_rays(draw.c2w, TIMES[draw.frames], 8, stream(0, 0, 0))
        return RenderPass(problem.scene, rays).opacity.detach()

    for weight in ("lambda_sparsity", "lambda_opacity"):
        problem = small_problem(small_config(sparsity_start_step=0, **{weight: 10.0}))
        before = opacity(problem)
        run(problem, range(8))
        after = opacity(problem)
        if weight == "lambda_sparsity":
            assert after.mean() < before.mean()
        else:
            assert (after * (1 - after)).mean() < (before * (1 - before)).mean()


# ---- terms and weights ----------------------------------------------------------------------------------------------


def all_terms() -> Problem:
    return small_problem(
        small_config(
            source="fourdm", every=2, start_step=2, lambda_rgb=10.0, anchor=True, lambda_lpips=3.0, lambda_dssim=2.0,
            lambda_orientation=1.0, lambda_orientation_end=5.0, orientation_ramp_steps=4, lambda_opacity=0.5,
            opacity_start_step=1, lambda_sparsity=0.25, sparsity_start_step=3, weight=1.5,
        )
    )  # fmt: skip


def test_the_loss_is_the_weighted_sum_of_the_logged_terms_and_each_has_its_steps() -> None:
    anchor = {"perceptual": 3.0, "d_ssim": 2.0, "views": 10.0}
    expected = [  # by hand
        anchor | {"orientation": 1.0},
        anchor | {"orientation": 2.0, "opacity": 0.5},
        anchor | {"orientation": 3.0, "opacity": 0.5, "sds": 1.5},
        anchor | {"orientation": 4.0, "opacity": 0.5, "sparsity": 0.25},
        anchor | {"orientation": 5.0, "opacity": 0.5, "sparsity": 0.25, "sds": 1.5},
        anchor | {"orientation": 5.0, "opacity": 0.5, "sparsity": 0.25},
    ]
    for terms, weights in zip(run(all_terms(), range(6)), expected, strict=True):
        assert terms.keys() == weights.keys() | {"loss"}
        assert terms["loss"] == pytest.approx(sum(weights[name] * terms[name] for name in weights), rel=1e-5)


TERMS = [
    "sds", "perceptual", "d_ssim", "views", "orientation", "opacity", "sparsity", "empty", "input", "mask", "distortion"
]  # fmt: skip


@pytest.mark.parametrize("name", TERMS)
def test_the_step_descends_along_the_weighted_gradient_of_each_term(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the weight of one term alone is twice the gradient, and the term is smaller after a small step along it."""
    sections = {"sds": "weight", "perceptual": "lambda_lpips", "d_ssim": "lambda_dssim", "views": "lambda_rgb"}
    setting = sections.get(name, f"lambda_{name}")
    gradients, values = [], []
    for weight in (1.0, 2.0):
        changes = {"lambda_orientation_end": weight} if name == "orientation" else {}
        changes |= {"lambda_mask": 1e-9} if name == "distortion" else {}  # it has no rays of its own
        anchor = name in ("perceptual", "d_ssim")
        source = "fourdm" if name == "sds" else "off"
        config = small_config(source=source, anchor=anchor, lambda_lpips=0.0, lambda_dssim=0.0, sparsity_start_step=0)
        for key, value in (changes | {setting: weight}).items():
            section = config.sds if hasattr(config.sds, key) else config.loss
            setattr(section, key, value)
        problem = small_problem(config)
        parameters = list(problem.scene.field.parameters())
        optimizer = torch.optim.SGD([{"params": parameters, "base_lr": 0.0}], lr=0.0)
        monkeypatch.setattr(optimizer, "zero_grad", lambda set_to_none: None)
        values.append(update(problem, optimizer, plan_step(config, 1), stream(0, 0, 1))[name])
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
        if weight == 1.0:
            norm = sum(float(g.square().sum()) for g in gradients[0])
            assert norm > 0
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients[0], strict=True):
                    parameter -= 1e-3 / norm**0.5 * gradient
                    parameter.grad = None
            after = update(problem, optimizer, plan_step(config, 1), stream(0, 0, 1))[name]
            assert after < values[0]
    for once, twice in zip(*gradients, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-7)


# ---- schedules and draws at their use -------------------------------------------------------------------------------


def test_guidance_runs_along_its_ramp() -> None:
    """With conditional noise off by b the clean latents are off by sqrt((1 - a) / a) g b, in closed form."""
    bias = 0.5
    config = small_config(source="fourdm", guidance_scale=1.0, guidance_scale_end=5.0, ramp_steps=4)
    problem = small_problem(config, bias)
    images = torch.rand(FRAMES, VIEWS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    z = encoders.encode_latents(problem.pipeline.vae, images)
    for number, guidance in enumerate((1.0, 2.0, 3.0, 4.0, 5.0, 5.0)):
        plan = plan_step(config, number)
        draw = draw_side(problem, plan, stream(0, 0, number))
        loss, _ = distill(problem, plan, draw, images, stream(0, 0, number))
        alpha_bar = problem.denoiser.alphas_cumprod[int(1000 * draw.t)]
        clean = encoders.encode_latents(problem.pipeline.vae, truth(draw.c2w, draw.frames))
        target = clean - ((1 - alpha_bar) / alpha_bar).sqrt() * guidance * bias
        assert float(loss) == pytest.approx(float(distillation.sds_loss(z, target)), rel=1e-3)


def test_renders_from_a_random_side_grow_at_the_milestones(passes: list[Recorded]) -> None:
    config = small_config(source="fourdm", resolutions=[4, 8, SIZE], resolution_milestones=[0, 2, 3])
    run(small_problem(config), range(5))
    assert [len(each.rgb) for each in passes] == [FRAMES * VIEWS * side**2 for side in (4, 4, 8, SIZE, SIZE)]


def test_long_videos_are_distilled_in_windows_at_their_own_times(passes: list[Recorded]) -> None:
    config = small_config(source="fourdm", resolutions=[4])
    problem = small_problem(config)
    problem.pipeline.generation_config = GenerationConfig(image_size=SIZE, window=2)
    run(problem, range(8))
    oracle = problem.denoiser
    assert isinstance(oracle, Oracle)
    seen = [call[0].tolist() for call in oracle.calls]
    assert all(len(frames) == 2 for frames in seen) and {frame for frames in seen for frame in frames} == {0, 1, 2, 3}
    for frames, each in zip(seen, passes, strict=True):
        assert torch.equal(each._rays.times.unique(), TIMES[frames])


def test_the_anchor_loss_compares_a_random_frame_of_the_anchor_view(passes: list[Recorded]) -> None:
    problem = small_problem(small_config(anchor=True, lambda_lpips=1.0, lambda_dssim=0.0))
    problem.target.anchor = 2
    frames = []

    def perceptual(image: Tensor, expected: Tensor) -> Tensor:
        rays = passes[-1]._rays
        (time,) = rays.times.unique().tolist()
        frame = int((TIMES - time).abs().argmin())
        frames.append(frame)
        assert torch.equal(expected[0], problem.target.views[2, frame])
        assert torch.equal(rays.origins[0], problem.target.c2w[2, :3, 3])
        assert torch.equal(image[0].permute(1, 2, 0).reshape(-1, 3), passes[-1].rgb)
        return (image - expected).square().mean()

    problem.perceptual = perceptual
    run(problem, range(16))
    assert set(frames) == {0, 1, 2, 3}


def test_learning_rates_fall_exponentially() -> None:
    config = small_config(lambda_rgb=1.0, lr_decay=0.1, rgb_rays=8)
    problem = small_problem(config)
    optimizer = make_optimizer(problem.scene, config.grid_lr, config.mlp_lr)
    for number in (0, 50, 100):
        update(problem, optimizer, plan_step(config, number), stream(0, 0, number))
        factor = 0.1 ** (number / 100)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2 * factor, 1e-3 * factor])


def test_the_occupancy_grid_sees_each_time_once_in_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at step 0; then each once a round, one at a time. A longer video has longer rounds, not dearer steps."""
    problem = small_problem(small_config(lambda_rgb=1.0, occupancy_every=8, rgb_rays=8))
    seen: list[tuple[list[float], float]] = []
    occupancy = problem.scene.occupancy

    def update(density: object, times: Tensor, generator: object, share: float) -> None:
        seen.append((times.tolist(), share))
        OccupancyGrid.update(occupancy, density, times, generator, share)  # type: ignore[arg-type]

    monkeypatch.setattr(occupancy, "update", update)
    run(problem, range(1))
    assert seen.pop() == (TIMES.tolist(), 1.0)
    run(problem, range(8, 16))
    assert [(len(times), share) for times, share in seen] == [(1, 0.25)] * 4
    assert sorted(time for times, _ in seen for time in times) == TIMES.tolist()
    problem.target.times = torch.linspace(0, 1, 64)
    seen.clear()
    problem.config.loss.lambda_rgb = 0.0
    for number in range(64, 128):
        loop._update_occupancy(problem, number, stream(0, 0, number))
    assert len(seen) == 64 and all(len(times) == 1 for times, _ in seen)
    assert sorted(time for times, _ in seen for time in times) == problem.target.times.tolist()


def test_what_is_not_finite_is_named() -> None:
    problem = small_problem(small_config(lambda_rgb=1.0, anchor=True, lambda_dssim=0.0, rgb_rays=8))
    problem.perceptual = lambda image, expected: (image - expected).sum() * math.nan
    with pytest.raises(UserError, match="the loss term perceptual is not finite at step 1"):
        run(problem, [1])
    problem.perceptual = lambda image, expected: (image - image.detach()).square().sum().sqrt()  # infinite slope
    with pytest.raises(UserError, match="the gradient of .* is not finite at step 1"):
        run(problem, [1])
    with torch.no_grad():
        problem.scene.field.space.params[0] = math.nan
    with pytest.raises(UserError, match="the scene's density is nan at step 0"):
        run(problem, [0])


def test_an_occupancy_grid_forgets_what_is_gone() -> None:
    occupancy = small_problem(small_config()).scene.occupancy
    occupancy.update(lambda x, t: torch.full_like(t, 50.0), TIMES, stream(0, 0, 0))
    assert occupancy.occupied.all()
    for number in range(300):
        occupancy.update(lambda x, t: torch.zeros_like(t), TIMES[:1], stream(0, 0, number))
    assert occupancy.density.max() < 0.01 * 50.0


def test_memory_of_a_step_does_not_grow_with_the_frames() -> None:
    """Numbers that autograd keeps in a step with SDS, random pixels and the input: of 4 frames and of 24."""
    found = []
    for count in (FRAMES, 24):
        config = small_config(source="fourdm", resolutions=[8], lambda_rgb=1.0, lambda_input=1.0, input_rays=128)
        problem = small_problem(config)
        problem.pipeline.generation_config = GenerationConfig(image_size=SIZE, window=FRAMES)
        target = problem.target
        index = torch.arange(count) % FRAMES
        target.times, target.images, target.rgba = torch.linspace(0, 1, count), target.images[index], target.rgba[index]
        target.views, target.empty = target.views[:, index], target.empty[:, index]
        problem.denoiser = Oracle(problem.pipeline, frames=index)  # type: ignore[assignment]
        kept = [0]

        def count_numbers(value: Tensor, kept: list[int] = kept) -> Tensor:
            kept[0] += value.numel()
            return value

        run(problem, [0])
        with torch.autograd.graph.saved_tensors_hooks(count_numbers, lambda value: value):
            run(problem, [1])
        found.append(kept[0])
    assert found[1] < 1.25 * found[0]

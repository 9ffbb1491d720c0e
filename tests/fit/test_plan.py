"""Every schedule of a fit at the steps where it changes, and draws at the ends of their ranges."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_problem import TIMES, small_config, small_problem
from tiny_model import SIZE

from fourdiffusion import cameras
from fourdiffusion.fit.step import StepPlan, anchor_losses, distill, draw_anchor, draw_side, plan_step
from fourdiffusion.randomness import stream


def plan(step: int, **changes: object) -> StepPlan:
    return plan_step(small_config(**changes), step)


def test_sds_starts_at_its_step_and_runs_every_so_many() -> None:
    found = [step for step in range(12) if plan(step, source="fourdm", start_step=3, every=4).sds]
    assert found == [3, 7, 11]
    assert [step for step in range(5) if plan(step, source="fourdm", start_step=2, every=1).sds] == [2, 3, 4]
    assert plan(0, source="per_frame").sds and plan(5, source="per_frame").sds
    assert not plan(0, source="off").sds and not plan(0, source="fourdm", weight=0.0).sds
    weights = [plan(step, source="fourdm", start_step=1, every=2, weight=1.5).weights["sds"] for step in range(4)]
    assert weights == [0.0, 1.5, 0.0, 1.5]


def test_noise_levels_and_guidance_run_from_the_first_sds_step() -> None:
    settings: dict[str, Any] = dict(
        source="fourdm", start_step=10, t_start=0.9, t_min_end=0.1, t_max_end=0.5, ramp_steps=4, guidance_scale=2.0,
        guidance_scale_end=4.0,
    )  # fmt: skip
    expected = {10: (0.9, 0.9, 2.0), 12: (0.5, 0.7, 3.0), 14: (0.1, 0.5, 4.0), 20: (0.1, 0.5, 4.0)}
    for step, (low, high, guidance) in expected.items():
        found = plan(step, **settings)
        assert (*found.t_range, found.guidance_scale) == pytest.approx((low, high, guidance))
    assert plan(14, **settings | {"guidance_scale_end": None}).guidance_scale == 2.0


def test_renders_have_the_largest_resolution_whose_milestone_is_reached() -> None:
    found = [plan(step, resolutions=[4, 8, 16], resolution_milestones=[0, 2, 5]).resolution for step in range(7)]
    assert found == [4, 4, 8, 8, 8, 16, 16]


def test_rates_fall() -> None:
    found = [plan(step, lr_decay=0.01, max_steps=4) for step in range(5)]
    assert [each.lr_factor for each in found] == pytest.approx([1, 0.01**0.25, 0.1, 0.01**0.75, 0.01])


def test_weights_begin_at_their_step() -> None:
    settings: dict[str, Any] = dict(
        lambda_opacity=3.0, opacity_start_step=2, lambda_sparsity=4.0, sparsity_start_step=3, lambda_orientation=1.0,
        lambda_orientation_end=3.0, orientation_ramp_steps=4, lambda_rgb=5.0, lambda_lpips=6.0, lambda_dssim=7.0,
    )  # fmt: skip
    found = [plan(step, anchor=True, **settings).weights for step in range(5)]
    assert [each["opacity"] for each in found] == [0, 0, 3, 3, 3]
    assert [each["sparsity"] for each in found] == [0, 0, 0, 4, 4]
    assert [each["orientation"] for each in found] == pytest.approx([1, 1.5, 2, 2.5, 3])
    assert {(each["views"], each["perceptual"], each["d_ssim"]) for each in found} == {(5, 6, 7)}
    without = plan(0, anchor=False, **settings).weights
    assert (without["views"], without["perceptual"], without["d_ssim"]) == (5, 0, 0)


@pytest.mark.parametrize("name", ["orientation", "opacity", "sparsity"])
def test_a_regularizer_alone_renders_a_random_side(name: str) -> None:
    weights = dict.fromkeys(("orientation", "opacity", "sparsity"), 0.0)
    assert not plan(0).random_side and plan(0, source="fourdm").random_side
    own = StepPlan(0, False, (0.0, 1.0), 1.0, 8, 1.0, weights | {name: 0.5})
    assert own.random_side


def test_sides_span_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(source="fourdm", elevation_max_deg=20.0, t_start=0.8, t_min_end=0.2, ramp_steps=0)
    problem = small_problem(config)
    own = plan_step(config, 1)
    low, high = own.t_range
    for draws in ((0.0, 0.0, 0.0), (0.25, 0.5, 0.5), (0.5, 1.0, 1.0)):
        monkeypatch.setattr(torch, "rand", lambda *_, value=draws, **__: torch.tensor(value))
        draw = draw_side(problem, own, stream(0, 0, 0))
        monkeypatch.undo()
        expected = cameras.orbit(torch.arange(4) * 90.0 + 360 * draws[0], 20.0 * draws[1])
        torch.testing.assert_close(draw.c2w, expected)
        assert draw.t == pytest.approx(low + (high - low) * draws[2])


@pytest.mark.parametrize(("t", "timestep"), [(0.0, 0), (0.5004, 500), (0.9999, 999), (1.0, 999)])
def test_a_noise_level_is_a_timestep_of_the_schedule(t: float, timestep: int) -> None:
    problem = small_problem(config := small_config(source="fourdm"))
    draw = SimpleNamespace(frames=torch.arange(4), c2w=cameras.orbit(cameras.orthogonal_azimuths(4)), t=t)
    distill(problem, plan_step(config, 0), draw, torch.rand(4, 4, 3, SIZE, SIZE), stream(0, 0, 0))  # type: ignore[arg-type]
    assert [call[1] for call in problem.denoiser.calls] == [timestep]  # type: ignore[attr-defined]


def test_the_anchor_is_drawn_over_all_frames() -> None:
    problem = small_problem(small_config())
    problem.target.anchor = 3
    frames = set()
    for number in range(40):
        frame, rays = draw_anchor(problem.target, 4, stream(0, 0, number))
        frames.add(frame)
        assert len(rays) == 16 and set(rays.times.tolist()) == {float(TIMES[frame])}
        torch.testing.assert_close(rays.origins[0], problem.target.c2w[3, :3, 3])
    assert frames == {0, 1, 2, 3}


def test_anchor_terms_without_weight_are_not_computed() -> None:
    image, truth = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    target = SimpleNamespace(views=truth[None], anchor=0, empty=torch.zeros(1, 1, 16, 16, dtype=torch.bool))

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean()

    problem: Any = SimpleNamespace(config=small_config(), target=target, perceptual=distance)
    for name in ("perceptual", "d_ssim"):
        weights = {"perceptual": 0.0, "d_ssim": 0.0} | {name: 0.5}
        assert set(anchor_losses(problem, image, 0, weights)) == {name}

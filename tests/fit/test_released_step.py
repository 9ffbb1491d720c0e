"""One step of experiment=released on a small scene, computed again ray by ray from the formulas."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from small_problem import FRAMES, GRID, TIMES, Oracle, small_config, small_problem
from test_presets import composed
from tiny_model import SIZE
from torch import Tensor

from fourdiffusion.fit import loop
from fourdiffusion.fit.loop import update
from fourdiffusion.fit.settings import FitConfig
from fourdiffusion.fit.step import Problem, plan_step
from fourdiffusion.randomness import stream
from fourdiffusion.scene.optimization import make_optimizer
from fourdiffusion.scene.render_pass import Rays, RenderPass
from fourdiffusion.scene.settings import FieldConfig, SceneConfig

STEP = 1.732 * 2 / 256  # length of a sample, scene units
BIAS = 0.5  # of the denoiser's conditional noise


@dataclass
class Listening(Oracle):
    """An oracle that keeps what it was given."""

    def __call__(self, z_t: Tensor, timestep: int, c2w: Tensor) -> tuple[Tensor, Tensor]:
        answer = super().__call__(z_t, timestep, c2w)
        LISTENED.append((z_t, timestep, answer))
        return answer


LISTENED: list[tuple[Tensor, int, tuple[Tensor, Tensor]]] = []


def small(config: FitConfig) -> FitConfig:
    """Return the settings with a small field, small pictures and four frames; the recipe stays."""
    field = FieldConfig(space=GRID, spacetime=GRID, hidden_width=16)
    return dataclasses.replace(
        config, num_frames=FRAMES, device="cpu", model=small_config().model,
        scene=SceneConfig(field, config.scene.renderer),
        sds=dataclasses.replace(config.sds, resolutions=[8, SIZE, SIZE]),
    )  # fmt: skip


@dataclass
class Samples:
    """Of one ray."""

    x: Tensor  # [n, 3]
    weights: Tensor  # [n]
    color: Tensor  # [n, 3]
    visited: int  # samples in occupied cells, before pruning


def cast(problem: Problem, rays: Rays, number: int) -> Samples:
    """Return the samples of a ray: in the cube, in occupied cells, with alpha >= 0.01 and T >= 1e-4."""
    occupancy, field = problem.scene.occupancy, problem.scene.field
    o, d = rays.origins[number], rays.directions[number]
    walls = torch.stack([(-1 - o) / d, (1 - o) / d])
    near, far = float(walls.amin(0).max().clamp(min=0)), float(walls.amax(0).min())
    edges = near + (torch.arange(512) - float(rays.jitter[number])) * STEP
    starts, ends = edges[:-1].clamp(near, far), edges[1:].clamp(near, far)
    inside = ends > starts
    starts, ends = starts[inside], ends[inside]
    x = o + ((starts + ends) / 2)[:, None] * d
    cells = ((x + 1) * 16).long().clamp(0, 31)
    seen = occupancy.occupied[cells[:, 0], cells[:, 1], cells[:, 2]]
    x, lengths = x[seen], (ends - starts)[seen]
    t = rays.times[number].expand(len(x))
    with torch.no_grad():
        sigma, color = field(x, t)
    alpha = 1 - (-sigma * lengths).double().exp()
    through = torch.cat([torch.ones(1, dtype=torch.float64), (1 - alpha).cumprod(0)])[: len(x)]
    kept = (alpha >= 0.01) & (through >= 1e-4)
    alpha, color, x = alpha[kept], color[kept], x[kept]
    through = torch.cat([torch.ones(1, dtype=torch.float64), (1 - alpha).cumprod(0)])[: len(x)]
    return Samples(x, through * alpha, color.double(), int(seen.sum()))


def picture_of(samples: list[Samples]) -> tuple[Tensor, Tensor]:
    """Return colors on white [R, 3] and opacities [R]."""
    opacity = torch.stack([each.weights.sum() for each in samples])
    rgb = torch.stack([(each.weights[:, None] * each.color).sum(0) for each in samples])
    return rgb + 1 - opacity[:, None], opacity


def ssim_with_zeros(a: Tensor, b: Tensor) -> float:
    """Return the mean SSIM of pictures [3, S, S] over a window around every pixel, zeros beyond the border."""
    side = a.shape[-1]
    taps = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=torch.float64)
    window = torch.outer(taps, taps) / taps.sum() ** 2
    total = 0.0
    frames = [torch.zeros(3, side + 10, side + 10, dtype=torch.float64) for _ in range(2)]
    for frame, picture in zip(frames, (a, b), strict=True):
        frame[:, 5:-5, 5:-5] = picture
    for channel in range(3):
        for row in range(side):
            for column in range(side):
                p, q = (frame[channel, row : row + 11, column : column + 11] for frame in frames)
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
                cov = (window * p * q).sum() - mp * mq
                total += float((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return total / (3 * side * side)


def facing_away(problem: Problem, samples: Samples, direction: Tensor, time: Tensor) -> float:
    """Return sum_n w_n max(0, n_n . d)^2 with the density's own gradient."""
    x = samples.x.clone().requires_grad_()
    sigma = problem.scene.field.density(x, time.expand(len(x)))
    (slope,) = torch.autograd.grad(sigma.sum(), x)
    normals = -slope / slope.norm(dim=-1, keepdim=True)
    return float((samples.weights * (normals @ direction).clamp(min=0) ** 2).sum())


class Recorded(RenderPass):
    passes: list["Recorded"] = []

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        Recorded.passes.append(self)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> tuple[Problem, list[RenderPass], dict[str, float]]:
    """The problem before the first step, the step's render passes, and the terms it logged."""
    monkeypatch.setattr(loop, "RenderPass", Recorded)
    Recorded.passes.clear()
    LISTENED.clear()
    config = small(composed("experiment=released"))
    problem = small_problem(config)
    problem.denoiser = Listening(problem.pipeline, BIAS)  # type: ignore[assignment]
    problem.perceptual = lambda image, truth: (image - truth).abs().mean()
    optimizer = make_optimizer(problem.scene, config.grid_lr, config.mlp_lr)
    for group in optimizer.param_groups:
        group["base_lr"] = 0.0  # the field stays as the step saw it
    terms = update(problem, optimizer, plan_step(config, 0), stream(0, 0, 0))
    return problem, list(Recorded.passes), {name: float(value) for name, value in terms.items()}


def test_a_released_step_by_hand(done: tuple[Problem, list[RenderPass], dict[str, float]]) -> None:
    problem, (side, oriented, anchor), terms = done
    count = FRAMES * 4 * 8 * 8
    assert len(side._rays) == count and len(oriented._rays) == count // FRAMES and len(anchor._rays) == SIZE**2

    samples = [cast(problem, side._rays, number) for number in range(count)]
    rgb, opacity = picture_of(samples)
    assert sum(len(each.x) for each in samples) < 0.8 * sum(each.visited for each in samples)  # pruning counts
    torch.testing.assert_close(side.rgb.detach().double(), rgb, rtol=0, atol=1e-5)
    torch.testing.assert_close(side.opacity.detach().double(), opacity, rtol=0, atol=1e-5)
    sparsity = float((opacity**2 + 0.01).sqrt().mean())

    (time,) = oriented._rays.times.unique()
    assert bool((TIMES == time).any())
    seen = [cast(problem, oriented._rays, number) for number in range(count // FRAMES)]
    hit = sum(float(each.weights.sum()) > 0 for each in seen)
    away = [
        facing_away(problem, each, direction, time)
        for each, direction in zip(seen, oriented._rays.directions, strict=True)
    ]
    orientation = sum(away) / hit

    ((z_t, timestep, (conditional, unconditional)),) = LISTENED
    assert timestep == 980

    enlarged = torch.nn.functional.interpolate(
        rgb.view(-1, 8, 8, 3).movedim(-1, 1), size=(SIZE, SIZE), mode="bilinear", align_corners=False
    )

    z = torch.nn.functional.avg_pool2d(enlarged * 2 - 1, 2).unflatten(0, (FRAMES, 4))
    alpha_bar = math.prod(
        1 - (math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2 for i in range(981)
    )
    guided = unconditional.double() + 5 * (conditional.double() - unconditional.double())
    x0, plain = (
        (z_t.double() - math.sqrt(1 - alpha_bar) * noise) / math.sqrt(alpha_bar)
        for noise in (guided, conditional.double())
    )
    target = 0.2 * x0 * plain.std() / x0.std() + 0.8 * x0
    z = torch.cat([z, torch.zeros_like(z[:, :, :1])], 2)
    sds = 0.5 * float((z - target).square().sum()) / (FRAMES * 4)

    (time,) = anchor._rays.times.unique()
    frame = int((TIMES == time).nonzero())
    rendered, _ = picture_of([cast(problem, anchor._rays, number) for number in range(SIZE**2)])
    image = rendered.view(SIZE, SIZE, 3).movedim(-1, 0)
    truth = problem.target.views[0, frame].double()
    truth = torch.where(problem.target.empty[0, frame], torch.ones(()).double(), truth)
    perceptual, d_ssim = float((image - truth).abs().mean()), 1 - ssim_with_zeros(image, truth)

    expected = {"sds": sds, "perceptual": perceptual, "d_ssim": d_ssim, "orientation": orientation}
    expected |= {"sparsity": sparsity}
    expected["loss"] = sds + 200 * perceptual + 100 * d_ssim + 10 * orientation + 100 * sparsity
    assert terms == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


def test_the_schedule_of_released() -> None:
    config = composed("experiment=released")
    for number, low, high, resolution, orientation, opacity in (
        (0, 0.98, 0.98, 64, 10.0, 0.0),
        (2500, 0.5, 0.615, 64, 505.0, 0.0),
        (5000, 0.02, 0.25, 192, 1000.0, 0.0),
        (10_000, 0.02, 0.25, 256, 1000.0, 100.0),
    ):
        plan = plan_step(config, number)
        assert plan.t_range == pytest.approx((low, high)) and plan.resolution == resolution
        weights = {name: weight for name, weight in plan.weights.items() if weight}
        always = {"sds": 1.0, "perceptual": 200.0, "d_ssim": 100.0, "sparsity": 100.0, "orientation": orientation}
        assert weights == pytest.approx(always | ({"opacity": opacity} if opacity else {}))
        assert plan.guidance_scale == 5 and plan.lr_factor == 1

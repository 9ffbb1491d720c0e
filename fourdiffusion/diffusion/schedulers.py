"""The noise schedule of the model, and the supported diffusers schedulers."""

from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from fourdiffusion.diffusion.generation_config import TIMESTEP_SPACINGS
from fourdiffusion.errors import UserError

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


def noise_schedule(beta_end: float = 0.0120) -> DDIMScheduler:
    """Return SD's 1000 steps: scaled-linear betas from 0.00085 to ``beta_end`` (method.md section 1)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def set_scheduler(pipeline: DiffusionPipeline, name: str, timestep_spacing: str | None = None) -> None:
    """Set another diffusers scheduler of a pipeline, with the pipeline's noise schedule.

    DDIM's default spacing is leading, as in the release: a small number of leading steps starts far from pure noise,
    trailing steps always start there (Lin et al. 2023).

    Args:
        pipeline: its ``scheduler`` is replaced.
        name: a key of SCHEDULERS.
        timestep_spacing: leading, trailing or linspace; None keeps the pipeline's.

    Raises:
        UserError: an unknown name or spacing.
    """
    if name not in SCHEDULERS:
        raise UserError(f"model.scheduler={name} is not one of {', '.join(SCHEDULERS)}")
    if timestep_spacing not in (None, *TIMESTEP_SPACINGS):
        raise UserError(f"model.timestep_spacing={timestep_spacing} is not one of {', '.join(TIMESTEP_SPACINGS)}")
    chosen = {} if timestep_spacing is None else {"timestep_spacing": timestep_spacing}
    pipeline.register_modules(scheduler=SCHEDULERS[name].from_config(pipeline.scheduler.config, **chosen))

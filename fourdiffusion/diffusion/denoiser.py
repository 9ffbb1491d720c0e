"""The guided denoiser of one input video.

Letters: F frames, V views without the extra view, C h w latent channels and pixels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.diffusion.attention import KeysValues
from fourdiffusion.diffusion.distillation import noise_of_velocity
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet


def unconditional(negative_prompt: str, guidance_scale: float) -> str | None:
    """Return the prompt of the unconditional branch; None for guidance scale 1, which has no such branch."""
    return None if guidance_scale == 1 else negative_prompt


@dataclass
class Denoiser:
    """The UNet with the conditions of one input video, encoded once.

    ``context`` and ``extra`` hold the conditional branch first and the unconditional (negative prompt, zero image
    tokens, zero extra view) second, if there is one: guidance scale 1 has none.
    """

    unet: MultiviewUNet
    motion: MotionModules | None  # None: the image model, frame by frame
    context: list[KeysValues | None]
    extra: Tensor  # latents of the extra view, [1 or 2, F, C, h, w]
    alphas_cumprod: Tensor  # of the noise schedule, [1000]

    def at_frames(self, frames: Tensor) -> "Denoiser":
        """Return the denoiser of some of the video's frames, given by their indices [N], without encoding again."""
        context = [layer and layer.at_frames(frames) for layer in self.context]
        return replace(self, context=context, extra=self.extra[:, frames])

    @torch.no_grad()
    def __call__(self, z: Tensor, timestep: int, c2w: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise predicted by each branch; both branches run in one batch.

        Args:
            z: noisy latents [F, V, C, h, w].
            timestep: 0..999.
            c2w: cameras [V, 4, 4], relative to an input camera at azimuth 0.

        Returns:
            Conditional and unconditional noise, [F, V, C, h, w] each; twice the same without a second branch.
        """
        branches = len(self.extra)
        views = torch.cat([z.to(self.extra.dtype).expand(branches, *z.shape), self.extra[:, :, None]], dim=2)
        camera = cameras.conditioning(c2w.to(z.device, torch.float32))
        camera = torch.cat([camera, torch.zeros_like(camera[:1])]).to(self.extra.dtype).expand(branches, -1, -1)
        step = torch.full((branches,), timestep, device=z.device)
        noise = self.unet(views, step, self.context, camera, self.motion)[:, :, :-1].to(z.dtype)
        if self.unet.config.prediction_type == "v_prediction":
            noise = noise_of_velocity(z, noise, self.alphas_cumprod[timestep])
        return noise[0], noise[-1]

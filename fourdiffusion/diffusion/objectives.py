"""Objectives of the training stages: modules that map a batch to named loss terms.

The networks that a stage trains are in ``trainable``; all others are frozen.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fourdiffusion import cameras
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.distillation import add_noise, velocity
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.precompute import tokens_without_image

CLIP_TEMPERATURE = 0.1


class AutoencoderObjective(nn.Module):
    """Stage ``vae``: reconstruct single images; L1 + 10 L2 + a small KL term, and latents that look like the image.

    The last term keeps the first three latent channels close to the downsampled image: color is learned early and the
    latents are easy to denoise.
    """

    def __init__(
        self,
        pipeline: FourDiffusionPipeline,
        kl_weight: float,
        lpips_weight: float = 0.0,
        lpips: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.vae = pipeline.vae
        self.lpips_weight, self.lpips = lpips_weight, lpips and lpips.requires_grad_(False)
        self.trainable = nn.ModuleDict({"vae": pipeline.vae})
        self.kl_weight = kl_weight
        pipeline.vae.requires_grad_(True)

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """images [N, 3, H, W] in [0, 1], noise [N, C, h, w] for the posterior's sample."""
        moments = self.vae.encode(images * 2 - 1).latent_dist
        decoded = self.vae.decode(moments.mean + moments.std * noise).sample / 2 + 0.5
        small = functional.adaptive_avg_pool2d(images, (noise.shape[-2], noise.shape[-1])) * 2 - 1
        terms = {
            "l1": functional.l1_loss(decoded, images),
            "l2": 10 * functional.mse_loss(decoded, images),
            "kl": self.kl_weight * moments.kl().sum() / noise.numel(),
            "low_pass": functional.mse_loss(moments.mean[:, :3], small),
        }
        if self.lpips is not None:
            terms["lpips"] = self.lpips_weight * self.lpips(decoded.clamp(0, 1), images).mean()
        return terms


class TowersObjective(nn.Module):
    """Stage ``clip``: contrastive training of text and image tower on captions and pictures (Radford et al. 2021).

    The full-size towers are already trained; without this stage a small model's UNet learns little from the image
    prompt.
    """

    def __init__(self, pipeline: FourDiffusionPipeline) -> None:
        super().__init__()
        text, image = pipeline.text_encoder, pipeline.image_encoder
        text.requires_grad_(True)
        image.requires_grad_(True)
        _freeze_unread_layers(pipeline)
        width = text.config.hidden_size
        self.project_text, self.project_image = nn.Linear(width, width), nn.Linear(image.config.hidden_size, width)
        self.trainable = nn.ModuleDict(
            {
                "text_encoder": text,
                "image_encoder": image,
                "project_text": self.project_text,
                "project_image": self.project_image,
            }
        )
        self.pipeline = [pipeline]

    def forward(self, images: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """images [B, 3, H, W] in [0, 1] and their captions; equal captions count as one."""
        pipeline = self.pipeline[0]
        tokens = encoders.encode_image(pipeline.feature_extractor, pipeline.image_encoder, images)
        image = functional.normalize(self.project_image(tokens.mean(1)), dim=-1)
        states = encoders.encode_text(pipeline.tokenizer, pipeline.text_encoder, captions)
        text = functional.normalize(self.project_text(states[:, -1]), dim=-1)  # the last position attends to all others
        logits = image @ text.T / CLIP_TEMPERATURE
        same = torch.tensor([[float(a == b) for b in captions] for a in captions], device=logits.device)
        wanted = same / same.sum(1, keepdim=True)  # symmetric up to the row sums, which are equal for equal captions
        return {"contrast": (functional.cross_entropy(logits, wanted) + functional.cross_entropy(logits.T, wanted)) / 2}


def _freeze_unread_layers(pipeline: FourDiffusionPipeline) -> None:
    """Freeze the layers after the second-to-last block, which do not affect the image tokens and get no gradient."""
    vision: Any = getattr(pipeline.image_encoder, "vision_model", pipeline.image_encoder)
    vision.encoder.layers[-1].requires_grad_(False)
    vision.post_layernorm.requires_grad_(False)


@dataclass
class Encoded:
    """A batch encoded by the frozen networks: computed in every step, or cached (precompute.py)."""

    z: Tensor  # scaled latents of the target views [B, F, V, C, h, w], float32
    given: Tensor  # scaled latents of the input video [B, F, C, h, w], float32
    tokens: Tensor  # of the image prompt, from the resampler [B, F, T, D]
    no_tokens: Tensor  # of a dropped image prompt [T, D]
    text: Tensor  # states of the captions [B, L, D]
    no_text: Tensor  # states of the empty caption, [L, D] or [B, L, D]


class DiffusionObjective(nn.Module):
    """Stages ``base`` and ``motion``: denoise V views x F frames (paper Eq. 7).

    Stage ``base`` trains the UNet and both towers on single time steps, without motion layers; stage ``motion`` freezes
    all of these and trains the motion layers, and ``adapters`` of the UNet if there are any.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        pipeline: FourDiffusionPipeline,
        stage: Literal["base", "motion"],
        cond_drop_prob: float,
        text_drop_prob: float,
        cond_drop_camera: bool,
        min_snr_gamma: float | None,
        vae_batch_size: int = encoders.VAE_BATCH,
        adapters: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.cond_drop_prob, self.text_drop_prob = cond_drop_prob, text_drop_prob
        self.cond_drop_camera, self.min_snr_gamma = cond_drop_camera, min_snr_gamma
        self.vae_batch_size = vae_batch_size
        frozen = [pipeline.vae, pipeline.text_encoder, pipeline.image_encoder, pipeline.unet, pipeline.motion]
        for module in frozen:
            module.requires_grad_(False)
        trained: dict[str, nn.Module]
        if stage == "base":
            trained = {
                "unet": pipeline.unet,
                "text_encoder": pipeline.text_encoder,
                "image_encoder": pipeline.image_encoder,
            }
        else:
            trained = {"motion": pipeline.motion} | ({} if adapters is None else {"adapters": adapters})
        for module in trained.values():
            module.requires_grad_(True)
        _freeze_unread_layers(pipeline)
        self.trainable = nn.ModuleDict(trained)
        self.pipeline = [pipeline]  # in a list, so that its frozen modules are not parameters of this module
        self.motion = pipeline.motion if stage == "motion" else None
        self.register_buffer("alphas_cumprod", pipeline.scheduler.alphas_cumprod.clone(), persistent=False)

    def forward(
        self,
        target: Tensor,
        given: Tensor,
        c2w: Tensor,
        captions: list[str],
        timestep: Tensor,
        noise: Tensor,
        dropout: Tensor,
        latents: Tensor | None = None,
        given_latents: Tensor | None = None,
        image_tokens: Tensor | None = None,
        text: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss terms of one batch; cached tensors (precompute.py) replace the output of their encoders.

        Args:
            target: RGB in [0, 1], [B, F, V, 3, H, W]; not used if latents are given.
            given: the input video, [B, F, 3, H, W]; not used if its latents and image tokens are given.
            c2w: cameras of the targets relative to the input's, [B, V, 4, 4].
            captions: B prompts.
            timestep: [B].
            noise: [B, F, V, C, h, w].
            dropout: uniform draws [B, 2]; below the probability, the image prompt (and the camera) or the text is
                dropped.
            latents: cached, of the target, [B, F, V, C, h, w].
            given_latents: cached, of the input video, [B, F, C, h, w].
            image_tokens: cached, the resampler's of the input video, [B, F, T, D]; only for a frozen image tower.
            text: cached text states of the caption and of no caption, [B, 2, L, D]; only for a frozen text tower.
        """
        encoded = self.encode(target, given, captions, latents, given_latents, image_tokens, text)
        error, emphasis = self.errors(encoded, c2w, timestep, noise, dropout)
        if self.min_snr_gamma is not None:
            error = error * (self.min_snr_gamma / emphasis).clamp(max=1)
        return {"mse": error.mean()}

    def encode(
        self,
        target: Tensor,
        given: Tensor,
        captions: list[str],
        latents: Tensor | None = None,
        given_latents: Tensor | None = None,
        image_tokens: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Encoded:
        """Return the UNet's inputs for a batch; arguments as in ``forward``. Cached tensors are not computed again."""
        pipeline = self.pipeline[0]
        z = latents if latents is not None else encode_in_parts(pipeline.vae, target, self.vae_batch_size)
        if given_latents is None:
            given_latents = encode_in_parts(pipeline.vae, given, self.vae_batch_size)
        if image_tokens is None:
            image = encoders.encode_image(pipeline.feature_extractor, pipeline.image_encoder, given)
            image_tokens = pipeline.unet.resampler(image)
            no_tokens = pipeline.unet.resampler(torch.zeros_like(image[:1, :1]))[0, 0]
        else:
            no_tokens = tokens_without_image(pipeline)
            image_tokens = image_tokens.to(no_tokens.dtype)
        if text is None:
            states = encoders.encode_text(pipeline.tokenizer, pipeline.text_encoder, [*captions, ""])
            return Encoded(z, given_latents, image_tokens, no_tokens, states[:-1], states[-1])
        text = text.to(pipeline.unet.dtype)
        return Encoded(z, given_latents, image_tokens, no_tokens, text[:, 0], text[:, 1])

    def errors(
        self, encoded: Encoded, c2w: Tensor, timestep: Tensor, noise: Tensor, dropout: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of each sample's prediction, and its weight as an error of clean latents.

        Args:
            encoded: the batch.
            c2w, timestep, noise, dropout: as in ``forward``.

        Returns:
            Errors and weights, [B] each.
        """
        pipeline = self.pipeline[0]
        keep = (dropout[:, 0] >= self.cond_drop_prob).float()
        has_text = (dropout[:, 1] >= self.text_drop_prob).view(-1, 1, 1)
        text = torch.where(has_text, encoded.text, encoded.no_text)
        tokens = torch.where(keep.view(-1, 1, 1, 1) > 0, encoded.tokens, encoded.no_tokens)
        context = pipeline.unet.project_context(text, tokens)
        camera = cameras.conditioning(c2w)
        camera = torch.cat([camera, torch.zeros_like(camera[:, :1])], dim=1)
        if self.cond_drop_camera:
            camera = camera * keep.view(-1, 1, 1)

        z, extra = encoded.z, encoded.given * keep.view(-1, 1, 1, 1, 1)
        alpha_bar = self.alphas_cumprod[timestep].view(-1, 1, 1, 1, 1, 1)
        views = torch.cat([add_noise(z, noise, alpha_bar), extra[:, :, None]], dim=2)
        predicted = pipeline.unet(views, timestep, context, camera, self.motion)[:, :, :-1]
        snr = (alpha_bar / (1 - alpha_bar)).flatten()
        if pipeline.unet.config.prediction_type == "v_prediction":
            wanted, emphasis = velocity(z, noise, alpha_bar), snr + 1
        else:
            wanted, emphasis = noise, snr  # weight of the squared error as an error of the clean latents
        return (predicted - wanted).square().flatten(1).mean(1), emphasis


@torch.no_grad()
def encode_in_parts(vae: Any, images: Tensor, size: int) -> Tensor:
    """Encode RGB images [..., 3, H, W] to scaled latents [..., C, h, w], ``size`` pictures at a time.

    The VAE's feature maps are the largest of all networks: for 160 pictures of 256 x 256, those of a clip and its
    input, one map takes 5 GiB in float32.
    """
    parts = [encoders.encode_latents(vae, part) for part in images.flatten(0, -4).split(size)]
    return torch.cat(parts).unflatten(0, images.shape[:-3])

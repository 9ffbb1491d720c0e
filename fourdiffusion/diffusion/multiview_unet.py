"""ImageDream's UNet for any number of frames and views; motion layers are an argument, not part of it.

Letters: B clips, F frames, V views (the extra view last), C channels, h w latent pixels.
"""

from collections.abc import Iterator
from itertools import repeat
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from fourdiffusion.diffusion.attention import KeysValues, MultiviewTransformer, Resampler
from fourdiffusion.diffusion.motion import MotionModule, MotionModules
from fourdiffusion.diffusion.settings import PREDICTION_TYPES
from fourdiffusion.renames import current_unet_config


class Block(nn.Module):
    """Residual block, then attention if this resolution has it, then the motion module."""

    def __init__(self, resnet: ResnetBlock2D, attention: MultiviewTransformer | None) -> None:
        super().__init__()
        self.resnet = resnet
        self.attention = attention

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        context: KeysValues | None,
        motion: MotionModule | None,
        frames: int,
        views: int,
    ) -> Tensor:
        """x [B F V, C, h, w], embedding [B F V, E] -> [B F V, C', h, w]."""
        x = self.resnet(x, embedding)
        if self.attention is not None:
            x = self.attention(x, context, frames, views)
        return x if motion is None else motion(x, frames, views)


class Level(nn.Module):
    """The blocks of one resolution and the resampling layer after them (none at the innermost or outermost end)."""

    def __init__(self, blocks: list[Block], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = cast(list[Block], nn.ModuleList(blocks))
        self.resample = resample


class MultiviewUNet(ModelMixin, ConfigMixin):
    """SD 2.1's UNet with 3-D self-attention, camera embedding and image prompt (ImageDream, pixel variant).

    The defaults are the release's. The last view of the input is the extra view: the clean latent of the input image,
    with an all-zero camera. ``prediction_type`` is the meaning of the output: "epsilon", the noise, or "v_prediction",
    the velocity sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) z (Salimans and Ho 2022), which ``Denoiser`` converts to
    noise. ``positions`` adds position embeddings to the tokens of attention.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        channels: list[int] = [320, 640, 1280, 1280],  # noqa: B006 (register_to_config keeps it, it is never modified)
        attention_levels: list[bool] = [True, True, True, False],  # noqa: B006
        blocks_per_level: int = 2,
        head_dim: int = 64,
        context_dim: int = 1024,
        image_dim: int = 1280,
        num_image_tokens: int = 16,
        resampler_layers: int = 4,
        resampler_heads: int = 12,
        resampler_head_dim: int = 64,
        norm_groups: int = 32,
        prediction_type: str = "epsilon",
        positions: bool = False,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type={prediction_type} is not one of {', '.join(PREDICTION_TYPES)}")
        embedding_dim = 4 * channels[0]
        self.gradient_checkpointing = False
        self.timesteps = Timesteps(channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(channels[0], embedding_dim)
        self.camera_embedding = TimestepEmbedding(16, embedding_dim)  # a 4 x 4 pose, flattened
        self.resampler = Resampler(
            image_dim, context_dim, num_image_tokens, resampler_layers, resampler_heads, resampler_head_dim
        )

        def resnet(width_in: int, width: int) -> ResnetBlock2D:
            return ResnetBlock2D(
                in_channels=width_in, out_channels=width, temb_channels=embedding_dim, groups=norm_groups, eps=1e-5
            )

        def block(width_in: int, width: int, attention: bool) -> Block:
            transformer = None
            if attention:
                transformer = MultiviewTransformer(width, context_dim, head_dim, norm_groups, positions)
            return Block(resnet(width_in, width), transformer)

        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        width, skips = channels[0], [channels[0]]
        self.down = cast(list[Level], nn.ModuleList())
        for level, level_width in enumerate(channels):
            blocks = []
            for _ in range(blocks_per_level):
                blocks.append(block(width, level_width, attention_levels[level]))
                width = level_width
                skips.append(width)
            last = level == len(channels) - 1
            self.down.append(Level(blocks, None if last else Downsample2D(width, use_conv=True, name="op")))
            if not last:
                skips.append(width)

        self.middle = block(width, width, True)
        self.middle_out = resnet(width, width)

        self.up = cast(list[Level], nn.ModuleList())
        for level, level_width in reversed(list(enumerate(channels))):
            blocks = []
            for _ in range(blocks_per_level + 1):
                blocks.append(block(width + skips.pop(), level_width, attention_levels[level]))
                width = level_width
            self.up.append(Level(blocks, Upsample2D(width, use_conv=True) if level else None))

        self.norm_out = nn.GroupNorm(norm_groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, in_channels, 3, padding=1)

    def blocks(self) -> Iterator[Block]:
        """Return all blocks in order of execution; each has one motion module."""
        yield from (block for level in self.down for block in level.blocks)
        yield self.middle
        yield from (block for level in self.up for block in level.blocks)

    def block_channels(self) -> list[int]:
        """Return the output width of every block, for the motion modules."""
        return [block.resnet.out_channels for block in self.blocks()]

    @classmethod
    def from_config(cls, config: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Make the UNet of a config, which may have former key names (``renames.UNET_CONFIG``)."""
        return super().from_config(current_unet_config(dict(config)), *args, **kwargs)

    @apply_forward_hook  # also loads an offloaded UNet
    def encode_context(self, text: Tensor, image: Tensor) -> list[KeysValues | None]:
        """Encode the prompts once for all views and diffusion steps.

        Args:
            text: token states [B, L, context_dim].
            image: image-encoder states [B, F, N, image_dim]; all zero for "no image prompt".

        Returns:
            One entry per block, None for blocks without attention.
        """
        return self.project_context(text, self.resampler(image))

    def project_context(self, text: Tensor, tokens: Tensor) -> list[KeysValues | None]:
        """Return ``encode_context`` of text states and the resampler's tokens [B, F, T, context_dim]."""
        layers = (block.attention for block in self.blocks())
        return [None if layer is None else layer.block.attn2.project(text, tokens) for layer in layers]

    def forward(
        self,
        z: Tensor,
        timestep: Tensor,
        context: list[KeysValues | None],
        camera: Tensor,
        motion: MotionModules | None = None,
    ) -> Tensor:
        """Return the predicted noise or velocity.

        Args:
            z: noisy latents [B, F, V, C, h, w]; the last view is the clean extra view.
            timestep: [B], 0..999.
            context: from ``encode_context``.
            camera: conditioning vectors [B, V, 16] (``cameras.conditioning``), zero for the extra view.
            motion: the motion layers; None gives the image model, frame by frame.

        Returns:
            Prediction for all views [B, F, V, C, h, w], including the extra view's (meaningless).
        """
        batch, frames, views = z.shape[:3]
        if motion is not None and frames > motion.config.max_frames:
            raise ValueError(
                f"{frames} frames, but the motion layers support {motion.config.max_frames} positions: sample with "
                f"groups=windows({frames}, 8) (runs that overlap) or groups=interleaved({frames}, 8) (paper Fig. 5)"
            )
        time = self.time_embedding(self.timesteps(timestep).to(z.dtype))
        embedding = (time[:, None] + self.camera_embedding(camera.to(z.dtype)))[:, None]  # [B, 1, V, E]
        embedding = embedding.expand(-1, frames, -1, -1).flatten(0, 2)
        rest = iter(zip(context, repeat(None) if motion is None else motion.layers, strict=motion is not None))

        def run(block: Block, x: Tensor) -> Tensor:
            arguments = (block, x, embedding, *next(rest), frames, views)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                return self._gradient_checkpointing_func(*arguments)
            return block(*arguments[1:])

        x = self.conv_in(z.flatten(0, 2))
        skips = [x]
        for level in self.down:
            for block in level.blocks:
                x = run(block, x)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        x = self.middle_out(run(self.middle, x), embedding)
        for level in self.up:
            for block in level.blocks:
                x = run(block, torch.cat([x, skips.pop()], dim=1))
            if level.resample is not None:
                x = level.resample(x)
        x = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return x.unflatten(0, (batch, frames, views))

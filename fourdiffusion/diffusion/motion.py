"""The motion layers of 4DM (paper section 3.1): the only part of the model that 4D training changes.

Each block of the frozen UNet ends with one module. It attends over the frames of one latent pixel of one view, and is
zero-initialized, so that untrained modules do not change the UNet's output.
"""

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from fourdiffusion.diffusion.attention import SelfAttention


def frame_positions(num_frames: int, channels: int) -> Tensor:
    """Return sinusoidal positions [F, C]: even channels sin, odd channels cos, wavelengths 2 pi to 10000 * 2 pi."""
    # float32 also for a model in half precision: rounded frequencies would change the angles of late frames
    position = torch.arange(num_frames, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, channels, 2, dtype=torch.float32) * (-math.log(10000.0) / channels))
    return torch.stack([torch.sin(position * frequency), torch.cos(position * frequency)], dim=-1).flatten(1)


class MotionModule(nn.Module):
    """GroupNorm -> Linear -> 2 x temporal self-attention -> feed-forward -> zero Linear, added to the input."""

    positions: Tensor

    def __init__(self, channels: int, num_heads: int, max_frames: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.attention_norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.attentions = nn.ModuleList(SelfAttention(channels, channels // num_heads) for _ in range(2))
        self.ff_norm = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, activation_fn="geglu")
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.register_buffer("positions", frame_positions(max_frames, channels), persistent=False)

    def forward(self, x: Tensor, num_frames: int, num_views: int) -> Tensor:
        """x [B F V, C, h, w] -> the same shape; attention over frames, with the extra view treated like any other."""
        height, width = x.shape[-2:]
        # After frozen layers x requires no gradient. torch 2.13's channels-last CPU kernel writes one and crashes.
        behind_frozen = torch.is_grad_enabled() and not x.requires_grad
        tokens = self.norm(x.contiguous() if behind_frozen else x)
        tokens = rearrange(tokens, "(b f v) c h w -> (b v h w) f c", f=num_frames, v=num_views)
        tokens = self.proj_in(tokens)
        for norm, attention in zip(self.attention_norms, self.attentions, strict=True):
            states = norm(tokens)
            tokens = tokens + attention(states + self.positions[:num_frames].to(states.dtype))
        tokens = self.proj_out(tokens + self.ff(self.ff_norm(tokens)))
        return x + rearrange(tokens, "(b v h w) f c -> (b f v) c h w", v=num_views, h=height, w=width)


class MotionModules(ModelMixin, ConfigMixin):
    """All motion modules of a UNet, in the order in which its blocks run.

    Args:
        channels: one width per block, ``unet.block_channels()``.
        num_heads: attention heads of every module.
        max_frames: length of the position table; longer clips are an error.
        norm_groups: groups of the UNet's normalization.
    """

    @register_to_config
    def __init__(self, channels: list[int], num_heads: int = 8, max_frames: int = 32, norm_groups: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MotionModule(width, num_heads, max_frames, norm_groups) for width in channels)

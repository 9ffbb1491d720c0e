"""Attention of the frozen UNet: over all views of one time step, and towards text and image tokens.

Letters: B clips, F frames, V views (the extra view included), h w latent pixels, C channels, L text tokens, M image
tokens, D context width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import Tensor, nn


@dataclass
class KeysValues:
    """Projected text and image tokens of one layer; they depend neither on the view nor on the diffusion step."""

    text: tuple[Tensor, Tensor]  # keys and values, [B, L, C] each
    image: tuple[Tensor, Tensor]  # keys and values, [B, F, M, C] each

    def at_frames(self, frames: Tensor) -> "KeysValues":
        """Return the keys and values of some frames, given by their indices [N]."""
        return KeysValues(self.text, (self.image[0][:, frames], self.image[1][:, frames]))


def attend(query: Tensor, key: Tensor, value: Tensor, head_dim: int) -> Tensor:
    """Compute multi-head scaled dot-product attention; heads are split from the channels.

    query [..., Q, C], key and value [..., K, C] with equal leading axes -> [..., Q, C].
    """
    # leading axes are merged: the fused kernels take four axes
    q, k, v = (rearrange(x, "... n (heads d) -> (...) heads n d", d=head_dim) for x in (query, key, value))
    attended = functional.scaled_dot_product_attention(q, k, v)
    return rearrange(attended, "b heads n d -> b n (heads d)").reshape(query.shape)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, [..., N, C] -> [..., N, C].

    New key weights start as copies of the query weights: tokens first attend to similar tokens, at the same position
    in the other views (mimetic initialization, Trockman and Kolter 2023), which short training does not learn.
    """

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        with torch.no_grad():
            self.to_k.weight.copy_(self.to_q.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(attend(self.to_q(x), self.to_k(x), self.to_v(x), self.head_dim))


class CrossAttention(nn.Module):
    """Attention to the text plus, with weight 1, attention to the image tokens of the same frame (ImageDream)."""

    def __init__(self, channels: int, context_dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_k_image = nn.Linear(context_dim, channels, bias=False)
        self.to_v_image = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def project(self, text: Tensor, image: Tensor) -> KeysValues:
        """Project text [B, L, D] and image tokens [B, F, M, D] to this layer's keys and values."""
        return KeysValues((self.to_k(text), self.to_v(text)), (self.to_k_image(image), self.to_v_image(image)))

    def forward(self, x: Tensor, context: KeysValues) -> Tensor:
        """x [B, F, V h w, C] -> the same shape. Frames share the text's keys, views of a frame share its image's."""
        query = self.to_q(x)
        text = attend(query.flatten(1, 2), *context.text, self.head_dim).view_as(query)
        image = attend(query, *context.image, self.head_dim)
        return self.to_out(text + image)


class TransformerBlock(nn.Module):
    """3-D self-attention over the views, cross-attention, GEGLU feed-forward; pre-norm, residual."""

    def __init__(self, channels: int, context_dim: int, head_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, head_dim)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = CrossAttention(channels, context_dim, head_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, activation_fn="geglu")

    def forward(self, x: Tensor, context: KeysValues) -> Tensor:
        """x [B, F, V h w, C] -> the same shape."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


def grid_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Return sinusoidal positions [h w, C] of a grid's tokens: half the channels encode the row, half the column.

    Wavelengths run from 2 to 64 tokens.
    """
    frequency = math.pi * 32.0 ** -torch.linspace(0, 1, channels // 4, device=device)
    rows, columns = (torch.arange(size, device=device)[:, None] * frequency for size in (height, width))
    rows, columns = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=-1).flatten(0, 1)


class MultiviewTransformer(nn.Module):
    """One transformer block on the tokens of all views of a frame, around a residual connection.

    ``positions`` adds 2-D sinusoidal position embeddings; the release has none and infers positions from padding.
    """

    def __init__(self, channels: int, context_dim: int, head_dim: int, norm_groups: int, positions: bool) -> None:
        super().__init__()
        self.positions = positions
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.block = TransformerBlock(channels, context_dim, head_dim)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: KeysValues, num_frames: int, num_views: int) -> Tensor:
        """x [B F V, C, h, w] -> the same shape."""
        height, width = x.shape[-2:]
        tokens = self.proj_in(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        if self.positions:
            tokens = tokens + grid_positions(height, width, tokens.shape[-1], x.device).to(tokens.dtype)
        tokens = rearrange(tokens, "(b f v) s c -> b f (v s) c", f=num_frames, v=num_views)
        tokens = self.proj_out(self.block(tokens, context))
        return x + rearrange(tokens, "b f (v h w) c -> (b f v) c h w", v=num_views, h=height, w=width)


class PerceiverAttention(nn.Module):
    """Attention of queries to the image tokens and to themselves."""

    def __init__(self, channels: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm_image = nn.LayerNorm(channels)
        self.norm_queries = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, num_heads * head_dim, bias=False)
        self.to_kv = nn.Linear(channels, 2 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, channels, bias=False)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        """queries [..., M, C] and image tokens [..., N, C] -> [..., M, C]."""
        queries = self.norm_queries(queries)
        key, value = self.to_kv(torch.cat([self.norm_image(image), queries], dim=-2)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(queries), key, value, self.head_dim))


class Resampler(nn.Module):
    """CLIP image tokens to a few context tokens: [..., N, image_dim] -> [..., M, C]."""

    def __init__(
        self, image_dim: int, channels: int, num_tokens: int, num_layers: int, num_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_tokens, channels) / channels**0.5)
        self.proj_in = nn.Linear(image_dim, channels)
        self.attention = nn.ModuleList(PerceiverAttention(channels, num_heads, head_dim) for _ in range(num_layers))
        self.feed_forward = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(channels),
                nn.Linear(channels, 4 * channels, bias=False),
                nn.GELU(),
                nn.Linear(4 * channels, channels, bias=False),
            )
            for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(channels, channels)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        image = self.proj_in(image)
        x = self.latents.expand(*image.shape[:-2], -1, -1)
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            x = x + attention(x, image)
            x = x + feed_forward(x)
        return self.norm_out(self.proj_out(x))

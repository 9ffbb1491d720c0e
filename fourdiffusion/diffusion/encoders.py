"""What turns text and images into what the UNet reads: CLIP towers, tokenizer and VAE, and fresh small ones.

The full-size model takes them from the ImageDream release; the small model trains its own, of the same classes.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from fourdiffusion.errors import UserError

CLIP_HUB = "openai/clip-vit-large-patch14"  # the vocabulary is the same for all of CLIP
PICTURES = 4  # that the VAE takes at a time where memory counts: its maps are the largest of all at full size

__all__ = ["CLIPImageProcessorPil", "CLIPTextModel", "CLIPTokenizer", "CLIPVisionModel"]  # their one way in


def encode_text(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, prompts: list[str]) -> Tensor:
    """Prompts to token states [B, L, D].

    The encoder holds every block but the release's last one, then the final norm, so its last state is the one that
    SD 2.1 conditions on. What fills a short prompt up is the encoder's to say: a tokenizer that is told to pad with
    OpenCLIP's number 0 would read each "!" as filling.
    """
    length = tokenizer.model_max_length
    tokens = torch.full((len(prompts), length), encoder.config.pad_token_id)
    for row, ids in zip(tokens, tokenizer(prompts, truncation=True, max_length=length).input_ids, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return encoder(tokens.to(encoder.device)).last_hidden_state


def encode_image(processor: CLIPImageProcessorPil, encoder: CLIPVisionModel, images: Tensor) -> Tensor:
    """RGB images in [0, 1], [..., 3, H, W], to the second-to-last block's states [..., N, D], not normalised."""
    size = encoder.config.image_size
    flat = images.flatten(0, -4)
    if flat.shape[-2:] != (size, size):
        flat = functional.interpolate(flat, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean = torch.tensor(processor.image_mean, device=flat.device, dtype=flat.dtype).view(3, 1, 1)
    std = torch.tensor(processor.image_std, device=flat.device, dtype=flat.dtype).view(3, 1, 1)
    states = encoder(((flat - mean) / std).to(encoder.dtype), output_hidden_states=True).hidden_states[-2]
    return states.unflatten(0, images.shape[:-3])


def encode_latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """RGB images in [0, 1], [..., 3, H, W], to scaled latents [..., C, h, w]: the posterior's mean, with gradient.

    float32 in whatever precision the VAE runs.
    """
    moments = vae.encode(images.flatten(0, -4).to(vae.dtype) * 2 - 1).latent_dist
    return (moments.mean.float() * vae.config.scaling_factor).unflatten(0, images.shape[:-3])


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """Scaled latents [..., C, h, w] to RGB images in [0, 1], [..., 3, H, W]; float32."""
    flat = (z.flatten(0, -4) / vae.config.scaling_factor).to(vae.dtype)
    images = torch.cat([vae.decode(part).sample.float() for part in flat.split(PICTURES)])
    return (images / 2 + 0.5).clamp(0, 1).unflatten(0, z.shape[:-3])


def find_tokenizer(folders: list[Path], max_length: int) -> CLIPTokenizer:
    """CLIP's public tokenizer: from the first of ``folders`` that holds one, else from the library's cache."""
    found = [folder for folder in folders if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file()]
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            found[0] if found else CLIP_HUB, local_files_only=True, model_max_length=max_length
        )
    except (OSError, ValueError, TypeError):
        tokenizer = None
    if tokenizer is None or len(tokenizer) < 256:  # one entry a byte; without files the library makes an empty one
        raise UserError(
            f"CLIP's vocabulary (vocab.json, merges.txt) is neither in {' nor in '.join(map(str, folders))} nor, as "
            f"{CLIP_HUB}, in the cache of the transformers library: give its folder with tokenizer=FOLDER"
        )
    return tokenizer


def train_tokenizer(captions: Iterable[str], vocabulary: int, max_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learnt from ``captions``, with at most ``vocabulary`` entries.

    Any other text has bytes still, but for a word's last one where no caption's word ends so: that is unknown.
    Written out because the library's trainer numbers the entries in another order each time.
    """
    text = CLIPTokenizer().backend_tokenizer
    words = Counter(
        word
        for caption in captions
        for word, _ in text.pre_tokenizer.pre_tokenize_str(text.normalizer.normalize_str(caption))
    )
    pieces = {word: (*word[:-1], word[-1] + "</w>") for word in words}
    entries = ["<|startoftext|>", "<|endoftext|>", *sorted(ByteLevel.alphabet())]
    entries += sorted({symbols[-1] for symbols in pieces.values()})
    if len(entries) > vocabulary:
        raise ValueError(f"vocabulary={vocabulary}: give at least {len(entries)}")
    merges: list[tuple[str, str]] = []
    while len(entries) < vocabulary:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(pieces[word]):
                pairs[pair] += count
        if not pairs:
            break
        first, second = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append((first, second))
        if first + second not in entries:  # a + bc after ab + c
            entries.append(first + second)
        pieces = {word: _join(symbols, first, second) for word, symbols in pieces.items()}
    tokenizer = CLIPTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=merges)
    tokenizer.model_max_length = max_length
    return tokenizer


def _join(symbols: tuple[str, ...], first: str, second: str) -> tuple[str, ...]:
    """``symbols`` with every ``first`` that ``second`` follows made one with it."""
    joined: list[str] = []
    for symbol in symbols:
        if symbol == second and joined and joined[-1] == first:
            joined[-1] = first + second
        else:
            joined.append(symbol)
    return tuple(joined)


def fresh_text_encoder(tokenizer: CLIPTokenizer, vocabulary: int, width: int, layers: int, heads: int) -> CLIPTextModel:
    """An untrained text tower."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=width,
        )
    )


def fresh_image_encoder(image_size: int, patch: int, width: int, layers: int, heads: int) -> CLIPVisionModel:
    """An untrained image tower."""
    return CLIPVisionModel(
        CLIPVisionConfig(
            image_size=image_size,
            patch_size=patch,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act="gelu",
            projection_dim=width,
        )
    )


def fresh_vae(
    channels: list[int], blocks_per_level: int, norm_groups: int, attention: bool, latent_channels: int
) -> AutoencoderKL:
    """An untrained VAE that halves the image between each pair of levels."""
    levels = len(channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(channels),
        layers_per_block=blocks_per_level,
        norm_num_groups=norm_groups,
        latent_channels=latent_channels,
        mid_block_add_attention=attention,
    )
    # A posterior as wide as its prior drowns all but the brightest signal: training then stays grey for very long.
    nn.init.constant_(vae.quant_conv.bias[latent_channels:], -6.0)
    return vae


def image_processor(image_size: int) -> CLIPImageProcessorPil:
    """CLIP's resize and normalisation, as a file beside the weights."""
    return CLIPImageProcessorPil(
        size={"height": image_size, "width": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def latent_distance(vae: AutoencoderKL, a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of the VAE's latents of two batches of RGB images in [0, 1], [N, 3, H, W].

    A perceptual distance that needs no other network. It is not LPIPS and not comparable with it.
    """
    return functional.mse_loss(encode_latents(vae, a), encode_latents(vae, b))

"""Text and image encoders, tokenizer and VAE: encoding, decoding and initialization.

The full-size model uses those of the ImageDream release; the small model trains its own, of the same classes.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from huggingface_hub import try_to_load_from_cache
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

from fourdiffusion.diffusion.finite import require_finite
from fourdiffusion.documents import read_json
from fourdiffusion.errors import UserError

CLIP_HUB = "openai/clip-vit-large-patch14"  # the vocabulary is the same for all of CLIP
VAE_BATCH = 4  # batch size of the VAE: at full size its feature maps are the largest of all networks

__all__ = ["CLIPImageProcessorPil", "CLIPTextModel", "CLIPTokenizer", "CLIPVisionModel"]  # re-exported


def encode_text(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, prompts: list[str]) -> Tensor:
    """Encode prompts to token states [B, L, D].

    The encoder has all blocks except the release's last one, then the final norm, so its last state is the one that
    SD 2.1 conditions on. Prompts are padded with the encoder's ``pad_token_id``: a tokenizer that pads with OpenCLIP's
    token 0 would treat each "!" as padding.
    """
    length = tokenizer.model_max_length
    tokens = torch.full((len(prompts), length), encoder.config.pad_token_id)
    for row, ids in zip(tokens, tokenizer(prompts, truncation=True, max_length=length).input_ids, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return encoder(tokens.to(encoder.device)).last_hidden_state


def encode_image(processor: CLIPImageProcessorPil, encoder: CLIPVisionModel, images: Tensor) -> Tensor:
    """Encode RGB images in [0, 1], [..., 3, H, W], to the second-to-last block's states [..., N, D], not normalized."""
    size = encoder.config.image_size
    flat = images.flatten(0, -4)
    if flat.shape[-2:] != (size, size):
        flat = functional.interpolate(flat, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean = torch.tensor(processor.image_mean, device=flat.device, dtype=flat.dtype).view(3, 1, 1)
    std = torch.tensor(processor.image_std, device=flat.device, dtype=flat.dtype).view(3, 1, 1)
    states = encoder(((flat - mean) / std).to(encoder.dtype), output_hidden_states=True).hidden_states[-2]
    return states.unflatten(0, images.shape[:-3])


def encode_latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode RGB images in [0, 1], [..., 3, H, W], to scaled latents [..., C, h, w], with gradient.

    Returns the posterior's mean in float32, whatever the precision of the VAE.
    """
    moments = vae.encode(images.flatten(0, -4).to(vae.dtype) * 2 - 1).latent_dist
    return (moments.mean.float() * vae.config.scaling_factor).unflatten(0, images.shape[:-3])


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """Decode scaled latents [..., C, h, w] to RGB images in [0, 1], [..., 3, H, W]; float32.

    Raises:
        UserError: an image is not finite.
    """
    flat = (z.flatten(0, -4) / vae.config.scaling_factor).to(vae.dtype)
    images = torch.cat([vae.decode(part).sample.float() for part in flat.split(VAE_BATCH)])
    require_finite(images, "decoding: the VAE's images")
    return (images / 2 + 0.5).clamp(0, 1).unflatten(0, z.shape[:-3])


def find_tokenizer(folders: list[Path], max_length: int) -> CLIPTokenizer:
    """Return CLIP's public tokenizer from the first of ``folders`` that has one, else from the library's cache.

    The cache is read as a folder, without network access.

    Raises:
        UserError: none of them has CLIP's vocabulary.
    """
    cached = try_to_load_from_cache(CLIP_HUB, "vocab.json")
    candidates = [*folders, *([Path(cached).parent] if isinstance(cached, str) else [])]
    found = [
        folder for folder in candidates if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file()
    ]
    tokenizer = None
    if found:
        for path in sorted(found[0].glob("*.json")):
            if not isinstance(content := read_json(path, "download it again"), dict):
                raise UserError(f"{path}: holds a {type(content).__name__}, not an object; download it again")
        with contextlib.suppress(Exception):  # the library has kinds of its own for each fault
            tokenizer = CLIPTokenizer.from_pretrained(found[0], local_files_only=True, model_max_length=max_length)
    if tokenizer is None or len(tokenizer) < 256:  # one entry per byte; without files the library makes an empty one
        raise UserError(
            f"CLIP's vocabulary (vocab.json, merges.txt) is neither in {' nor in '.join(map(str, folders))} nor, as "
            f"{CLIP_HUB}, in the cache of the transformers library: give its folder with tokenizer=FOLDER"
        )
    return tokenizer


def train_tokenizer(captions: Iterable[str], vocabulary: int, max_length: int) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose merges are learned from ``captions``, with at most ``vocabulary`` entries.

    Other text is tokenized as bytes; a last byte of a word that ends no caption's word is unknown. Implemented here
    because the order of the library trainer's entries is not deterministic.
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
    """Return ``symbols`` with every pair ``first``, ``second`` merged."""
    joined: list[str] = []
    for symbol in symbols:
        if symbol == second and joined and joined[-1] == first:
            joined[-1] = first + second
        else:
            joined.append(symbol)
    return tuple(joined)


def fresh_text_encoder(tokenizer: CLIPTokenizer, vocabulary: int, width: int, layers: int, heads: int) -> CLIPTextModel:
    """Return an untrained text encoder."""
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
    """Return an untrained image encoder."""
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
    """Return an untrained VAE that halves the image between each pair of levels."""
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
    # A posterior as wide as its prior hides all but the strongest signal: training then outputs gray for a long time.
    nn.init.constant_(vae.quant_conv.bias[latent_channels:], -6.0)
    return vae


def image_processor(image_size: int) -> CLIPImageProcessorPil:
    """Return CLIP's image processor (resizing and normalization), to be saved with the weights."""
    return CLIPImageProcessorPil(
        size={"height": image_size, "width": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def latent_distance(vae: AutoencoderKL, a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared distance of the VAE's latents of two batches of RGB images in [0, 1], [N, 3, H, W].

    A perceptual distance without another network. Not comparable with LPIPS.
    """
    return functional.mse_loss(encode_latents(vae, a), encode_latents(vae, b))

"""The small model's tokenizer, and what the towers and the VAE take and give."""

from pathlib import Path

import pytest
import torch
from tiny_model import CAPTIONS, LATENT, SIZE, tiny_pipeline

from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.errors import UserError

WORDS = ["abc abc bc ab ab, abab", "A red   snail that's slow"]


@pytest.fixture(scope="module")
def pipeline() -> FourDiffusionPipeline:
    return tiny_pipeline()


def test_tokenizer_is_the_same_each_time() -> None:
    first, second = (encoders.train_tokenizer(words, 400, 12) for words in (WORDS, list(WORDS)))
    assert first.get_vocab() == second.get_vocab()
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_tokenizer_knows_its_captions() -> None:
    tokenizer = encoders.train_tokenizer(WORDS, 400, 12)
    assert tokenizer.tokenize("abc snail") == ["abc</w>", "snail</w>"]
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary))) and len(vocabulary) <= 400
    for text in WORDS:
        ids = tokenizer(text).input_ids
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == (
            text.lower().replace(",", " ,").replace("'s", " 's").split()
        )


def test_tokenizer_spells_what_it_does_not_know() -> None:
    tokenizer = encoders.train_tokenizer(WORDS, 400, 12)
    assert tokenizer.tokenize("zebrab")[-2:] != ["<|endoftext|>"] * 2
    assert tokenizer.decode(tokenizer("züb").input_ids, skip_special_tokens=True).strip() == "züb"
    assert len(tokenizer("b " * 50, truncation=True).input_ids) == 12


def test_tokenizer_needs_room_for_every_byte() -> None:
    with pytest.raises(ValueError, match="vocabulary=200: give at least 2[0-9][0-9]"):
        encoders.train_tokenizer(WORDS, 200, 12)
    assert len(encoders.train_tokenizer([], 400, 12)) == 258


@torch.no_grad()
def test_shapes_and_leading_axes(pipeline: FourDiffusionPipeline) -> None:
    images = torch.rand(2, 3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    text = encoders.encode_text(pipeline.tokenizer, pipeline.text_encoder, CAPTIONS)
    assert text.shape == (2, 12, 32)
    states = encoders.encode_image(pipeline.feature_extractor, pipeline.image_encoder, images)
    assert states.shape == (2, 3, 1 + 4, 32)
    one = encoders.encode_image(pipeline.feature_extractor, pipeline.image_encoder, images[1])
    torch.testing.assert_close(one, states[1], atol=1e-5, rtol=1e-4)
    large = encoders.encode_image(pipeline.feature_extractor, pipeline.image_encoder, torch.rand(3, 3, 50, 50))
    assert large.shape == one.shape  # resized
    z = encoders.encode_latents(pipeline.vae, images)
    assert z.shape == (2, 3, 4, LATENT, LATENT)
    decoded = encoders.decode_latents(pipeline.vae, z)
    assert decoded.shape == images.shape and 0 <= decoded.min() and decoded.max() <= 1
    pipeline.vae.register_to_config(scaling_factor=2 * pipeline.vae.config.scaling_factor)
    torch.testing.assert_close(encoders.encode_latents(pipeline.vae, images), 2 * z)
    torch.testing.assert_close(encoders.decode_latents(pipeline.vae, 2 * z), decoded, atol=1e-5, rtol=1e-4)


def test_latent_distance(pipeline: FourDiffusionPipeline) -> None:
    a, b = torch.rand(2, 2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    a.requires_grad_()
    assert float(encoders.latent_distance(pipeline.vae, a, a).detach()) == 0
    encoders.latent_distance(pipeline.vae, a, b).backward()
    assert a.grad is not None and bool(a.grad.isfinite().all()) and bool(a.grad.any())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "tokenizer.json: holds a NoneType, not an object"),
        ("[" * 100_000, "tokenizer.json: is nested too deeply"),
        ('{"model": 3}', "CLIP's vocabulary .* is neither in"),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, text: str, message: str) -> None:
    encoders.train_tokenizer(["a red ball"], 300, 12).save_pretrained(tmp_path)
    assert len(encoders.find_tokenizer([tmp_path], 12)) > 256
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=message):
        encoders.find_tokenizer([tmp_path], 12)

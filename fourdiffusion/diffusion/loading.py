"""Make a pipeline from settings: prepared for a verb, loaded from disk, or untrained."""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.hooks import apply_layerwise_casting
from safetensors import safe_open
from torch import nn

from fourdiffusion.device import bf16_is_faster
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.encoders import CLIPTokenizer
from fourdiffusion.diffusion.generation import check_image_size
from fourdiffusion.diffusion.generation_config import check_generation_config
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.schedulers import noise_schedule, set_scheduler
from fourdiffusion.diffusion.settings import GenerationConfig, ModelConfig, architecture, override
from fourdiffusion.documents import first_non_finite, read_json
from fourdiffusion.errors import UserError
from fourdiffusion.media.paths import require_file
from fourdiffusion.renames import VALUES
from fourdiffusion.runs import run_record

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Module = TypeVar("Module", bound=nn.Module)
OFFLOADS = ("none", "model")
MAX_LAYERS, MAX_WIDTH = 1000, 10**6  # the networks of a model folder


def resolve_dtype(config: ModelConfig, device: torch.device, run: Path | None = None) -> ModelConfig:
    """Replace dtype "auto" by that of the run in the folder ``run``, else by the one that the device multiplies faster.

    A run keeps the dtype of its first start, so that it resumes bit for bit.
    """
    if config.dtype != "auto":
        return config
    known = None
    if run is not None and (run / "config.yaml").is_file():
        model = run_record(run)["settings"].get("model")
        known = model.get("dtype") if isinstance(model, dict) else None
    if known not in DTYPES:
        known = "bfloat16" if bf16_is_faster(device) else "float32"
    return replace(config, dtype=known)


def check_precision(config: ModelConfig, device: torch.device) -> None:
    """Raise UserError for a dtype or an offload mode that is unknown or not available on a device."""
    if config.dtype not in DTYPES:
        raise UserError(f"model.dtype={config.dtype} is not one of {', '.join(DTYPES)}")
    if config.storage_dtype is not None and config.storage_dtype not in DTYPES:
        raise UserError(f"model.storage_dtype={config.storage_dtype} is not one of {', '.join(DTYPES)}")
    if config.offload not in OFFLOADS:
        raise UserError(f"model.offload={config.offload} is not one of {', '.join(OFFLOADS)}")
    if config.offload == "model" and device.type == "cpu":
        raise UserError("model.offload=model needs a GPU, and the device is the CPU: set model.offload=none")


def open_pipeline(config: ModelConfig, device: torch.device) -> FourDiffusionPipeline:
    """Load the model for ``generate`` and ``fit``, with the settings' scheduler, precision, memory layout and device.

    Settings that are None are the model's own; ``pipeline.generation_config`` then has the sampling settings. The VAE
    runs in the same precision as the other networks, as in the release: its activations are the largest part of an SDS
    step's memory.

    Raises:
        UserError: a setting that is unknown, not available here or contradicts the weights; or ``load_pipeline``'s.
    """
    config = resolve_dtype(config, device)
    check_precision(config, device)
    pipeline = load_pipeline(config.path, DTYPES[config.dtype])
    check_architecture(config, pipeline)
    settings = override(pipeline.generation_config, config)
    check_generation_config(settings)
    try:
        check_image_size(pipeline, settings.image_size)
    except ValueError as error:
        raise UserError(f"model.{error}, and model.path={config.path} is loaded") from error
    pipeline.generation_config = settings
    set_scheduler(pipeline, settings.scheduler, settings.timestep_spacing)
    if config.storage_dtype is not None:  # not the VAE: its backward pass needs the weights
        for module in (pipeline.unet, pipeline.motion, pipeline.text_encoder, pipeline.image_encoder):
            apply_layerwise_casting(module, DTYPES[config.storage_dtype], DTYPES[config.dtype])
    if config.channels_last:
        for module in (pipeline.unet, pipeline.vae):
            module.to(memory_format=torch.channels_last)
    if config.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if config.compile:
        pipeline.unet.compile()
    return pipeline


def load_pipeline(path: str | Path | None, dtype: torch.dtype = torch.float32) -> FourDiffusionPipeline:
    """Load a pipeline folder in ``dtype``; UserError if it is missing, of another kind, damaged or not finite."""
    if path is None or not (Path(path) / "model_index.json").is_file():
        raise UserError(f"model.path={path} holds no model: give a pipeline folder (one with model_index.json)")
    folder = Path(path)
    _check_files(folder)
    try:
        # without use_safetensors, missing weights would be read from pickles
        with _quiet("diffusers", "transformers"):
            pipeline = FourDiffusionPipeline.from_pretrained(
                folder, local_files_only=True, dtype=dtype, use_safetensors=True
            )
        _check_whole(folder, pipeline)
    except UserError:
        raise
    except Exception as error:  # the libraries raise different types for each file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the model in {folder} cannot be loaded ({reason}): restore the folder, or choose another"
        ) from error
    return pipeline


def _check_files(folder: Path) -> None:
    """Raise UserError for pipes and devices, for JSON that is not an object of finite numbers, and for huge sizes."""
    remedy = "restore the model's folder, or choose another"
    for path in sorted(folder.rglob("*")):
        if path.suffix != ".json":
            if not path.is_dir():
                require_file(path, remedy)
            continue
        content = read_json(path, remedy)
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds a {type(content).__name__}, not an object; {remedy}")
        if key := first_non_finite(content):
            raise UserError(f"{path}: {key} is NaN or infinite; {remedy}")
        for key, value in content.items() if path.name == "config.json" else ():
            most = MAX_LAYERS if "layers" in key or "blocks" in key else MAX_WIDTH
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int) and number > most:
                    raise UserError(f"{path}: {key}={number} is more than {most}: restore the file")


@contextlib.contextmanager
def _quiet(*libraries: str) -> Iterator[None]:
    """Silence the libraries' log messages about a folder: errors are reported in one line."""
    before = {name: logging.getLogger(name).level for name in libraries}
    for name in libraries:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def cast(module: Module, dtype: torch.dtype) -> Module:
    """Convert a network to a dtype without diffusers' warning about parts that must stay in float32: there are none."""
    with _quiet("diffusers"):
        return module.to(dtype)


def _check_whole(folder: Path, pipeline: FourDiffusionPipeline) -> None:
    """Raise ValueError for missing or unknown tensors, for which ``from_pretrained`` only warns, or non-finite ones."""
    _check_tokens(pipeline)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            _check_part(folder, name, part)
    _check_numbers(pipeline)


def _check_tokens(pipeline: FourDiffusionPipeline) -> None:
    """Raise ValueError for tokens or lengths that the text encoder cannot read."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder.config
    if len(tokenizer) < 256:  # one entry per byte at least
        raise ValueError(f"tokenizer: its vocabulary has {len(tokenizer)} entries")
    length, longest = tokenizer.model_max_length, encoder.max_position_embeddings
    if type(length) is not int or not 2 <= length <= longest:
        raise ValueError(f"tokenizer: model_max_length={length} must be a whole number from 2 to {longest}")
    used = {"pad_token_id": encoder.pad_token_id, "the highest entry": max(tokenizer.get_vocab().values())}
    used |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    for name, number in used.items():
        if type(number) is not int or not 0 <= number < encoder.vocab_size:
            raise ValueError(f"text_encoder: {name}={number} is none of its {encoder.vocab_size} tokens")


def _check_numbers(pipeline: FourDiffusionPipeline) -> None:
    """Raise ValueError for invalid numbers in the JSON files of scheduler, VAE and image processor."""
    kept = torch.as_tensor(pipeline.scheduler.alphas_cumprod)  # share of the picture's variance at each noise level
    if not bool(((kept >= 0) & (kept < 1)).all()) or bool((kept.diff() >= 0).any()) or len(kept) < 1:
        raise ValueError("scheduler: its betas are not a noise schedule, alphas_cumprod must fall inside [0, 1)")
    if (meaning := pipeline.scheduler.config.prediction_type) not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(f"scheduler: prediction_type={meaning} is not epsilon, sample or v_prediction")
    scale = pipeline.vae.config.scaling_factor
    if not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(f"vae: scaling_factor={scale} is not a positive number")
    for name, least in (("image_mean", -math.inf), ("image_std", 0.0)):
        values = getattr(pipeline.feature_extractor, name)
        if not all(isinstance(value, int | float) and least < value < math.inf for value in values):
            raise ValueError(f"feature_extractor: {name}={values} must be finite, and a deviation positive")


def _check_part(folder: Path, name: str, part: nn.Module) -> None:
    stored: set[str] = set()
    for path in (folder / name).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored.update(file.keys())
    if different := sorted(stored ^ part.state_dict().keys()):
        raise ValueError(f"{name}: the file and the model differ in {', '.join(different[:3])}")
    for key, value in part.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{name}: {key} has numbers that are NaN or infinite")


def architecture_of(pipeline: FourDiffusionPipeline) -> dict[str, Any]:
    """Return the sizes of a pipeline's networks under the names of ``ModelConfig``."""
    unet, motion, vae = pipeline.unet.config, pipeline.motion.config, pipeline.vae.config
    text, image = pipeline.text_encoder.config, pipeline.image_encoder.config
    of_unet: tuple[str, ...] = ("blocks_per_level", "head_dim", "context_dim", "num_image_tokens")
    of_unet += (
        "resampler_layers",
        "resampler_heads",
        "resampler_head_dim",
        "norm_groups",
        "prediction_type",
        "positions",
        "image_dim",
    )
    return {
        **{name: unet[name] for name in of_unet},
        "channels": list(unet.channels),
        "attention_levels": list(unet.attention_levels),
        "beta_end": pipeline.scheduler.config.beta_end,
        "motion_heads": motion.num_heads,
        "max_frames": motion.max_frames,
        "latent_channels": vae.latent_channels,
        "vae_channels": list(vae.block_out_channels),
        "vae_blocks_per_level": vae.layers_per_block,
        "vae_norm_groups": vae.norm_num_groups,
        "vae_attention": vae.mid_block_add_attention,
        "vocab_size": text.vocab_size,
        "text_length": text.max_position_embeddings,
        "text_layers": text.num_hidden_layers,
        "text_heads": text.num_attention_heads,
        "image_encoder_size": image.image_size,
        "image_patch": image.patch_size,
        "image_layers": image.num_hidden_layers,
        "image_heads": image.num_attention_heads,
    }


def check_architecture(config: ModelConfig, pipeline: FourDiffusionPipeline) -> None:
    """Raise UserError, which names both, for the first size in the settings that differs from the loaded model's."""
    for name, own in architecture_of(pipeline).items():
        given = getattr(config, name)
        if name == "prediction_type":
            given = VALUES.get(given, given)
        if given is not None and given != own:
            raise UserError(
                f"model.{name}={given} contradicts the weights in model.path={config.path}, which have "
                f"{name}={own}: leave model.{name} out, or load other weights"
            )


def with_own_settings(config: ModelConfig, pipeline: FourDiffusionPipeline) -> ModelConfig:
    """Return the settings, with the pipeline's values in place of None, for the record of a run folder."""
    own = architecture_of(pipeline) | {name: getattr(pipeline.generation_config, name) for name in _SAMPLING}
    filled = {name: value for name, value in own.items() if getattr(config, name) is None}
    return replace(config, **filled | {"prediction_type": own["prediction_type"]})


_SAMPLING = tuple(GenerationConfig.__dataclass_fields__)


def fresh_pipeline(config: ModelConfig, tokenizer: CLIPTokenizer, seed: int) -> FourDiffusionPipeline:
    """Return an untrained model; sizes and sampling defaults that are None in ``config`` are the release's."""
    sizes = architecture(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = MultiviewUNet(
            in_channels=sizes.latent_channels,
            channels=list(sizes.channels),
            attention_levels=list(sizes.attention_levels),
            blocks_per_level=sizes.blocks_per_level,
            head_dim=sizes.head_dim,
            context_dim=sizes.context_dim,
            image_dim=sizes.image_dim,
            num_image_tokens=sizes.num_image_tokens,
            resampler_layers=sizes.resampler_layers,
            resampler_heads=sizes.resampler_heads,
            resampler_head_dim=sizes.resampler_head_dim,
            norm_groups=sizes.norm_groups,
            prediction_type=sizes.prediction_type,
            positions=sizes.positions,
        )
        pipeline = FourDiffusionPipeline(
            unet=unet,
            motion=MotionModules(unet.block_channels(), sizes.motion_heads, sizes.max_frames, sizes.norm_groups),
            vae=encoders.fresh_vae(
                list(sizes.vae_channels),
                sizes.vae_blocks_per_level,
                sizes.vae_norm_groups,
                sizes.vae_attention,
                sizes.latent_channels,
            ),
            tokenizer=tokenizer,
            text_encoder=encoders.fresh_text_encoder(
                tokenizer, sizes.vocab_size, sizes.context_dim, sizes.text_layers, sizes.text_heads
            ),
            image_encoder=encoders.fresh_image_encoder(
                sizes.image_encoder_size, sizes.image_patch, sizes.image_dim, sizes.image_layers, sizes.image_heads
            ),
            feature_extractor=encoders.image_processor(sizes.image_encoder_size),
            scheduler=noise_schedule(sizes.beta_end),
        )
    pipeline.generation_config = override(GenerationConfig(), config)
    return pipeline

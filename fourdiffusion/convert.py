"""``convert``: released checkpoints to a pipeline folder, and trained motion layers to 4DM's file format."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fourdiffusion.diffusion import encoders, release
from fourdiffusion.diffusion.loading import DTYPES, cast, fresh_pipeline, load_pipeline
from fourdiffusion.diffusion.model_card import save_motion_folder
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.motion_sources import motion_config
from fourdiffusion.diffusion.motion_sources import read_motion as read_training_motion
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.schedulers import noise_schedule
from fourdiffusion.diffusion.settings import ModelConfig, architecture
from fourdiffusion.errors import UserError
from fourdiffusion.files import FOREIGN, read_foreign, write_foreign
from fourdiffusion.runs import run_record
from fourdiffusion.settings import ConvertConfig


def convert(config: ConvertConfig) -> None:
    """Read, check every key, shape and value, then write; after an error nothing is written."""
    if config.dtype not in DTYPES:
        raise UserError(f"dtype={config.dtype} is not one of {', '.join(DTYPES)}")
    if config.checkpoint is not None:
        _export_motion(config)
        return
    if (config.imagedream is None) == (config.model.path is None):
        raise UserError(
            "give imagedream=FILE for a pipeline folder, or model.path=FOLDER for a file of its motion layers"
        )
    for name in ("motion", "tokenizer"):
        if config.imagedream is None and getattr(config, name) is not None:
            raise UserError(
                f"{name}={getattr(config, name)} goes with imagedream=, and model.path is given: leave it out"
            )
    output = Path(config.output)
    if output.exists():
        raise UserError(f"output={output} exists: choose another, or delete it")
    if config.imagedream is None:
        _write_motion(config.model.path, output, DTYPES[config.dtype])
        return
    dtype = DTYPES[config.dtype]
    pipeline = read_release(Path(config.imagedream), config.motion, config.tokenizer, config.model, dtype)
    pipeline.save_whole(output)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    millions = sum(parameter.numel() for part in parts for parameter in part.parameters()) / 1e6
    tqdm.write(f"{output}: {millions:.1f} M parameters, every key of the input accounted for")


def read_release(
    imagedream: Path, motion: str | None, tokenizer: str | None, model: ModelConfig, dtype: torch.dtype
) -> FourDiffusionPipeline:
    """Return the pipeline of released files, for saving only: tables that are computed on loading are missing.

    Raises:
        UserError: a file that cannot be read safely, a missing or unknown key, a tensor of another shape or of
            integers, a number that is not finite, no vocabulary.
    """
    sizes = architecture(model)
    tensors = {} if imagedream.is_dir() else release.unwrap(read_foreign(imagedream))
    if tensors and all(key.startswith(release.MOTION_PREFIX) for key in tensors):
        raise UserError(f"imagedream={imagedream} holds motion layers: give it as motion=")
    beside = [imagedream / "tokenizer", imagedream.parent / "tokenizer"]
    vocabulary = encoders.find_tokenizer([Path(tokenizer)] if tokenizer else beside, sizes.text_length)
    if len(vocabulary) > sizes.vocab_size:
        raise UserError(
            f"tokenizer: {len(vocabulary)} entries, the text encoder has {sizes.vocab_size}: give CLIP's own"
        )
    with torch.device("meta"):  # names and shapes without memory
        pipeline = fresh_pipeline(model, vocabulary, seed=0)
    unet, trained = pipeline.unet, pipeline.motion
    mappings = release.imagedream_mappings(unet, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder)
    tensors = tensors or _read_folder(imagedream, mappings)
    expected: dict[str, Tensor] = {}
    for name, where in mappings.items():
        expected |= release.to_release(where, pipeline.components[name].state_dict())
    unread = [key for key in tensors if release.dropped(key, sizes.text_layers)]
    _check(f"imagedream={imagedream}", expected, tensors, unread)
    for name, where in tqdm(mappings.items(), desc="convert", unit="part", leave=False):
        _fill(pipeline.components[name], release.from_release(where, tensors), dtype)

    if motion is None:
        fresh = MotionModules(unet.block_channels(), sizes.motion_heads, sizes.max_frames, sizes.norm_groups)
        pipeline.register_modules(motion=cast(fresh, dtype))
    else:
        _fill(trained, read_motion(Path(motion), unet, trained), dtype)
    pipeline.text_encoder.config.pad_token_id = 0  # OpenCLIP's
    pipeline.register_modules(scheduler=noise_schedule(sizes.beta_end))  # its tables are on the meta device, too
    return pipeline


def read_motion(path: Path, unet: MultiviewUNet, motion: MotionModules) -> dict[str, Tensor]:
    """Return the state dict of ``motion`` from a file with 4DM's key names."""
    tensors = release.unwrap(read_foreign(path))
    if not any(key.startswith(release.MOTION_PREFIX) for key in tensors):
        raise UserError(f"motion={path} holds no motion layers (keys that begin with {release.MOTION_PREFIX})")
    mappings = release.motion_mappings(unet, motion)
    tables = release.position_tables(unet, motion)
    _check(f"motion={path}", release.to_release(mappings, motion.state_dict()) | tables, tensors, [])
    for key, table in tables.items():
        if not torch.allclose(tensors[key].float(), table, atol=1e-2):  # half precision rounds by up to 0.004
            raise UserError(f"motion={path}: {key} is not the table of frame positions that 4DM uses")
    return release.from_release(mappings, tensors)


def _write_motion(folder: str | None, output: Path, dtype: torch.dtype) -> None:
    if output.suffix not in FOREIGN:
        raise UserError(f"output={output}: give a file that ends in {' or '.join(FOREIGN)}")
    pipeline = load_pipeline(folder)
    state = release.to_release(
        release.motion_mappings(pipeline.unet, pipeline.motion), pipeline.motion.state_dict()
    ) | release.position_tables(pipeline.unet, pipeline.motion)
    write_foreign(output, {key: value.to(dtype).contiguous() for key, value in state.items()})
    tqdm.write(f"{output}: {len(state)} tensors under 4DM's names")


def _export_motion(config: ConvertConfig) -> None:
    """Write the motion layers of a training checkpoint as a folder for ``load_motion``, with a model card."""
    given, output = Path(str(config.checkpoint)), Path(config.output)
    if output.exists():
        raise UserError(f"output={output} exists: choose another, or delete it")
    if not given.exists():
        raise UserError(f"checkpoint={given}: no such file or folder")
    run = next((folder for folder in (given, *given.parents[:2]) if (folder / "config.yaml").is_file()), given.parent)
    base = Path(config.model.path or str(run_record(run)["settings"].get("model", {}).get("path")))
    with torch.device("meta"):  # for the names of its blocks
        unet = MultiviewUNet.from_config(MultiviewUNet.load_config(base / "unet"))
    motion = MotionModules.from_config(motion_config(base))
    motion.load_state_dict(read_training_motion(given, unet, motion, "checkpoint"))
    save_motion_folder(cast(motion, DTYPES[config.dtype]), output, run)
    tqdm.write(f"{output}: {len(motion.layers)} motion modules and a model card")


def _read_folder(folder: Path, mappings: dict[str, dict[str, release.KeyMapping]]) -> dict[str, Tensor]:
    """Read an ImageDream diffusers folder under the keys of the single file, which its UNet has kept."""
    tensors: dict[str, Tensor] = {}
    for name, where in mappings.items():
        files = sorted((folder / name).glob("*.safetensors")) or sorted((folder / name).glob("*.bin"))
        if not files:
            raise UserError(f"imagedream={folder}: {name} holds no .safetensors and no .bin file")
        state: dict[str, Tensor] = {}
        for file in files:
            state |= release.unwrap(read_foreign(file))
        if name == "unet":
            tensors |= {release.UNET_PREFIX + key: value for key, value in state.items()}
            continue
        # older versions of transformers wrapped the encoder in another module, and stored a constant table
        state = {key.removeprefix("text_model.").removeprefix("vision_model."): value for key, value in state.items()}
        state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
        if strange := sorted(where.keys() ^ state.keys()):
            raise UserError(f"imagedream={folder}: {name} is not ImageDream's, compare {_some(strange)}")
        tensors |= release.to_release(where, state)
    return tensors


def _check(what: str, expected: dict[str, Tensor], tensors: dict[str, Tensor], dropped: Iterable[str]) -> None:
    """Raise UserError that lists what is missing, unknown, of another shape, not floating point or not finite."""
    missing = sorted(expected.keys() - tensors.keys())
    strange = sorted(tensors.keys() - expected.keys() - set(dropped))
    shapes = [
        f"{key} {tuple(tensors[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    found = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (("missing", missing), ("unknown", strange), ("of another shape", shapes))
        if names
    ]
    if found:
        raise UserError(f"{what} has another architecture than model.*; {'; '.join(found)}")
    if integers := [f"{key} ({tensors[key].dtype})" for key in expected if not tensors[key].is_floating_point()]:
        raise UserError(f"{what} holds weights that are not floating point: {_some(integers)}; download it again")
    if broken := [key for key in expected if not bool(tensors[key].isfinite().all())]:
        raise UserError(f"{what} holds weights that are NaN or infinite: {_some(broken)}; download it again")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _fill(module: nn.Module, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Replace the tensors of a meta module; UserError if one overflows in ``dtype``."""
    cast = {name: value.to(dtype) for name, value in state.items()}
    if broken := [name for name, value in cast.items() if not bool(value.isfinite().all())]:
        raise UserError(f"dtype={dtype}: {_some(broken)} is too large for it; choose bfloat16 or float32")
    module.load_state_dict(cast, assign=True)

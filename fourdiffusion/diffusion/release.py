"""Key mappings between this package's parameters and the released checkpoints.

A mapping goes from a parameter's name here to its key in the release. ``to_release`` and ``from_release`` apply it in
either direction: the same tables load a release, write one, and (on the meta device) list its keys and shapes.
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fourdiffusion.diffusion.encoders import CLIPTextModel, CLIPVisionModel
from fourdiffusion.diffusion.motion import MotionModules, frame_positions
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "vae_model."
CLIP_PREFIX = "clip_model.model."
MOTION_PREFIX = "module."


class KeyMapping(NamedTuple):
    """The key of a parameter in a release, and the difference of its tensor."""

    key: str
    qkv_index: int | None = None  # of a fused projection: 0 the query's rows, 1 the key's, 2 the value's
    is_conv1x1: bool = False  # a 1 x 1 convolution in the release, a linear layer here


def to_release(mappings: dict[str, KeyMapping], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under the release's keys, projections fused."""
    parts: dict[str, list[Tensor]] = {}
    for name, mapping in sorted(mappings.items(), key=lambda item: item[1].qkv_index or 0):
        value = state[name][..., None, None] if mapping.is_conv1x1 else state[name]
        parts.setdefault(mapping.key, []).append(value)
    return {key: values[0] if len(values) == 1 else torch.cat(values) for key, values in parts.items()}


def from_release(mappings: dict[str, KeyMapping], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the release's tensors as a state dict of this package's networks."""
    state = {}
    for name, mapping in mappings.items():
        value = tensors[mapping.key]
        if mapping.qkv_index is not None:
            value = value.chunk(3)[mapping.qkv_index]
        state[name] = value[..., 0, 0] if mapping.is_conv1x1 else value
    return state


def unwrap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the prefixes that torch's wrappers add to every key.

    DistributedDataParallel adds ``module.``, torch.compile ``_orig_mod.``. The single ``module.`` of 4DM's own keys
    is kept.
    """
    inner = ("_orig_mod.", MOTION_PREFIX, UNET_PREFIX, VAE_PREFIX, CLIP_PREFIX)
    while tensors:
        prefix = next((p for p in ("_orig_mod.", MOTION_PREFIX) if all(key.startswith(p) for key in tensors)), None)
        if prefix is None:
            break
        stripped = {key.removeprefix(prefix): value for key, value in tensors.items()}
        if prefix == MOTION_PREFIX and not any(key.startswith(inner) for key in stripped):
            break
        tensors = stripped
    return tensors


def imagedream_mappings(
    unet: MultiviewUNet, vae: nn.Module, text: CLIPTextModel, image: CLIPVisionModel
) -> dict[str, dict[str, KeyMapping]]:
    """Return {component: {parameter: its key}} for the single file of the ImageDream release."""
    return {
        "unet": {name: KeyMapping(UNET_PREFIX + key) for name, key in unet_keys(unet).items()},
        "vae": _vae_mappings(vae),
        "text_encoder": _clip_mappings(text, CLIP_PREFIX),
        "image_encoder": _clip_mappings(image, CLIP_PREFIX + "visual."),
    }


def dropped(key: str, text_layers: int) -> bool:
    """Return whether 4DM does not use a key of the ImageDream release.

    These are the text tower's last block (SD 2.1 uses the one before), CLIP's parameters for comparing texts with
    images, and tables of the noise schedule.
    """
    inside = key.removeprefix(CLIP_PREFIX)
    if inside != key:
        last = f"transformer.resblocks.{text_layers}."
        return inside in ("text_projection", "logit_scale", "visual.proj") or inside.startswith(last)
    return re.fullmatch(r"betas|logvar|(\w+_)?alphas_cumprod\w*|posterior_\w+", key) is not None


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_FIXED = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "camera_embedding.linear_1": "camera_embed.0",
    "camera_embedding.linear_2": "camera_embed.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
    "middle.resnet": "middle_block.0",
    "middle.attention": "middle_block.1",
    "middle_out": "middle_block.2",
    "resampler": "image_embed",
}
_INNER = [  # inside a block or the resampler, in this order
    (r"\.block\.", r".transformer_blocks.0."),
    (r"(attn\d)\.to_out\.", r"\1.to_out.0."),
    (r"to_(k|v)_image", r"to_\1_ip"),
    (r"image_embed\.attention\.(\d+)\.", r"image_embed.layers.\1.0."),
    (r"image_embed\.feed_forward\.(\d+)\.", r"image_embed.layers.\1.1."),
    (r"norm_image", r"norm1"),
    (r"norm_queries", r"norm2"),
]


def _block_positions(unet: MultiviewUNet) -> dict[str, str]:
    """Return {module prefix here: in the release} for every block and resampling layer."""
    mappings: dict[str, str] = {}
    index = 1
    for i, level in enumerate(unet.down):
        for j, _ in enumerate(level.blocks):
            mappings[f"down.{i}.blocks.{j}.resnet"] = f"input_blocks.{index}.0"
            mappings[f"down.{i}.blocks.{j}.attention"] = f"input_blocks.{index}.1"
            index += 1
        if level.resample is not None:
            mappings[f"down.{i}.resample.conv"] = f"input_blocks.{index}.0.op"
            index += 1
    index = 0
    for i, level in enumerate(unet.up):
        for j, block in enumerate(level.blocks):
            mappings[f"up.{i}.blocks.{j}.resnet"] = f"output_blocks.{index}.0"
            mappings[f"up.{i}.blocks.{j}.attention"] = f"output_blocks.{index}.1"
            if level.resample is not None and j == len(level.blocks) - 1:
                mappings[f"up.{i}.resample.conv"] = f"output_blocks.{index}.{1 + (block.attention is not None)}.conv"
            index += 1
    return mappings


def unet_keys(unet: MultiviewUNet) -> dict[str, str]:
    """Return {parameter: its key in the ImageDream release without ``model.diffusion_model.``}."""
    mappings = {**_FIXED, **_block_positions(unet)}
    keys = {}
    for name in unet.state_dict():
        prefix = max((p for p in mappings if name.startswith(p + ".")), key=len)
        key = mappings[prefix] + name[len(prefix) :]
        if "resnet" in prefix or prefix == "middle_out":
            layer = name[len(prefix) + 1 :].split(".")[0]
            key = key.replace(f".{layer}.", f".{_RESNET[layer]}.")
        for pattern, replacement in _INNER:
            key = re.sub(pattern, replacement, key)
        keys[name] = key
    return keys


def motion_keys(unet: MultiviewUNet, motion: MotionModules) -> dict[str, str]:
    """Return {motion parameter: its key in the 4DM release without ``module.``}.

    The release numbers the layers of a block including the motion modules. Its position tables are constants, not
    weights; here they are computed.
    """
    mappings = []
    for prefix, key in _block_positions(unet).items():
        if prefix.endswith("resnet"):
            mappings.append(key[: -len(".0")])
    down = sum(len(level.blocks) for level in unet.down)
    mappings.insert(down, "middle_block")
    parts = [
        f"{prefix}.{1 + (block.attention is not None)}.temporal_transformer."
        for prefix, block in zip(mappings, unet.blocks(), strict=True)
    ]
    keys = {}
    for name in motion.state_dict():
        _, index, rest = name.split(".", 2)
        rest = re.sub(r"^attention_norms\.", "transformer_blocks.0.norms.", rest)
        rest = re.sub(r"^attentions\.", "transformer_blocks.0.attention_blocks.", rest)
        rest = re.sub(r"^(ff_norm|ff)\.", r"transformer_blocks.0.\1.", rest)
        rest = rest.replace("to_out.", "to_out.0.")
        keys[name] = parts[int(index)] + rest
    return keys


def motion_mappings(unet: MultiviewUNet, motion: MotionModules) -> dict[str, KeyMapping]:
    """Return {motion parameter: its key in the 4DM release}."""
    return {name: KeyMapping(MOTION_PREFIX + key) for name, key in motion_keys(unet, motion).items()}


def position_tables(unet: MultiviewUNet, motion: MotionModules) -> dict[str, Tensor]:
    """Return the release's constants: one table [1, max_frames, C] of frame positions for each temporal attention."""
    tables = {}
    for name, key in motion_keys(unet, motion).items():
        if name.endswith("to_q.weight"):
            channels = motion.get_parameter(name).shape[1]
            table = frame_positions(motion.config.max_frames, channels)[None]
            tables[MOTION_PREFIX + key.replace("to_q.weight", "pos_encoder.pe")] = table
    return tables


_VAE = [
    (r"mid_block\.resnets\.0", r"mid.block_1"),
    (r"mid_block\.resnets\.1", r"mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", r"mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_(q|k|v)", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", r"mid.attn_1.proj_out"),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)", r"up.\1.block.\2"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"conv_norm_out", r"norm_out"),
    (r"conv_shortcut", r"nin_shortcut"),
]


def _vae_mappings(vae: nn.Module) -> dict[str, KeyMapping]:
    """Map the VAE; the release numbers the decoder's levels from the image inwards, diffusers outwards."""
    state = vae.state_dict()
    last = max(int(match[1]) for name in state if (match := re.search(r"up_blocks\.(\d+)", name)))
    mappings = {}
    for name, value in state.items():
        key = re.sub(r"(?<=up_blocks\.)\d+", lambda match: str(last - int(match[0])), name)
        for pattern, replacement in _VAE:
            key = re.sub(pattern, replacement, key)
        mappings[name] = KeyMapping(VAE_PREFIX + key, is_conv1x1="attentions" in name and value.ndim == 2)
    return mappings


_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
}


def _clip_mappings(tower: CLIPTextModel | CLIPVisionModel, prefix: str) -> dict[str, KeyMapping]:
    """Map a CLIP encoder; OpenCLIP fuses the attention's three projections into one weight."""
    mappings = {}
    for name in tower.state_dict():
        key = name
        for ours, theirs in _CLIP.items():
            key = key.replace(ours, theirs)
        fused = re.search(r"self_attn\.(q|k|v)_proj\.", key)
        if fused is not None:
            key = key.replace(fused[0], "attn.in_proj_")
        mappings[name] = KeyMapping(prefix + key, qkv_index="qkv".index(fused[1]) if fused else None)
    return mappings

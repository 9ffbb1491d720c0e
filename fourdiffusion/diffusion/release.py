"""Names of the released checkpoints' keys, made from the names of our own parameters.

The map runs from ours to theirs and is one to one, so the same lines load a release and write one.
"""

import re

from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet

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
    """Our module prefix -> the release's, for every block and resampling layer of the two halves."""
    places: dict[str, str] = {}
    index = 1
    for i, level in enumerate(unet.down):
        for j, _ in enumerate(level.blocks):
            places[f"down.{i}.blocks.{j}.resnet"] = f"input_blocks.{index}.0"
            places[f"down.{i}.blocks.{j}.attention"] = f"input_blocks.{index}.1"
            index += 1
        if level.resample is not None:
            places[f"down.{i}.resample.conv"] = f"input_blocks.{index}.0.op"
            index += 1
    index = 0
    for i, level in enumerate(unet.up):
        for j, block in enumerate(level.blocks):
            places[f"up.{i}.blocks.{j}.resnet"] = f"output_blocks.{index}.0"
            places[f"up.{i}.blocks.{j}.attention"] = f"output_blocks.{index}.1"
            if level.resample is not None and j == len(level.blocks) - 1:
                places[f"up.{i}.resample.conv"] = f"output_blocks.{index}.{1 + (block.attention is not None)}.conv"
            index += 1
    return places


def unet_keys(unet: MultiviewUNet) -> dict[str, str]:
    """Our parameter name -> its key in the ImageDream release, without the ``model.diffusion_model.`` prefix."""
    places = {**_FIXED, **_block_positions(unet)}
    keys = {}
    for name in unet.state_dict():
        prefix = max((p for p in places if name.startswith(p + ".")), key=len)
        key = places[prefix] + name[len(prefix) :]
        if "resnet" in prefix or prefix == "middle_out":
            layer = name[len(prefix) + 1 :].split(".")[0]
            key = key.replace(f".{layer}.", f".{_RESNET[layer]}.")
        for pattern, replacement in _INNER:
            key = re.sub(pattern, replacement, key)
        keys[name] = key
    return keys


def motion_keys(unet: MultiviewUNet, motion: MotionModules) -> dict[str, str]:
    """Our motion parameter name -> its key in the 4DM release, without the ``module.`` prefix.

    The release numbers the layers of a block as they stand with motion modules in between. Its position tables are
    constants, not weights; ours are computed.
    """
    places = []
    for prefix, key in _block_positions(unet).items():
        if prefix.endswith("resnet"):
            places.append(key[: -len(".0")])
    down = sum(len(level.blocks) for level in unet.down)
    places.insert(down, "middle_block")
    parts = [
        f"{place}.{1 + (block.attention is not None)}.temporal_transformer."
        for place, block in zip(places, unet.blocks(), strict=True)
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

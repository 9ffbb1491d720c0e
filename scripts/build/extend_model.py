"""Make a model of twice the resolution from a small one: its VAE gets one more level, everything else is copied.

    python scripts/build/extend_model.py data/models/tiny runs/small_start

The new level begins as what it replaces: the encoder's is fitted to the old first convolution of the halved picture,
the decoder's repeats pixels. Latents, UNet, motion layers and towers keep their sizes, so that training goes on from
the old weights. The result is the same for the same input, to the last bit on one machine.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fourdiffusion.diffusion.loading import load_pipeline


def main() -> None:
    """Extend the model and write the new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    pipeline = load_pipeline(str(options.model)).to(torch.float32)
    pipeline.vae = extended(pipeline.vae)
    defaults = pipeline.generation_config
    pipeline.generation_config = replace(defaults, image_size=2 * defaults.image_size)
    pipeline.save_whole(options.output)
    print(f"{options.output}: {pipeline.generation_config.image_size} pixels")


def extended(old: AutoencoderKL, num_steps: int = 400) -> AutoencoderKL:
    """Return a VAE of twice the old one's factor, whose latents are near the old ones of the halved picture."""
    channels = old.config.block_out_channels
    config = dict(old.config) | {
        "block_out_channels": (channels[0], *channels),
        "down_block_types": (old.config.down_block_types[0], *old.config.down_block_types),
        "up_block_types": (*old.config.up_block_types, old.config.up_block_types[-1]),
        "sample_size": 2 * old.config.sample_size,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        new = AutoencoderKL.from_config(config)
    weights = new.state_dict()
    weights |= {_place(name): value for name, value in old.state_dict().items() if name != "encoder.conv_in.weight"}
    new.load_state_dict(weights)
    first, last = new.encoder.down_blocks[0], new.decoder.up_blocks[-1]
    for resnet in [*first.resnets, *last.resnets]:  # residual blocks that begin as the identity
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)
    nn.init.dirac_(new.decoder.up_blocks[-2].upsamplers[0].conv.weight)
    nn.init.zeros_(new.decoder.up_blocks[-2].upsamplers[0].conv.bias)
    _fit_first_level(nn.Sequential(new.encoder.conv_in, first), old.encoder.conv_in, num_steps)
    return new


def _place(name: str) -> str:
    """Return where an old weight goes: the encoder's levels move down by one, the decoder's keep their numbers."""
    parts = name.split(".")
    if parts[:2] == ["encoder", "down_blocks"]:
        parts[2] = str(int(parts[2]) + 1)
    return ".".join(parts)


def _fit_first_level(level: nn.Module, target: nn.Module, num_steps: int) -> None:
    """Let a level of stride 2 give what ``target`` gives of the halved picture; both are linear at the start."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(level.parameters(), lr=1e-2)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / num_steps)
        images = _pictures(generator)
        with torch.no_grad():
            wanted = target(functional.avg_pool2d(images, 2))
        loss = functional.mse_loss(level(images), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _pictures(generator: torch.Generator, count: int = 4, side: int = 32) -> Tensor:
    """Return random pictures in [-1, 1] with structure at every scale, [count, 3, side, side]."""
    sizes = [side >> octave for octave in range(5)]
    octaves = [torch.randn(count, 3, size, size, generator=generator) for size in sizes]
    total = torch.stack([functional.interpolate(octave, (side, side), mode="bilinear") for octave in octaves]).sum(0)
    return (0.6 * total).clamp(-1, 1)


if __name__ == "__main__":
    main()

"""What a run leaves: the whole model, and the motion layers as a folder that can be uploaded as it is."""

from pathlib import Path

import torch

from fourdiffusion.datasets.sampling import ClipSamples
from fourdiffusion.diffusion.lora import merge_lora
from fourdiffusion.diffusion.model_card import save_motion_folder
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.train.settings import TrainConfig


def export(config: TrainConfig, pipeline: FourDiffusionPipeline, data: ClipSamples, output: Path) -> None:
    """Write ``model/``, a diffusers folder in float32, and after stage motion ``motion/`` with its model card.

    After stage vae the latents' scale is measured on the data first. LoRA layers are merged into the UNet.
    """
    if config.stage == "vae":
        with torch.no_grad():
            images = torch.cat([data[0, number].target.flatten(0, 1) for number in range(64)])
            z = pipeline.vae.encode(images.to(pipeline.vae.device) * 2 - 1).latent_dist.mean
        pipeline.vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    if config.lora_rank:
        merge_lora(pipeline.unet)
    pipeline.save_whole(output / "model")
    if config.stage == "motion":
        save_motion_folder(pipeline.motion, output / "motion", output)

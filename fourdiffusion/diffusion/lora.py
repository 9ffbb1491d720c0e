"""LoRA on the attention of the frozen UNet (Hu et al. 2022), through the package peft: beyond the paper, an option."""

from typing import Any

import torch
from torch import nn

TARGETS = r".*\.attn[12]\.to_(q|k|v|out)"  # self-attention and cross-attention of every block


def add_lora(unet: nn.Module, rank: int, seed: int) -> nn.ModuleDict:
    """Add adapters to the UNet's attention, in place, and return their weights alone.

    Adapters start at zero: the output stays what it was.

    Args:
        unet: whose linear layers that match TARGETS get adapters.
        rank: of the adapters.
        seed: of their initialization.
    """
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), unet)
    weights = {name.replace(".", "-"): nn.ModuleList([layer.lora_A, layer.lora_B]) for name, layer in _layers(unet)}
    return nn.ModuleDict(weights)


def merge_lora(unet: nn.Module) -> None:
    """Add the adapters to the weights and remove them: the UNet has its own modules and names again."""
    for name, layer in list(_layers(unet)):
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(unet.get_submodule(parent), last, layer.get_base_layer())


def _layers(unet: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in unet.named_modules() if isinstance(module, LoraLayer)]

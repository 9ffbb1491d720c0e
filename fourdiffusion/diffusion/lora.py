"""LoRA on the attention of the frozen UNet (Hu et al. 2022), through the package peft. Optional, not in the paper."""

from typing import Any

import torch
from torch import nn

TARGETS = r".*\.attn[12]\.to_(q|k|v|out)"  # self-attention and cross-attention of every block


def add_lora(unet: nn.Module, rank: int, seed: int) -> nn.ModuleDict:
    """Add adapters to the UNet's attention, in place, and return only their weights.

    Adapters start at zero: the output does not change.

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
    """Merge the adapters into the weights and remove them, which restores the UNet's own modules and names."""
    for name, layer in list(_layers(unet)):
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(unet.get_submodule(parent), last, layer.get_base_layer())


def _layers(unet: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in unet.named_modules() if isinstance(module, LoraLayer)]

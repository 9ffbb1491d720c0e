"""Where tensors live."""

import torch

from fourdiffusion.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device called ``name``: cpu, cuda, cuda:N, or auto for a GPU where there is one. UserError for any other."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unknown = UserError(f"device={name} is unknown: choose auto, cpu or cuda")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown from error
    if device.type not in ("cpu", "cuda"):
        raise unknown
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}, but torch sees no CUDA GPU: choose device=cpu")
    return device

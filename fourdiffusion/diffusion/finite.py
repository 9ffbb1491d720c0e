"""Check inputs and outputs of networks for NaN and infinity before anything is written."""

from torch import Tensor

from fourdiffusion.errors import UserError


def require_finite(value: Tensor, name: str) -> Tensor:
    """Return ``value``; UserError that begins with ``name`` if any of its numbers is NaN or infinite."""
    finite = value.isfinite()
    if not bool(finite.all()):
        wrong = finite.numel() - int(finite.sum())
        raise UserError(
            f"{name} has {wrong} of {finite.numel()} numbers that are NaN or infinite: check the model's weights and "
            "settings; float16 overflows where bfloat16 and float32 do not (model.dtype)"
        )
    return value

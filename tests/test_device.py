"""Which type a device multiplies fastest is measured, once."""

import time
from pathlib import Path

import pytest
import torch

from fourdiffusion.device import bf16_is_faster
from fourdiffusion.diffusion import loading
from fourdiffusion.diffusion.settings import ModelConfig

CPU = torch.device("cpu")


def test_bf16_speed_is_what_larger_products_show_and_measured_once() -> None:
    faster = bf16_is_faster(CPU)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(384, 384, dtype=dtype)
        seconds[dtype] = min(_clock(a) for _ in range(3))
    ratio = seconds[torch.bfloat16] / seconds[torch.float32]
    if not 0.5 < ratio < 1.3:  # beside other processes a near tie says nothing
        assert faster == (ratio < 0.8)
    began = time.perf_counter()
    assert bf16_is_faster(CPU) == faster and time.perf_counter() - began < 1e-3


@pytest.mark.parametrize("faster, dtype", [(True, "bfloat16"), (False, "float32")])
def test_auto_is_the_faster_dtype_and_that_of_the_run(
    faster: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "bf16_is_faster", lambda device: faster)
    auto = ModelConfig("m", dtype="auto")
    assert loading.resolve_dtype(auto, CPU, tmp_path).dtype == loading.resolve_dtype(auto, CPU).dtype == dtype
    assert loading.resolve_dtype(ModelConfig("m", dtype="float16"), CPU, tmp_path).dtype == "float16"
    for known in ("float32", "bfloat16"):
        (tmp_path / "config.yaml").write_text(f"settings: {{model: {{dtype: {known}}}}}")
        assert loading.resolve_dtype(auto, CPU, tmp_path).dtype == known


def _clock(a: torch.Tensor) -> float:
    began = time.perf_counter()
    a @ a
    return time.perf_counter() - began

"""The script that measures the full-size model, on a model of no size; and how large the release is."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.pipeline import ModelConfig, fresh_pipeline

SCRIPT = Path(__file__).parents[1] / "scripts/full_size.py"


def test_the_release_has_two_and_a_half_billion_parameters() -> None:
    tokenizer = encoders.train_tokenizer(["a cat"], 512, 77)
    with torch.device("meta"):
        pipeline = fresh_pipeline(ModelConfig(), tokenizer, seed=0)
    millions = {
        name: sum(weight.numel() for weight in part.parameters()) / 1e6
        for name, part in pipeline.components.items()
        if isinstance(part, nn.Module)
    }
    assert millions == pytest.approx(
        {"unet": 941.7, "motion": 453.2, "vae": 83.7, "text_encoder": 340.4, "image_encoder": 630.8}, abs=0.1
    )


def test_the_table_of_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("full_size", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.write_model(tmp_path / "model", script.TINY)
    words = ["--tiny", "--device", "cpu", "--frames", "2", "--views", "2", "--model", str(tmp_path / "model")]
    names = ["generate, bfloat16", "fit, bfloat16, both chunks", "generate, bfloat16, offload"]
    script.print_table(words, names)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == names and {len(row) for row in rows} == {7}
    for row in rows[2:4]:
        assert 0 < float(row[1]) < 3 and row[2] == "12 GB"
        assert all(float(cell) > 0 for cell in row[3:] if cell)
    assert rows[4][1].startswith("fails: ") and "needs a GPU" in rows[4][1]
    assert script.suffices(11.5) == "16 GB" and script.suffices(90.0) == "more than 80 GB"

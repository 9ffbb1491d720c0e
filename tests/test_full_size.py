"""The script that measures the full-size model, at the small model's sizes; and how large the release is."""

import subprocess
from pathlib import Path

import full_size
import pytest
import torch
from forks import Fork
from torch import nn

from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.loading import fresh_pipeline
from fourdiffusion.diffusion.settings import ModelConfig

pytestmark = pytest.mark.slow


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


def test_the_table_of_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        fork = Fork(lambda: full_size.main(full_size.options(command[2:])), tmp_path)
        return subprocess.CompletedProcess(command, fork.wait() or 0, fork.said(), fork.said())

    monkeypatch.setattr(subprocess, "run", run)
    full_size.write_model(tmp_path / "model", full_size.settings(tiny=True).model)
    words = ["--tiny", "--size", "16", "--device", "cpu", "--frames", "2", "--views", "2"]
    words += ["--model", str(tmp_path / "model")]
    names = ["generate, bfloat16", "fit, bfloat16, both chunks", "generate, bfloat16, offload"]
    full_size.print_table(words, names)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == names and {len(row) for row in rows} == {7}
    for row in rows[2:4]:
        assert 0 < float(row[1]) < 3 and row[2] == "12 GB"
        assert all(float(cell) > 0 for cell in row[3:] if cell)
    assert rows[4][1].startswith("fails: ") and "needs a GPU" in rows[4][1]
    assert full_size.suffices(11.5) == "16 GB" and full_size.suffices(90.0) == "more than 80 GB"

"""Training: what each stage touches, resuming after SIGKILL, several processes, mistakes."""

import dataclasses
import json
import shutil
import signal
import time
from pathlib import Path

import forks
import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from tiny_model import FRAMES, tiny_config, write_clips, write_model
from torch import Tensor

from fourdiffusion import cli
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.errors import UserError
from fourdiffusion.files import load_tensors
from fourdiffusion.runs import open_run
from fourdiffusion.train.loop import train
from fourdiffusion.train.settings import TrainConfig

PARTS = ("unet", "motion", "vae", "text_encoder", "image_encoder")


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "model")


def settings(stage: str, base: Path, clips: Path, output: Path, /, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "stage": stage,
        "output": str(output),
        "max_steps": 2,
        "batch_size": 1,
        "learning_rate": 1e-3,
        "cpu": True,
        "log_every": 1,
        "validation_every": 0,
        "model": tiny_config(str(base)),
        "data": DataConfig(str(clips), num_views=2, num_frames=3),
    }
    return TrainConfig(**values | changes)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a pipeline folder."""
    return {
        f"{part}.{name}": value
        for part in PARTS
        for path in sorted((folder / part).glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def equal(a: Path, b: Path) -> bool:
    """Are all weights of two pipeline folders the same to the last bit?"""
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged_steps(output: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]


# ---- what a stage touches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage, trained",
    [
        ("vae", {"vae"}),
        ("clip", {"text_encoder", "image_encoder"}),
        ("base", {"unet", "text_encoder", "image_encoder"}),
        ("motion", {"motion"}),
    ],
)
def test_a_stage_changes_its_own_tensors_only(
    base: Path, clips: Path, tmp_path: Path, stage: str, trained: set[str]
) -> None:
    train(settings(stage, base, clips, tmp_path / "run", max_steps=3, batch_size=4 if stage == "clip" else 1))
    before, after = weights(base), weights(tmp_path / "run/model")
    assert before.keys() == after.keys()
    for name, value in before.items():
        idle = ".layers.1." in name or "post_layernorm" in name  # behind the image tower's second-to-last block
        learns = name.split(".")[0] in trained and not (name.startswith("image_encoder") and idle)
        assert torch.equal(after[name], value) != learns, name
    assert logged_steps(tmp_path / "run") == [1, 2, 3]
    scale = [load_pipeline(folder).vae.config.scaling_factor for folder in (base, tmp_path / "run/model")]
    assert (scale[0] == scale[1]) == (stage != "vae")  # measured on the data after stage=vae


def test_gradient_checkpointing_and_workers_change_nothing(base: Path, clips: Path, tmp_path: Path) -> None:
    train(settings("motion", base, clips, tmp_path / "plain"))
    train(settings("motion", base, clips, tmp_path / "other", gradient_checkpointing=True, num_workers=1))
    first, second = weights(tmp_path / "plain/model"), weights(tmp_path / "other/model")
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_a_model_from_nothing(clips: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        config = settings("base", tmp_path, clips, tmp_path / name, max_steps=1, model=tiny_config())
        train(config)
    assert equal(tmp_path / "one/model", tmp_path / "two/model")
    texts = [(tmp_path / name / "model/tokenizer/tokenizer.json").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1]


# ---- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["vae", "base"])
def test_resumed_equals_uninterrupted(base: Path, clips: Path, tmp_path: Path, stage: str) -> None:
    train(settings(stage, base, clips, tmp_path / "whole", max_steps=4))
    config = settings(stage, base, clips, tmp_path / "parts", validation_every=1, validation_num_inference_steps=1)
    train(config)
    assert load_tensors(tmp_path / "parts/checkpoint.safetensors")[1] == {"step": 2, "verb": "train"}
    config.max_steps = 4
    train(config)
    first, second = (load_tensors(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "parts"))
    assert first[1] == second[1] == {"step": 4, "verb": "train"} and first[0].keys() == second[0].keys()
    assert not [name for name in first[0] if not torch.equal(first[0][name], second[0][name])]
    assert equal(tmp_path / "whole/model", tmp_path / "parts/model")
    assert logged_steps(tmp_path / "parts") == [1, 2, 3, 4]
    assert [path.name for path in sorted((tmp_path / "parts").glob("sample_*.png"))] == [
        f"sample_{step:06d}.png" for step in (1, 2, 3, 4)
    ]


def command(base: Path, clips: Path, output: Path, *more: str) -> list[str]:
    words = ["train", "stage=motion", f"model.path={base}", f"data.path={clips}", f"output={output}", "cpu=true"]
    words += ["batch_size=1", "data.num_views=2", "data.num_frames=3", "log_every=1", "validation_every=0"]
    return [*words, "checkpoint_every=1", *more]


def test_killed_run_goes_on_bit_for_bit(base: Path, clips: Path, tmp_path: Path) -> None:
    arguments = command(base, clips, tmp_path / "killed", "max_steps=6")
    checkpoint = tmp_path / "killed/checkpoint.safetensors"
    process = forks.command(arguments, tmp_path)
    try:
        while not checkpoint.exists() or load_tensors(checkpoint)[1]["step"] < 2:
            assert process.poll() is None, process.said()
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    step = load_tensors(checkpoint)[1]["step"]
    assert 2 <= step < 6 and not (tmp_path / "killed/model").exists()
    (tmp_path / "killed/checkpoint.safetensors.partial").write_bytes(b"half")  # killed while it wrote
    with open(tmp_path / "killed/log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')

    assert cli.main(arguments) == 0
    assert cli.main(command(base, clips, tmp_path / "whole", "max_steps=6")) == 0
    assert equal(tmp_path / "killed/model", tmp_path / "whole/model")
    first, second = (load_tensors(tmp_path / run / "checkpoint.safetensors") for run in ("killed", "whole"))
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert logged_steps(tmp_path / "killed") == logged_steps(tmp_path / "whole") == list(range(1, 7))
    assert not list((tmp_path / "killed").glob("*.partial"))


def test_killed_before_the_first_checkpoint(base: Path, clips: Path, tmp_path: Path) -> None:
    """The log has lines of steps that nothing remembers; the next run writes them again, once."""
    config = settings("motion", base, clips, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml.partial").write_text("settings: {st")  # killed at the very beginning
    open_run(tmp_path / "run", config, free=set())
    (tmp_path / "run/log.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"step": 2, "lo')
    train(config)
    assert logged_steps(tmp_path / "run") == [1, 2]
    train(config)  # a run that has ended: nothing left to do
    assert logged_steps(tmp_path / "run") == [1, 2]


def test_damaged_checkpoint_is_named(base: Path, clips: Path, tmp_path: Path) -> None:
    config = settings("motion", base, clips, tmp_path / "run")
    train(config)
    path = tmp_path / "run/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="checkpoint.safetensors is damaged"):
        train(config)


# ---- several processes ----------------------------------------------------------------------------------------------


def log_of(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_one_batch_gives_one_result_however_it_is_divided(base: Path, clips: Path, tmp_path: Path) -> None:
    """Whole, in micro-batches, and over two, one and two processes: the same losses, gradients and weights."""
    words = ["batch_size=4", "learning_rate=1e-3"]
    train(settings("motion", base, clips, tmp_path / "whole", batch_size=4, max_steps=3))
    train(settings("motion", base, clips, tmp_path / "micro", batch_size=4, micro_batch_size=1, max_steps=3))
    several = tmp_path / "two-one-two"
    run_ranks(2, command(base, clips, several, *words, "max_steps=1"), tmp_path)
    assert cli.main(command(base, clips, several, *words, "max_steps=2", "micro_batch_size=2")) == 0
    run_ranks(2, command(base, clips, several, *words, "max_steps=3", "micro_batch_size=1"), tmp_path)
    first, whole = log_of(tmp_path / "whole"), weights(tmp_path / "whole/model")
    assert [line["step"] for line in first] == [1, 2, 3] and all(line["grad_norm"] > 0 for line in first)
    for other in ("micro", "two-one-two"):
        for a, b in zip(first, log_of(tmp_path / other), strict=True):
            assert b["step"] == a["step"], other
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), other
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4), other
        found = weights(tmp_path / other / "model")
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=f"{other}: {name}")


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"stage": "vae", "model": dataclasses.replace(tiny_config(), prediction_type="sharp")},
            "model.prediction_type=sharp is not one of epsilon, v_prediction",
        ),
        ({"stage": "vae", "model": dataclasses.replace(tiny_config(), vocab_size=3)}, "model: vocabulary=3: give at"),
        ({"stage": "moton"}, "stage=moton is none of vae, clip, base, motion"),
        ({"model": tiny_config()}, "stage=motion needs a trained base: set model.path"),
        ({"model": tiny_config("/no/such/folder")}, "model.path=/no/such/folder holds no model"),
        ({"data": DataConfig("/no/such/folder")}, "/no/such/folder: no such folder"),
        ({"data": {"num_frames": FRAMES + 1}}, "has 4 frames; 5 at stride 1 need 5"),
        ({"data": {"num_frames": 9}}, "data.num_frames=9: the motion layers know 8 frames"),
        ({"data": {"num_frames": 0}}, "data.num_frames=0: give at least 1"),
        ({"data": {"num_views": 0}}, "data.num_views=0: give at least 1"),
        ({"data": {"num_views": 3}}, "no 3 evenly spaced views"),
        ({"batch_size": 0}, "batch_size=0: give at least 1"),
        ({"batch_size": 4, "micro_batch_size": 3}, "micro_batch_size=3 does not divide the 4 clips"),
        ({"frozen_dtype": "float12"}, "frozen_dtype=float12 is none of"),
        ({"frozen_dtype": "bfloat16"}, "set mixed_precision=bf16"),
        ({"timestep_shift": 0.0}, "timestep_shift=0.0: give a number above 0"),
        ({"log_every": 0}, "log_every=0: give at least 1"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype=bfloat16: training keeps float32 weights"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1: give at least 1"),
        ({"validation_data": "/no/such/pictures", "validation_every": 1}, "/no/such/pictures: no such folder"),
        ({"stage": "clip"}, "batch_size=1: stage=clip tells captions apart"),
        ({"stage": "clip", "batch_size": 2, "validation_every": 1}, "set validation_every=0"),
        ({"mixed_precision": "fp12"}, "mixed_precision=fp12"),
        ({"trackers": ["paper"]}, "paper"),
        ({"optimizer": "sgd"}, "optimizer=sgd is none of adamw, adamw_8bit"),
        ({"optimizer": "adamw_8bit"}, "bitsandbytes is not installed: pip install bitsandbytes"),
        ({"stage": "base", "projection_steps": 5}, "projection_steps=5 is for stage=motion"),
        ({"init_motion": "/no/such/mm.ckpt"}, "no file /no/such/mm.ckpt"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    base: Path, clips: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = settings("motion", base, clips, tmp_path / "run")
    for key, value in changes.items():
        if isinstance(value, dict):
            vars(getattr(config, key)).update(value)
        else:
            setattr(config, key, value)
    with pytest.raises(UserError, match=message) as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_pictures_of_a_size_that_does_not_fit(base: Path, clips: Path, tmp_path: Path) -> None:
    """16 x 16 pixels are 4 x 4 latents, which five levels would halve four times."""
    model = tiny_config()
    model.channels, model.attention_levels = [32] * 5, [False] * 5
    with pytest.raises(UserError, match="clips of 16 x 16 pixels: this model needs multiples of 64"):
        train(settings("base", base, clips, tmp_path / "run", model=model))
    assert not (tmp_path / "run").exists()


def test_damaged_clip_of_a_fresh_model(base: Path, clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "clips")
    (tmp_path / "clips/clip-1/transforms.json").write_text("{")
    with pytest.raises(UserError, match="clip-1/transforms.json: not valid JSON"):
        train(settings("vae", base, tmp_path / "clips", tmp_path / "run", model=tiny_config()))
    assert not (tmp_path / "run").exists()


def test_other_settings_are_refused(base: Path, clips: Path, tmp_path: Path) -> None:
    train(settings("motion", base, clips, tmp_path / "run", max_steps=1))
    with pytest.raises(UserError, match="holds a run with learning_rate=0.001, this one has learning_rate=0.002"):
        train(settings("motion", base, clips, tmp_path / "run", learning_rate=2e-3))
    train(settings("motion", base, clips, tmp_path / "run", max_steps=2, log_every=5, checkpoint_every=7))


def test_a_loss_that_is_not_finite_ends_the_run(base: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step [12] \(term mse\): lower learning_rate"):
        train(settings("motion", base, clips, tmp_path / "run", max_steps=3, learning_rate=1e25))
    assert not (tmp_path / "run/model").exists()

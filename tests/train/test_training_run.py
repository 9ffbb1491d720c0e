"""A training run: logs, checkpoints and results; stopping; initialization."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from test_train import base, clips, equal, log_of, settings  # noqa: F401
from tiny_model import tiny_pipeline, write_clips
from torch import Tensor

from fourdiffusion import cli
from fourdiffusion.cli.config import build, compose, load_settings_class, shipped
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.motion_sources import read_motion
from fourdiffusion.errors import Terminated, UserError
from fourdiffusion.files import load_tensors
from fourdiffusion.train.health import MEAN_STEPS, LossWatch, Meter, check_gradients
from fourdiffusion.train.loop import train
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.setup import make_accelerator, make_objective, make_optimizer
from fourdiffusion.train.state import restore_scaler, scaler_tensors
from fourdiffusion.train.step import micro_batch_size

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose motion layers do something."""
    folder = tmp_path_factory.mktemp("moving") / "model"
    tiny_pipeline(moving=True).save_whole(folder)
    return folder


# ---- what a run shows, keeps and leaves -----------------------------------------------------------------------------


def test_validation_best_and_export(base: Path, clips: Path, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    shown = {"validation_every": 1, "validation_clips": 2, "validation_num_inference_steps": 1}
    train(settings("motion", base, clips, run, max_steps=3, keep_every=1, keep_last=2, **shown))
    lines = log_of(run)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        buckets = [value for name, value in line.items() if name.startswith("validation_loss_")]
        assert len(buckets) == 4 and line["validation_loss"] == pytest.approx(sum(buckets) / 4, rel=1e-5)
        assert line["clips_per_second"] > 0 and 0 <= line["data_wait"] < 1 and line["memory_gib"] > 0
    assert (run / "sample_000003.png").is_file() and (run / "sample_000003.mp4").stat().st_size > 500
    assert sorted(path.name for path in (run / "kept").iterdir()) == [
        "000002.safetensors",
        "000003.safetensors",
        "best.safetensors",
    ]
    tensors, metadata = load_tensors(run / "kept/best.safetensors")
    least = min(lines, key=lambda line: line["validation_loss"])
    assert metadata["step"] == least["step"] and metadata["validation_loss"] == least["validation_loss"]

    card = ModelCard((run / "motion/README.md").read_text())
    assert (
        card.data.library_name == "diffusers"  # type: ignore[attr-defined]
        and "max_steps: 3" in card.text
        and str(tmp_path) + "/run" not in card.text
    )
    pipeline = tiny_pipeline()
    pipeline.load_motion(run / "motion")
    last = load_tensors(run / "checkpoint.safetensors")[0]
    assert all(torch.equal(value, last[f"ema.motion.{name}"]) for name, value in pipeline.motion.state_dict().items())

    words = [f"checkpoint={run / 'kept/best.safetensors'}", f"output={tmp_path / 'best'}"]
    assert cli.main(["convert", *words]) == 0
    best = MotionModules.from_pretrained(tmp_path / "best").state_dict()
    assert all(torch.equal(value, tensors[f"ema.motion.{name}"]) for name, value in best.items())


def test_the_validation_loss_is_of_fixed_noise_and_of_each_clip_once(
    base: Path,  # noqa: F811
    clips: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The same weights give the same loss, whatever the training step draws."""
    shown = {"validation_every": 1, "validation_clips": 2, "validation_num_inference_steps": 1, "learning_rate": 0.0}
    first = settings("motion", base, clips, tmp_path / "first", max_steps=2, **shown)
    train(first)
    train(settings("motion", base, clips, tmp_path / "other", max_steps=1, seed=5, min_snr_gamma=1.0, **shown))
    losses = [line["validation_loss"] for line in [*log_of(tmp_path / "first"), *log_of(tmp_path / "other")]]
    assert len(losses) == 3 and len(set(losses)) == 1


# ---- stopping and going on ------------------------------------------------------------------------------------------


def test_sigterm_saves_and_ends_with_143(base: Path, clips: Path, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"

    def stop() -> None:
        while not (run / "log.jsonl").is_file():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Terminated) as caught:
        train(settings("motion", base, clips, run, max_steps=500))
    thread.join()
    assert caught.value.code == 143
    step = load_tensors(run / "checkpoint.safetensors")[1]["step"]
    assert 1 <= step < 500 and log_of(run)[-1]["step"] == step
    train(settings("motion", base, clips, run, max_steps=step + 1))
    train(settings("motion", base, clips, tmp_path / "whole", max_steps=step + 1))
    assert equal(run / "model", tmp_path / "whole/model")


@pytest.mark.parametrize(
    ("workers", "fault", "said"),
    [
        (1, lambda folder: multiprocessing.active_children()[0].kill(), "a data loading process was killed"),
        (1, lambda folder: folder.rename(folder.with_name("gone")), "2 of 2 clips in a row cannot be used; the first "),
        (0, lambda folder: folder.rename(folder.with_name("gone")), "2 of 2 clips in a row cannot be used; the first "),
    ],
)
def test_no_step_is_lost_where_no_batch_comes(
    base: Path,  # noqa: F811
    tmp_path: Path,
    workers: int,
    fault: Callable[[Path], object],
    said: str,
) -> None:
    """A killed data loading process, and clips that are gone: what is done is saved, the clips are named.

    The folder of clips is renamed, all of it at once: of a folder that is deleted file by file a step may still use the
    other clip in place of the first one gone.
    """
    run, clips = tmp_path / "run", write_clips(tmp_path / "clips")  # noqa: F811
    data = DataConfig(str(clips), num_views=2, num_frames=3, cache_mib=0)

    def spoil() -> None:
        while not (run / "log.jsonl").is_file():
            time.sleep(0.01)
        fault(clips)

    thread = threading.Thread(target=spoil)
    thread.start()
    with pytest.raises(UserError, match=said) as caught:
        train(settings("motion", base, clips, run, max_steps=2000, num_workers=workers, data=data))
    thread.join()
    step = load_tensors(run / "checkpoint.safetensors")[1]["step"]
    assert 1 <= step < 2000 and log_of(run)[-1]["step"] == step
    assert re.search(rf"\(step {step}, clips clip-\d\)$", str(caught.value))
    shutil.rmtree(clips, ignore_errors=True)
    train(settings("motion", base, write_clips(clips), run, max_steps=step + 1, data=data))
    train(settings("motion", base, clips, tmp_path / "whole", max_steps=step + 1, data=data))
    assert equal(run / "model", tmp_path / "whole/model")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    base: Path,  # noqa: F811
    clips: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(settings("motion", base, clips, tmp_path / "run", max_steps=2, checkpoint_every=1))
    path = tmp_path / "run/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    train(settings("motion", base, clips, tmp_path / "run", max_steps=3, checkpoint_every=1))
    assert "checkpoint.safetensors is damaged: resuming from the previous one, of step 1" in capsys.readouterr().out
    train(settings("motion", base, clips, tmp_path / "whole", max_steps=3))
    assert equal(tmp_path / "run/model", tmp_path / "whole/model")
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2, 3]


def test_the_gradient_scaler_is_in_the_checkpoint() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
    scaler.scale(torch.ones(()))  # makes its tensors
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    restore_scaler(other, scaler_tensors(scaler))
    assert other.state_dict() == scaler.state_dict() and other.get_scale() == 1024.0
    assert scaler_tensors(None) == {} and scaler_tensors(scaler).keys() <= {
        f"scaler.{key}" for key in scaler.state_dict()
    }


# ---- health ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_rises_for_long_diverges() -> None:
    watch = LossWatch()
    assert not any(watch.diverged(1.0, 3.0) for _ in range(2 * MEAN_STEPS))
    assert not watch.diverged(50.0, 3.0)  # one bad batch
    steps = next(i for i in range(1000) if watch.diverged(4.0, 3.0))
    assert MEAN_STEPS / 2 < steps < 2 * MEAN_STEPS
    assert not any(LossWatch().diverged(10.0**i, 0) for i in range(MEAN_STEPS))


@pytest.mark.parametrize(
    ("gradient", "norm", "message"),
    [
        (None, 1.0, r"1 of 1 trained tensors get no gradient at step 7 \(layer\).*reentrant"),
        (torch.zeros(2), 0.0, "the gradient is zero at step 7"),
        (torch.full((2,), torch.nan), float("nan"), "the gradient's norm is nan at step 7: lower learning_rate"),
    ],
)
def test_gradients_that_cannot_train_are_diagnosed(gradient: Tensor | None, norm: float, message: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = gradient
    with pytest.raises(UserError, match=message):
        check_gradients(7, {"layer": parameter}, norm, scaled=False)
    if norm != norm:
        check_gradients(7, {"layer": parameter}, norm, scaled=True)  # the scaler skips the step


def test_the_meter_tells_waiting_from_work() -> None:
    meter = Meter(busy=2.0, clips=6)
    assert meter.timed(iter("a")) == "a"
    meter.waited = 0.5
    values = meter.read(torch.device("cpu"))
    assert values["clips_per_second"] == 3 and values["data_wait"] == 0.25
    assert meter.busy == meter.waited == meter.clips == 0


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_trained_tensor_gets_a_gradient_and_no_other_changes(
    moving: Path,
    clips: Path,  # noqa: F811
    tmp_path: Path,
    precision: str,
    checkpointing: bool,
) -> None:
    """After a step each trained tensor has moved, by a finite amount; frozen ones are the same to the bit."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    frozen = "bfloat16" if precision == "bf16" else "float32"
    config = settings("motion", moving, clips, tmp_path / "run", mixed_precision=precision, frozen_dtype=frozen)
    config.gradient_checkpointing, config.max_steps, config.weight_decay = checkpointing, 1, 0.0
    train(config)
    AcceleratorState._reset_state(reset_partial_state=True)
    before = tiny_pipeline(moving=True)
    tensors = load_tensors(tmp_path / "run/checkpoint.safetensors")[0]
    for name, value in before.motion.state_dict().items():
        moved = tensors[f"weights.motion.{name}"] - value
        assert bool(moved.isfinite().all()) and bool(moved.any()), name
    names = {name.split(".")[0] for name in tensors}
    assert names == {"weights", "ema", "optimizer"} and not any(".unet." in name for name in tensors)
    from fourdiffusion.diffusion.loading import load_pipeline

    after = load_pipeline(tmp_path / "run/model")
    kept = torch.bfloat16 if precision == "bf16" else torch.float32  # rounded once, when it was loaded
    for part in ("unet", "vae", "text_encoder", "image_encoder"):
        for name, value in getattr(before, part).state_dict().items():
            found = getattr(after, part).state_dict()[name]
            assert torch.equal(found, value.to(kept).to(found.dtype)), (part, name)


def test_the_optimizer_holds_motion_layers_only() -> None:
    pipeline = tiny_pipeline()
    objective = make_objective(TrainConfig(), pipeline)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(TrainConfig(), trained, torch.device("cpu"))
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in pipeline.motion.parameters()}


# ---- starting points ------------------------------------------------------------------------------------------------


class FrameNorm(torch.nn.Module):
    """AnimateDiff normalizes each frame; diffusers' module normalizes all frames [B, C, F, H, W] together."""

    def __init__(self, norm: torch.nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.norm(frame) for frame in x.unbind(2)], dim=2)


def animatediff_file(pipeline: object, path: Path, frames: int = 24) -> list[AnimateDiffTransformer3D]:
    """Write known values under AnimateDiff's keys, and return diffusers' own modules with the same values."""
    torch.manual_seed(3)
    places = ["down_blocks.0.motion_modules.0", "down_blocks.1.motion_modules.0", "mid_block.motion_modules.0"]
    places += [f"up_blocks.{i}.motion_modules.{j}" for i in (0, 1) for j in (0, 1)]
    parts = {"attn1": "attention_blocks.0", "attn2": "attention_blocks.1", "norm1": "norms.0", "norm2": "norms.1"}
    parts |= {"norm3": "ff_norm"}
    modules, tensors = [], {}
    for place in places:
        module = AnimateDiffTransformer3D(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=32,
            norm_num_groups=8,
            cross_attention_dim=None,
            activation_fn="geglu",
            attention_bias=False,
            positional_embeddings="sinusoidal",
            num_positional_embeddings=frames,
            double_self_attention=True,
        )
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        modules.append(module)
        for key, value in module.state_dict().items():
            for part, name in parts.items():
                key = key.replace(f"transformer_blocks.0.{part}.", f"transformer_blocks.0.{name}.")
            if not key.endswith("pos_embed.pe"):
                tensors[f"{place}.temporal_transformer.{key}"] = value.clone()
        for i in (0, 1):
            key = f"{place}.temporal_transformer.transformer_blocks.0.attention_blocks.{i}.pos_encoder.pe"
            tensors[key] = module.state_dict()["transformer_blocks.0.pos_embed.pe"].clone()
    if path.suffix == ".ckpt":
        torch.save({"state_dict": {f"module.{key}": value for key, value in tensors.items()}}, path)
    else:
        save_file(tensors, path)
    return modules


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_animatediff_modules_compute_what_diffusers_computes(tmp_path: Path, suffix: str) -> None:
    pipeline = tiny_pipeline()
    references = animatediff_file(pipeline, tmp_path / f"mm{suffix}")
    state = read_motion(tmp_path / f"mm{suffix}", pipeline.unet, pipeline.motion, "init_motion")
    pipeline.motion.load_state_dict(state)
    x = torch.randn(2 * 6, 32, 4, 4, generator=torch.Generator().manual_seed(0))  # 2 clips, 6 frames
    for module, reference in zip(pipeline.motion.layers, references, strict=True):
        with torch.no_grad():
            reference.norm = FrameNorm(reference.norm)
            torch.testing.assert_close(module(x, 6, 1), reference(x, num_frames=6), atol=1e-4, rtol=1e-4)


def test_motion_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    animatediff_file(pipeline, tmp_path / "mm.safetensors")
    tensors = load_tensors(tmp_path / "mm.safetensors")[0]

    def message(changed: dict[str, Tensor]) -> str:
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(UserError) as caught:
            read_motion(tmp_path / "changed.safetensors", pipeline.unet, pipeline.motion, "init_motion")
        return str(caught.value)

    first = "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    table = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
    assert "v1 has no module in the middle" in message({k: v for k, v in tensors.items() if "mid_block" not in k})
    assert "layers.0.proj_in.weight is [16, 32], this model's is [32, 32]" in message(
        tensors | {first: torch.ones(16, 32)}
    )
    assert "not finite" in message(tensors | {first: torch.full((32, 32), torch.nan)})
    assert "pos_encoder.pe is not the table" in message(tensors | {table: tensors[table].flip(1).contiguous()})
    with pytest.raises(UserError, match="init_motion=.* holds no motion layers"):
        read_motion(tmp_path, pipeline.unet, pipeline.motion, "init_motion")


def test_projections_first_then_everything(base: Path, moving: Path, clips: Path, tmp_path: Path) -> None:  # noqa: F811
    """From another run's motion layers: the first step moves the projections alone, the second all."""
    start = tiny_pipeline(moving=True).motion.state_dict()
    words = {"init_motion": str(moving), "projection_steps": 1, "weight_decay": 0.1, "checkpoint_every": 1}
    for steps in (1, 2):  # the second run resumes the first
        train(settings("motion", base, clips, tmp_path / "run", max_steps=steps, **words))
        tensors = load_tensors(tmp_path / "run/checkpoint.safetensors")[0]
        changed = {name for name in start if not torch.equal(tensors[f"weights.motion.{name}"], start[name])}
        projections = {key for key in start if "proj_in" in key or "proj_out" in key}
        assert projections < set(start) and changed == (projections if steps == 1 else set(start))
        assert any("proj_out" in name for name in changed) and any("proj_in" in name for name in changed)
    run = read_motion(tmp_path / "run", tiny_pipeline().unet, tiny_pipeline().motion, "init_motion")
    assert all(torch.equal(run[name], tensors[f"ema.motion.{name}"]) for name in start)


def test_lora_trains_and_is_merged(base: Path, clips: Path, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("peft")
    from fourdiffusion.diffusion.loading import load_pipeline

    train(
        settings("motion", base, clips, tmp_path / "run", max_steps=3, lora_rank=2, learning_rate=1e-2, ema_decay=0.0)
    )
    tensors = load_tensors(tmp_path / "run/checkpoint.safetensors")[0]
    adapters = [name for name in tensors if name.startswith("ema.adapters.")]
    assert adapters and all("attn1" in name or "attn2" in name for name in adapters)
    before, after = load_pipeline(base).unet.state_dict(), load_pipeline(tmp_path / "run/model").unet.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".attn" in name and name.endswith(".weight") for name in changed)
    a, b = (tensors[f"ema.adapters.down-0-blocks-0-attention-block-attn1-to_q.{i}.default.weight"] for i in (0, 1))
    name = "down.0.blocks.0.attention.block.attn1.to_q.weight"
    torch.testing.assert_close(after[name] - before[name], b @ a, atol=1e-5, rtol=1e-3)


# ---- presets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "processes"), [("paper_1x24gb", 1), ("paper_1x80gb", 1), ("paper_8x80gb", 8)])
def test_presets_have_the_papers_numbers(name: str, processes: int) -> None:
    schema = load_settings_class("fourdiffusion.train.settings:TrainConfig")
    words = [f"experiment={name}", "data.path=clips", "model.path=base"]
    config = build(compose("train", schema, words), TrainConfig)
    assert (config.batch_size, config.max_steps, config.learning_rate) == (32, 30_000, 1e-4)
    assert (config.data.num_frames, config.data.frame_stride, config.data.num_views) == (8, 4, 4)
    assert config.stage == "motion" and config.min_snr_gamma is None and config.lora_rank == 0
    size = micro_batch_size(config, processes)
    assert config.batch_size % (size * processes) == 0 and config.frozen_dtype == "bfloat16"


@pytest.mark.parametrize("path", sorted(shipped("configs/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_config_files(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.distributed_type == "MULTI_GPU" and config.num_processes % config.num_machines == 0
    assert json.dumps(config.to_dict())


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_launchers_that_divide_the_weights_are_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed also where its package is missing, FSDP also on a CPU, where accelerate takes it for DDP."""
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match="divides weights and optimizer.*configs/accelerate/ddp.yaml"):
        make_accelerator(TrainConfig(cpu=True))

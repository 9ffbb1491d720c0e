"""What can be wrong with models, scenes, run folders and foreign weights; see damage.py."""

import json
import math
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from damage import Change, broken_json, edit_json, fuzz_json, write
from damage_texts import YAML_TEXTS
from safetensors.torch import load_file, save_file

# ---- tensors, models, scenes, runs ----------------------------------------------------------------------------------


def edit_tensors(name: str, edit: Callable[[dict[str, torch.Tensor], Random], object]) -> Change:
    """Return a change of the tensors in a safetensors file; its metadata stays."""

    def change(folder: Path, rng: Random) -> None:
        from safetensors import safe_open

        with safe_open(folder / name, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(folder / name)
        edit(tensors, rng)
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, metadata=metadata)

    return change


def _one(edit: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[dict[str, torch.Tensor], Random], None]:
    def change(tensors: dict[str, torch.Tensor], rng: Random) -> None:
        key = rng.choice(sorted(key for key, value in tensors.items() if value.is_floating_point() and value.numel()))
        value = edit(tensors[key].clone())
        tensors.pop(key)
        if value is not None:
            tensors[key] = value

    return change


def _with(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return edit


def tensor_files(name: str) -> dict[str, tuple[Change, bool]]:
    """Return what can be wrong with a file of tensors, and whether it must be refused."""
    return {
        "nan": (edit_tensors(name, _one(_with(math.nan))), True),
        "infinity": (edit_tensors(name, _one(_with(math.inf))), True),
        "missing tensor": (edit_tensors(name, _one(lambda t: None)), True),
        "other shape": (edit_tensors(name, _one(lambda t: torch.cat([t.reshape(-1), t.reshape(-1)]))), True),
        "no elements": (edit_tensors(name, _one(lambda t: t.reshape(-1)[:0])), True),
        "integers": (edit_tensors(name, _one(lambda t: t.long())), False),
        "half": (edit_tensors(name, _one(lambda t: t.half())), False),
        "double": (edit_tensors(name, _one(lambda t: t.double())), False),
        "extra tensor": (edit_tensors(name, lambda t, r: t.update({"more": torch.zeros(2)})), False),
        "no tensors": (edit_tensors(name, lambda t, r: t.clear()), True),
        "cut": (lambda f, r: os.truncate(f / name, (f / name).stat().st_size * 3 // 4), True),
        "cut header": (lambda f, r: os.truncate(f / name, 20), True),
        "empty": (write(name, b""), True),
        "text": (write(name, "no tensors"), True),
        "huge header": (write(name, struct.pack("<Q", 2**62) + b"{}"), True),
        "pickle": (write(name, pickle.dumps({"a": 1})), True),
        "missing": (lambda f, r: (f / name).unlink(), True),
        "folder": (lambda f, r: ((f / name).unlink(), (f / name).mkdir()), True),
        "pipe": (lambda f, r: ((f / name).unlink(), os.mkfifo(f / name)), True),
    }


class Evil:
    """An object whose pickle writes a file when it is loaded by code that executes pickles."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch executed-by-a-pickle",))


def evil_file(name: str) -> Change:
    """Return a change that writes a torch file which would run a command."""
    return lambda folder, rng: torch.save({"a": Evil()}, folder / name)


def _evil_in_place(part: str, weights: str, name: str) -> Change:
    def change(folder: Path, rng: Random) -> None:
        (folder / part / weights).unlink()
        torch.save({"a": Evil()}, folder / part / name)

    return change


def _sets(name: str, **entries: Any) -> Change:
    return edit_json(name, lambda content, rng: content.update(entries))


def models() -> list[tuple[str, Change, bool]]:
    """Return damages of a model folder: (name, change, whether generate must refuse it)."""
    parts = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "motion": "diffusion_pytorch_model",
             "text_encoder": "model", "image_encoder": "model"}  # fmt: skip
    found: list[tuple[str, Change, bool]] = []
    for part, stem in parts.items():
        for kind, (change, refused) in tensor_files(f"{part}/{stem}.safetensors").items():
            found.append((f"{part} weights {kind}", change, refused))
        for kind, change in broken_json(f"{part}/config.json").items():
            found.append((f"{part} config {kind}", change, kind != "number"))
        found += [(f"{part} config junk {i}", fuzz_json(f"{part}/config.json"), False) for i in range(10)]
        old = "diffusion_pytorch_model.bin" if stem != "model" else "pytorch_model.bin"
        found.append((f"{part} pickle that runs", _evil_in_place(part, f"{stem}.safetensors", old), True))
        found.append((f"{part} missing", lambda f, r, part=part: shutil.rmtree(f / part), True))
    for name in ("model_index.json", "generation_config.json", "scheduler/scheduler_config.json",
                 "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"):  # fmt: skip
        for kind, change in broken_json(name).items():
            good = kind == "missing" and name.startswith(("generation", "tokenizer/tokenizer_config"))
            found.append((f"{name} {kind}", change, not good and not name.startswith("tokenizer/tokenizer_config")))
        found += [(f"{name} junk {i}", fuzz_json(name), False) for i in range(10)]
    given: list[tuple[str, dict[str, Any]]] = [
        ("vae/config.json", {"scaling_factor": 0}), ("vae/config.json", {"scaling_factor": float("nan")}),
        ("vae/config.json", {"scaling_factor": "x"}), ("vae/config.json", {"latent_channels": 10**9}),
        ("unet/config.json", {"head_dim": 0}), ("unet/config.json", {"channels": [10**7, 10**7]}),
        ("unet/config.json", {"prediction_type": "sample"}), ("text_encoder/config.json", {"num_hidden_layers": 10**6}),
        ("image_encoder/config.json", {"num_hidden_layers": 10**9}), ("unet/config.json", {"blocks_per_level": 10**7}),
        ("motion/config.json", {"max_frames": 10**10}), ("image_encoder/config.json", {"image_size": 10**6}),
        ("scheduler/scheduler_config.json", {"beta_end": 2}), ("scheduler/scheduler_config.json", {"beta_end": -1}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
        ("scheduler/scheduler_config.json", {"trained_betas": [float("nan")] * 1000}),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}),
        ("generation_config.json", {"guidance_scale": float("nan")}), ("generation_config.json", {"image_size": 0}),
        ("generation_config.json", {"num_inference_steps": 10**9}), ("generation_config.json", {"scheduler": "x"}),
        ("text_encoder/config.json", {"pad_token_id": 10**6}),
        ("feature_extractor/preprocessor_config.json", {"image_std": [0, 0, 0]}),
        ("feature_extractor/preprocessor_config.json", {"image_mean": [float("nan")] * 3}),
    ]  # fmt: skip
    for name, entries in given:
        good = "pad_token_id" in entries or entries.get("prediction_type") == "sample" and name.startswith("scheduler")
        found.append((f"{name} {entries}"[:90], _sets(name, **entries), not good))
    return found


def scenes() -> list[tuple[str, Change, bool]]:
    """Return damages of a run's scene: (name, change, whether it must be refused)."""
    found: list[tuple[str, Change, bool]] = []
    for name in ("scene/diffusion_pytorch_model.safetensors", "scene/occupancy.safetensors"):
        for kind, (change, refused) in tensor_files(name).items():
            found.append((f"{name} {kind}", change, refused))
    for name in ("scene/config.json", "scene/renderer.json"):
        for kind, change in broken_json(name).items():
            found.append((f"{name} {kind}", change, True))
        found += [(f"{name} junk {i}", fuzz_json(name), False) for i in range(14)]
    for kind, (change, _) in tensor_files("input.safetensors").items():
        found.append((f"input.safetensors {kind}", change, False))
    for kind, change in broken_json("input.json").items():
        found.append((f"input.json {kind}", change, False))
    found += [(f"input.json junk {i}", fuzz_json("input.json"), False) for i in range(10)]
    for name, entries in (
        ("scene/renderer.json", {"radius": 0.5}), ("scene/renderer.json", {"radius": 1e9}),
        ("scene/renderer.json", {"num_samples": float("nan")}), ("scene/renderer.json", {"num_samples": 10**12}),
        ("scene/renderer.json", {"early_stop": "x"}), ("scene/renderer.json", {"early_stop": float("nan")}),
        ("scene/renderer.json", {"occupancy_resolution": 10**6}), ("scene/renderer.json", {"step_scale": -1}),
        ("scene/config.json", {"radius": float("nan")}), ("scene/config.json", {"hidden_width": 10**9}),
        ("scene/config.json", {"blob_scale": None}), ("scene/config.json", {"hidden_width": 0}),
    ):  # fmt: skip
        found.append((f"{name} {entries}", _sets(name, **entries), True))
    found.append(("scene a file", lambda f, r: (shutil.rmtree(f / "scene"), (f / "scene").write_text("x")), True))
    return found


def _metadata(name: str, **entries: Any) -> Change:
    def change(folder: Path, rng: Random) -> None:
        from safetensors import safe_open

        with safe_open(folder / name, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        metadata |= {key: json.dumps(value) for key, value in entries.items()}
        save_file(load_file(folder / name), folder / name, metadata=metadata)

    return change


def runs(verb: str) -> list[tuple[str, Change, bool]]:
    """Return damages of a run folder that a command goes on in: (name, change, whether it must be refused)."""
    found: list[tuple[str, Change, bool]] = []
    if verb != "generate again":
        name = "checkpoint.safetensors"
        for kind, (change, refused) in tensor_files(name).items():
            found.append((f"checkpoint {kind}", change, refused and kind not in ("missing", "no elements")))
        for step in (-1, "3", None, 1.5, 10**30, True, float("nan")):
            found.append((f"checkpoint step {step}", _metadata(name, step=step), True))
        found.append(("checkpoint verb", _metadata(name, verb="dance"), True))
        found.append(
            ("optimizer names", edit_tensors(name, lambda t, r: t.update({"optimizer.x": torch.zeros(1)})), False)
        )
        found.append(("partial folder", lambda f, r: (f / f"{name}.partial").mkdir(), False))
    for kind, change in broken_json("log.jsonl").items():
        found.append((f"log {kind}", change, False))
    for kind, change in YAML_TEXTS.items():
        found.append((f"config.yaml {kind}", write("config.yaml", change[0]), change[1] or kind == "empty"))
    found.append(("config.yaml folder", lambda f, r: ((f / "config.yaml").unlink(), (f / "config.yaml").mkdir()), True))
    found.append(("lock folder", lambda f, r: ((f / ".lock").unlink(missing_ok=True), (f / ".lock").mkdir()), True))
    found.append(("model partial file", write("model.partial", "x"), False))
    found.append(
        (
            "input.json folder",
            lambda f, r: ((f / "input.json").unlink(missing_ok=True), (f / "input.json").mkdir()),
            False,
        )
    )
    found.append(("read-only config", lambda f, r: os.chmod(f / "config.yaml", 0o444), False))
    return found


# ---- foreign weights ------------------------------------------------------------------------------------------------


def _release(edit: Callable[[dict[Any, Any]], Any]) -> Change:
    def change(folder: Path, rng: Random) -> None:
        path = folder / "release" / "ipmv.pt"
        content = edit(torch.load(path, weights_only=True))
        torch.save(content, path)

    return change


def _first(edit: Callable[[torch.Tensor], Any]) -> Callable[[dict[Any, Any]], Any]:
    def change(tensors: dict[Any, Any]) -> Any:
        key = next(iter(tensors))
        return tensors | {key: edit(tensors[key])}

    return change


def releases() -> list[tuple[str, Change, bool]]:
    """Return damages of ImageDream's file: (name, change, whether it must be refused)."""
    edits: dict[str, tuple[Callable[[dict[Any, Any]], Any], bool]] = {
        "nan": (_first(_with(math.nan)), True),
        "infinity": (_first(_with(math.inf)), True),
        "integers": (_first(lambda t: t.long()), True),
        "meta": (_first(lambda t: t.to("meta")), True),
        "sparse": (_first(lambda t: t.reshape(t.shape[0], -1).to_sparse()), True),
        "quantized": (_first(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), True),
        "complex": (_first(lambda t: t.to(torch.complex64)), True),
        "too large for half": (_first(lambda t: t * 0 + 1e38), False),
        "shape": (_first(lambda t: t[:1]), True),
        "missing key": (lambda t: dict(list(t.items())[1:]), True),
        "unknown key": (lambda t: t | {"other": torch.zeros(1)}, True),
        "number keys": (lambda t: {i: value for i, value in enumerate(t.values())}, True),
        "a list": (lambda t: list(t.values()), True),
        "a tensor": (lambda t: next(iter(t.values())), True),
        "empty": (lambda t: {}, True),
        "none": (lambda t: None, True),
        "values that are no tensors": (lambda t: t | {"betas": "text"}, True),
        "in model": (lambda t: {"model": t}, False),
        "in state_dict": (lambda t: {"state_dict": t, "step": 3}, False),
        "in module": (lambda t: {f"module.module.{key}": value for key, value in t.items()}, False),
        "a model that is a tensor": (lambda t: {"model": torch.zeros(3)}, True),
        "in itself": (lambda t: {"model": {"model": {"model": {}}}}, True),
    }
    found: list[tuple[str, Change, bool]] = [(kind, _release(edit), refused) for kind, (edit, refused) in edits.items()]
    name = "release/ipmv.pt"

    def flip(folder: Path, rng: Random) -> None:
        content = bytearray((folder / name).read_bytes())
        for _ in range(5):
            content[rng.randrange(200)] ^= 255
        (folder / name).write_bytes(content)

    def flip_pickle(folder: Path, rng: Random) -> None:
        with zipfile.ZipFile(folder / name) as archive:
            content = {each: archive.read(each) for each in archive.namelist()}
        key = next(each for each in content if each.endswith("data.pkl"))
        data = bytearray(content[key])
        for _ in range(5):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        content[key] = bytes(data)
        with zipfile.ZipFile(folder / name, "w") as archive:
            for each, value in content.items():
                archive.writestr(each, value)

    found.append(("code", evil_file(name), True))
    found += [(f"flipped bytes {i}", flip, False) for i in range(4)]
    found += [(f"flipped pickle {i}", flip_pickle, False) for i in range(12)]
    found.append(("cut", lambda f, r: os.truncate(f / name, (f / name).stat().st_size // 2), True))
    found.append(("bare pickle", write(name, pickle.dumps({"a": [1]})), True))
    found.append(("text", write(name, "x"), True))
    found.append(("no vocabulary", lambda f, r: shutil.rmtree(f / "release/tokenizer"), True))
    for part in ("vocab.json", "merges.txt", "tokenizer.json"):
        for kind, change in broken_json(f"release/tokenizer/{part}").items():
            found.append((f"{part} {kind}", _where_there(f"release/tokenizer/{part}", change), False))
    return found


def _where_there(name: str, change: Change) -> Change:
    return lambda folder, rng: change(folder, rng) if (folder / name).is_file() else None

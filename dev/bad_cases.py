"""The commands of ``bad_commands.py``, and the files that they are given.

A case is one command, the inputs that it needs and what is done to them first. Kinds: settings (wrong types, NaN,
infinities, out of range, unknown keys, contradictions), paths (missing, empty, of another kind, pipes, no permission,
odd names), damaged pictures, JSON, YAML, scenes, models, checkpoints and foreign weights.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import damage as d
import damage_texts as t
import damage_weights as w
from damage import Change
from tiny_commands import ALL, COMMANDS, INPUTS, NEVER_PASS, command

from fourdiffusion.cli.schema import Setting, load_settings_class, settings
from fourdiffusion.cli.verbs import VERBS


@dataclass(frozen=True)
class Case:
    """One command. ``refused``: it must not pass; else it may, with whole and finite files."""

    name: str
    words: list[str]
    uses: tuple[str, ...] = ()  # inputs that it needs, see make_inputs
    changes: tuple[Change, ...] = ()  # done in its folder before it runs
    refused: bool = True
    plain_user: bool = False  # permissions count, also where the tests run as root
    named: str = ""  # what the message must hold
    told: str = ""  # with these words in its output it may pass, too
    offline: bool = False  # without a network


# ---- settings -------------------------------------------------------------------------------------------------------

FREE_TEXT = ("prompt", "negative_prompt", "distillation_negative_prompt", "author", "license", "host", "description",
             "name", "clip_encoder", "blender", "animations")  # fmt: skip
# Verbs that take no notice of some settings: whatever is said of them may pass.
UNUSED = {
    "doctor": ("model.",), "evaluate": ("protocol.",), "evaluate scene": ("protocol.",),
    "data render": ("lights", "manifest", "hdri", "device", "samples"), "data pack": ("model.", "device"),
}  # fmt: skip
NUMBERS = ("nan", "inf", "-inf", "-1", "1e30", "99999999999999999999999", "0.5x", "[]", "text", "''", "null", "1e400",
           "true", "{a: 1}", "-1e-3", "0", "2", "3", "7", "0.5")  # fmt: skip
LISTS = ("[]", "[nan]", "[-1]", "[0]", "3", "[a]", "[[1]]", "null", "[1e30]", "[inf]", "{a: 1}", "[1,", "[true]")
FLAGS = ("maybe", "2", "null", "[]", "-1", "nan", "''", "[true]")
TEXTS = ("nonsense", "''", "null", "../x", "${nothing}", "${", "${oc.env:NOWHERE}", "a:b", "[1,2]", "\x1b[31mred")
COSTLY = {"2", "3", "7"}


def expects(setting: Setting, text: str) -> bool | None:
    """Return whether a value must be refused for what the schema says; None where it may be a good one."""
    if text == "null":
        return None if setting.is_nullable else True
    kind = setting.kind.removesuffix(" | None")
    if kind == "bool":
        return text not in ("true", "false")
    if kind in ("int", "float"):
        try:
            number = float(text)
        except ValueError:
            return True
        if kind == "int" and (not math.isfinite(number) or number != int(number) or not text.lstrip("-").isdigit()):
            return True
        low, high = setting.range or (-math.inf, math.inf)
        return True if not math.isfinite(number) or not low <= number <= high else None
    return None


def of_settings(name: str) -> Iterator[Case]:
    """Bad values for every setting of a command, and misspelt keys."""
    verb = next(verb for verb in VERBS if ALL[name][0].startswith(verb.words))
    schema = load_settings_class(verb.settings)
    unused, uses = UNUSED.get(name, ()), ALL[name][1]
    leaves = list(settings(schema))
    for setting in leaves:
        kind, last = setting.kind.removesuffix(" | None"), setting.key.rpartition(".")[2]
        values = {"int": NUMBERS, "float": NUMBERS, "bool": FLAGS, "str": TEXTS}.get(kind, LISTS)
        if kind == "str" and setting.key in PATHS.get(name, ()):
            continue  # see of_paths
        for text in values:
            refused = expects(setting, text)
            if setting.key.startswith(unused) and refused is None:
                refused = False
            if refused is None and kind == "str":
                refused = text in ("nonsense", "../x", "a:b", "[1,2]") and last not in FREE_TEXT
                refused = refused and not setting.key.startswith(unused)
            if (refused is None and text in COSTLY and kind == "float") or (name in NEVER_PASS and not refused):
                continue
            yield Case(f"{name}: {setting.key}={text!r}", command(name, f"{setting.key}={text}"), uses,
                       refused=bool(refused), named=setting.key if refused else "")  # fmt: skip
        for key in misspelt(setting.key, Random(setting.key)):
            if key not in {leaf.key for leaf in leaves}:
                yield Case(f"{name}: misspelt {key}", command(name, f"{key}=1"), uses, named=key)


def misspelt(key: str, rng: Random) -> list[str]:
    """Return three misspellings of a key: a letter doubled, one left out, two exchanged."""
    i = rng.randrange(len(key) - 1)
    return [key[:i] + key[i] + key[i:], key[:i] + key[i + 1 :] or "x", key[:i] + key[i + 1] + key[i] + key[i + 2 :]]


def contradictions() -> Iterator[Case]:
    """Settings that are each in range and do not go together, and words that are no settings."""
    told = [
        ("generate", "fps=4 stride=2"), ("generate", "start=1 end=0.5"), ("generate", "start=1000"),
        ("generate", "stride=50"), ("generate", "num_frames=9"), ("generate", "num_frames=1000"),
        ("generate", "alpha=mask"), ("generate", "alpha=plain"), ("generate", "model.image_size=15"),
        ("generate", "model.image_size=8"), ("generate", "model.image_size=64"), ("generate", "model.window=3"),
        ("generate", "model.window=100"), ("generate", "model.channels=[32,64]"), ("generate", "model.offload=model"),
        ("generate", "model.num_inference_steps=1000"), ("generate", "output=in"), ("generate", "output=model"),
        ("generate", "mask=in/000.png"), ("generate", "video=in/*.jpg"), ("generate", "video=in/000.png"),
        ("generate", "device=cuda"), ("generate", "device=gpu"), ("generate", "num_views=4 video=model"),
        ("fit", "num_frames=1"), ("fit", "max_steps=0"), ("fit", "sds.resolutions=[16,32]"),
        ("fit", "sds.resolution_milestones=[5]"), ("fit", "sds.resolutions=[16,32] sds.resolution_milestones=[9,0]"),
        ("fit", "loss.anchor_view=4"),
        ("fit", "loss.lambda_rgb=0 loss.lambda_input=0 loss.anchor=false sds.source=off"),
        ("fit", "loss.anchor=false loss.lambda_rgb=0 loss.lambda_input=0 sds.every=2"), ("fit", "sds.source=none"),
        ("fit", "scene.field.radius=2"), ("fit", "scene.grid_backend=tinycudann"), ("fit", "scene.ray_backend=nerfacc"),
        ("fit", "trackers=[nowhere]"), ("fit", "trackers=[wandb]"), ("fit", "sds.t_start=0.1 sds.t_min_end=0.9"),
        ("fit", "output=in"), ("fit", "output=model"), ("fit", "model.path=null"), ("fit", "device=cuda"),
        ("fit", "scene.renderer.normals=smooth"), ("fit", "scene.renderer.bounds=box"),
        ("train", "stage=dance"), ("train", "model.path=null"), ("train", "batch_size=3 micro_batch_size=2"),
        ("train", "data.num_frames=9"), ("train", "data.num_frames=5"), ("train", "data.frame_stride=3"),
        ("train", "data.num_views=5"), ("train", "data.num_views=16"), ("train", "mixed_precision=fp8"),
        ("train", "frozen_dtype=bfloat16"), ("train", "frozen_dtype=int8"), ("train", "stage=clip"),
        ("train", "model.dtype=bfloat16"), ("train", "output=clips"), ("train", "output=model"),
        ("train", "trackers=[nowhere]"), ("train", "validation_every=1 validation_data=nowhere"),
        ("train", "stage=vae lpips_weight=1 lpips_weights=nowhere"), ("train vae", "crop_size=17"),
        ("train vae", "crop_size=15"), ("train vae", "model.vae_norm_groups=3"), ("train vae", "model.text_heads=7"),
        ("train vae", "model.channels=[32]"), ("train vae", "model.attention_levels=[true]"),
        ("train vae", "model.head_dim=7"), ("train vae", "model.image_patch=9"), ("train vae", "model.norm_groups=5"),
        ("train vae", "model.image_heads=3"), ("train vae", "model.prediction_type=sample"),
        ("train vae", "model.image_patch=100"), ("train vae", "model.motion_heads=5"),
        ("render", "output=run/scene/config.json"), ("render", "scene=run/scene/config.json"),
        ("render", "path=still format=mp4 output=out.png"), ("render still", "background=blue"),
        ("render still", "background=#12"), ("render still", "format=bmp"),
        ("render still", "output=out.mp4 format=png"),
        ("render still", "channel=color"), ("render still", "path=stil"), ("render still", "path=nowhere.json"),
        ("render still", "background=transparent format=mp4 output=out.mp4"), ("render still", "time=1.5"),
        ("export", "format=fbx"), ("export", "output=out.obj"), ("export", "output=out"),
        ("export images", "output=run"),
        ("export", "format=html output=out.glb"), ("export", "scene=run/scene/occupancy.safetensors"),
        ("export", "iso_level=1e9"), ("view", "output=out.txt"), ("view", "output=run"),
        ("evaluate", "reference=gen/nowhere"), ("evaluate", "reference=clips"), ("evaluate", "reference=null"),
        ("evaluate", "prediction=model"), ("evaluate", "reference=model"), ("evaluate", "protocol=nowhere"),
        ("evaluate", "protocol.metrics=[psnrs]"), ("evaluate", "protocol.views=[view_9]"),
        ("evaluate", "protocol.fvd=best"), ("evaluate", "protocol.frame_choice=x"), ("evaluate", "weights=nowhere"),
        ("evaluate", "compare=[nowhere.json]"), ("evaluate", "truth=nowhere"),
        ("evaluate", "output=gen/clip/transforms.json"),
        ("convert", "imagedream=null"), ("convert", "model.path=release"), ("convert", "output=release"),
        ("convert", "dtype=int8"), ("convert", "tokenizer=nowhere"), ("convert", "motion=release/ipmv.pt"),
        ("convert", "model.text_layers=2"), ("convert", "model.channels=[32,64]"), ("convert back", "output=out"),
        ("convert back", "output=out.txt"), ("convert back", "model.path=release"),
        ("data synth", "rig=square"), ("data synth", "num_views=5"), ("data synth", "split=validation"),
        ("data synth", "plans=unseen split=train"), ("data synth", "first_seed=1000000 split=train"),
        ("data synth", "num_clips=0 num_faulty=0"), ("data synth", "plans=other"), ("data synth", "output=/proc/x"),
        ("data render", "engine=maya"), ("data render", "engine=cycles blender=/bin/false"),
        ("data render", "engine=cycles blender=nowhere"), ("data render", "part=end"),
        ("data render", "distance=[2,1]"),
        ("data render", "distance=[1]"), ("data render", "elevation_deg=[0]"), ("data render", "supersampling=2"),
        ("data render", "hdri=nowhere.hdr"), ("data render", "manifest=nowhere.tsv"), ("data render", "num_frames=1"),
        ("data render", "animations=nowhere*"), ("data render", "assets=in"), ("data render", "output=assets"),
        ("data render", "lights=[{kind: lamp}]"), ("data render", "lights=[{power: 1}]"), ("data render", "lights=[1]"),
        ("data render", "lights=[{strength: nan}]"), ("data render", "lights=[{strength: -1}]"),
    ]  # fmt: skip
    passes = {
        ("generate", "model.window=3"), ("train", "data.num_frames=5"), ("export", "iso_level=1e9"),
        ("generate", "model.image_size=8"), ("data synth", "first_seed=1000000 split=train"), ("train", "stage=clip"),
        ("evaluate", "reference=clips"), ("generate", "model.window=100"), ("convert back", "output=out"),
        ("fit", "sds.t_start=0.1 sds.t_min_end=0.9"), ("data render", "output=assets"), ("fit", "trackers=[wandb]"),
        ("data render", "animations=nowhere*"), ("generate", "num_frames=9"),
    }  # fmt: skip
    for name, text in told:
        uses = tuple(dict.fromkeys((*ALL[name][1], *(x for x in INPUTS if f"={x}" in text))))
        yield Case(f"{name}: {text}", command(name, *split(text)), uses, refused=(name, text) not in passes)
    for name in (*COMMANDS, *NEVER_PASS):
        words, uses = command(name), ALL[name][1]
        for extra in ("seed", "--seed", "-seed=1", "--config-path=nowhere", "--config-name=x", "--config-dir=nowhere",
                      "=1", "out=1=2", "+new=1", "~seed", "++x.y=1", "experiment=nowhere", "--multirun --cfg=job",
                      "--cfg=nothing", "--info=nothing", "hydra/launcher=nowhere", "hydra.nothing=1", "--resume",
                      "hydra.run.dir=[", "--package=x.y --cfg=job", "--shell-completion"):  # fmt: skip
            passes_too = extra in ("out=1=2",) and name == "doctor"
            yield Case(f"{name}: {extra}", [*words, *extra.split()], uses, refused=not passes_too)
    for words in (
        ["fitt"],
        ["data"],
        ["data", "nothing"],
        ["nowhere.mp4"],
        ["a\x1b[31m.mp4"],
        ["fit", "fit"],
        ["--versio"],
        ["render", "render"],
        ["convert"],
        ["evaluate"],
        ["fit"],
        ["train"],
        ["x" * 5000],
    ):
        yield Case(f"words: {' '.join(words)[:40]!r}", list(words), ("in",), refused=words != ["data"])
    small = command("fit")[2:]  # without the verb and the video, which is a word of its own here
    for words in (["in", "--explain"], ["in", *small], ["in", *small, "--explain"]):
        yield Case(f"words: quick {len(words)}", words, ("in", "model"), refused=False)
    for extra in ("video=in", "max_steps=0", "--resume", "nothing=1", "seed=nan", "model.path=nowhere", "output=in"):
        yield Case(f"words: quick {extra}", ["in", *small, extra], ("in", "model"))


def split(text: str) -> list[str]:
    """Return the words of a text; what stands in braces or brackets is one word."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == " " and depth == 0:
            words.append("")
        else:
            words[-1] += letter
    return words


# ---- paths ----------------------------------------------------------------------------------------------------------

PATHS: dict[str, dict[str, str]] = {  # {command: {setting: what it is given: an input, or "new" for an output}}
    "generate": {"video": "in", "mask": "in", "model.path": "model", "output": "new", "matting_model": "file"},
    "fit": {"video": "in", "mask": "in", "model.path": "model", "output": "new", "loss.lpips_weights": "in",
            "matting_model": "file"},
    "train": {"data.path": "clips", "model.path": "model", "output": "new", "validation_data": "clips",
              "lpips_weights": "in"},
    "train vae": {"data.path": "clips", "model.path": "model", "output": "new", "validation_data": "clips",
                  "lpips_weights": "in"},
    "render": {"scene": "run", "output": "new", "path": "file"},
    "render still": {"scene": "run", "output": "new", "path": "file"},
    "export": {"scene": "run", "output": "new"},
    "export images": {"scene": "run", "output": "new"},
    "view": {"scene": "run", "output": "new"},
    "evaluate": {"prediction": "gen", "reference": "truth", "truth": "truth", "output": "new", "weights": "in",
                 "lpips": "in", "feature_cache": "new"},
    "evaluate scene": {"prediction": "run", "reference": "truth", "truth": "truth", "output": "new", "weights": "in",
                       "lpips": "in", "feature_cache": "new"},
    "convert": {"imagedream": "release/ipmv.pt", "motion": "file", "tokenizer": "release", "output": "new",
                "model.path": "model"},
    "convert back": {"imagedream": "release/ipmv.pt", "motion": "file", "tokenizer": "release", "output": "new",
                     "model.path": "model"},
    "data synth": {"output": "new"},
    "data render": {"assets": "assets", "output": "new", "manifest": "file", "blender": "file", "hdri": "file"},
    "fit views": {"views": "truth", "output": "new"},
    "data curate": {"clips": "clips", "output": "new", "captions": "file", "captioner": "file"},
    "data pack": {"clips": "clips", "output": "new", "ids": "file", "manifest": "file"},
    "data objaverse": {"output": "new", "captions": "file"},
    "app": {"output": "new"},
    "doctor": {"model.path": "model"},
}  # fmt: skip
PASSING = ("matting_model", "loss.lpips_weights", "lpips_weights", "validation_data", "lpips", "weights",
           "blender", "manifest", "hdri", "truth", "mask", "feature_cache")  # fmt: skip


def of_paths(name: str) -> Iterator[Case]:
    """Paths that name nothing, another kind of thing, or something that may not be read or written."""
    for setting, given in PATHS.get(name, {}).items():
        uses = tuple(dict.fromkeys((*ALL[name][1], *([given.split("/")[0]] if given.split("/")[0] in INPUTS else []))))
        makers = d.OUTPUTS if given == "new" else d.INPUTS
        for kind, (text, change, always) in makers.items():
            refused = always and setting not in PASSING and name != "doctor"
            if name in NEVER_PASS and not refused:
                continue
            yield Case(f"{name}: {setting} {kind}", command(name, f"{setting}={text}"), uses, (change,), refused,
                       plain_user="permission" in kind or "read-only" in kind)  # fmt: skip
        if given in INPUTS and name not in NEVER_PASS:
            for kind, rename in d.NAMES.items():
                place = d.renamed(given, rename)
                yield Case(
                    f"{name}: {setting} named {kind}", command(name, f"{setting}={rename}"), uses, (place,), False
                )


# Of many clips these leave out what they cannot read, and say so.
TOLD = {"train": "skipped: clip-0", "data pack": "left out: 1 clips", "data curate": "unreadable"}


# ---- damaged inputs -------------------------------------------------------------------------------------------------


def damaged() -> Iterator[Case]:
    """Inputs with one thing wrong in one of their files."""
    for name in ("generate", "fit"):
        for kind, change in d.PICTURES.items():
            yield Case(f"{name}: picture {kind}", command(name), ALL[name][1], (change,), kind not in d.GOOD_PICTURES)
        for kind, (text, change) in d.VIDEOS.items():
            yield Case(f"{name}: video {kind}", command(name, f"video={text}"), ALL[name][1], (change,))
    clips = [("train", "clips/clip-0"), ("evaluate", "truth"), ("evaluate scene", "truth"), ("evaluate", "gen/clip"),
             ("fit resumed", "run/generated"), ("fit views", "truth"), ("fit views resumed", "truth"),
             ("data curate", "clips/clip-0"), ("data pack", "clips/clip-0")]  # fmt: skip
    for name, place in clips:
        for kind, (change, refused) in d.TRANSFORMS.items():
            told = TOLD.get(name, "")
            must = refused and not (told and kind == "missing")  # then the folder is no clip
            yield Case(
                f"{name}: {place} {kind}", command(name), ALL[name][1], (d.inside(place, change),), must, told=told
            )
        for kind, change in d.CLIP_PICTURES.items():
            good = kind in d.GOOD_PICTURES or name in TOLD  # which pictures are read is drawn
            yield Case(
                f"{name}: {place} picture {kind}", command(name), ALL[name][1], (d.inside(place, change),), not good
            )
    for name in ("generate", "fit", "train", "convert back", "doctor"):
        for kind, change, refused in w.models():
            must = refused and name in ("generate", "fit", "train")
            yield Case(f"{name}: model {kind}", command(name), ALL[name][1], (d.inside("model", change),), must)
    for name in ("render", "render still", "export", "export images", "view", "evaluate scene"):
        for kind, change, refused in w.scenes():
            yield Case(f"{name}: scene {kind}", command(name), ALL[name][1], (d.inside("run", change),), refused)
    for name, place in (
        ("fit resumed", "run"),
        ("train resumed", "trained"),
        ("fit views resumed", "captured"),
        ("generate again", "gen"),
    ):
        for kind, change, refused in w.runs(name):
            yield Case(f"{name}: {kind}", command(name), ALL[name][1], (d.inside(place, change),), refused)
        yield Case(f"{name}: as it is", command(name), ALL[name][1], (), False)
        for other in ("run", "trained", "captured", "gen", "in", "clips", "release"):
            if other != place:
                yield Case(f"{name}: output of another kind, {other}", command(name, f"output={other}"),
                           tuple(dict.fromkeys((*ALL[name][1], other))))  # fmt: skip
    for kind, change, refused in w.releases():
        yield Case(f"convert: {kind}", command("convert"), ALL["convert"][1], (change,), refused)
    for kind, (change, refused) in t.PATH_FILES.items():
        yield Case(f"render still: path {kind}", command("render still", "path=p.json"), ("run",), (change,), refused)
    for kind, change in t.ASSETS.items():
        yield Case(f"data render: asset {kind}", command("data render"), ("assets",), (change,), False)
    for name in COMMANDS:
        for kind, (change, refused) in t.YAMLS.items():
            yield Case(f"{name}: --config-path {kind}", [*command(name), "--config-path", "y"], ALL[name][1], (change,),
                       refused)  # fmt: skip
            if name in ("fit", "train"):
                words = [*command(name), "--config-dir", "y", "experiment=config"]
                yield Case(f"{name}: experiment {kind}", words, ALL[name][1], (t.as_experiment(change),), refused)


# ---- choice ---------------------------------------------------------------------------------------------------------


def all_cases() -> dict[str, list[Case]]:
    """Return the cases by kind."""
    return {
        "settings": [case for name in (*COMMANDS, *NEVER_PASS) for case in of_settings(name)],
        "contradictions": list(contradictions()),
        "paths": [case for name in (*COMMANDS, *NEVER_PASS) for case in of_paths(name)],
        "damaged": list(damaged()),
    }


def payloads() -> list[Case]:
    """Return the cases whose inputs would run a program in a careless reader."""
    kinds = r"(eps|code$|pickle that runs|python object|python name|target)"
    found = [case for case in damaged() if re.search(kinds, case.name)]
    return [case for case in found if not case.name.startswith("doctor")]


def offline() -> list[Case]:
    """Return every command as it should be, without a network."""
    cases = [Case(f"{name}: offline", command(name), uses, refused=False, offline=True)
             for name, (_, uses) in COMMANDS.items()]  # fmt: skip
    return cases


def choose(count: int, seed: int) -> list[Case]:
    """Return so many cases, drawn from all kinds: a quarter of each, or all where there are fewer."""
    rng, chosen = Random(seed), []
    kinds = sorted(all_cases().values(), key=len)
    for number, cases in enumerate(kinds):
        share = min(len(cases), (count - len(chosen)) // (len(kinds) - number))
        chosen += rng.sample(cases, share)
    return chosen

"""The command `fourdiffusion VERB KEY=VALUE ...`: finds the verb, has it explained or run, reports mistakes.

A new verb is one entry of VERBS, its settings dataclass and configs/<function>.yaml.
"""

import difflib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fourdiffusion import __version__
from fourdiffusion.errors import Terminated, UserError
from fourdiffusion.mistakes import mistake, reader_is_gone, safe_streams


@dataclass(frozen=True)
class Verb:
    """A function of one settings dataclass (``settings`` is module:Class). configs/<function>.yaml is its root file.

    ``basic`` are the settings that people use: --help shows them, and --help all the others.
    """

    words: str
    module: str
    function: str
    settings: str
    summary: str
    examples: tuple[str, ...]
    basic: tuple[str, ...]
    makes_model: bool = False  # so that the network's sizes matter, which a loaded model brings along


VERBS = (
    Verb(
        "data synth",
        "fourdiffusion.prepare.synth",
        "synth",
        "fourdiffusion.prepare.settings:SynthConfig",
        "make clips of animated creatures with known geometry, seen from several cameras at once",
        ("fourdiffusion data synth output=cache/clips",),
        ("output", "num_clips", "split", "num_views", "num_frames", "size", "rig", "num_faulty", "num_workers"),
    ),
    Verb(
        "data render",
        "fourdiffusion.prepare.render_assets",
        "render_assets",
        "fourdiffusion.datasets.rendering.settings:RenderAssetsConfig",
        "render animated assets to clips of many views, with Blender or, for glTF, with OpenGL",
        (
            "fourdiffusion data render assets=assets output=cache/clips",
            "fourdiffusion data render assets=assets output=cache/clips engine=opengl width=128 height=128 num_views=8",
        ),
        (
            "assets",
            "output",
            "engine",
            "blender",
            "width",
            "height",
            "num_views",
            "num_random_views",
            "num_frames",
            "animations",
            "num_workers",
        ),
    ),
    Verb(
        "train",
        "fourdiffusion.train.loop",
        "train",
        "fourdiffusion.train.settings:TrainConfig",
        "train the multi-view video model, one stage after the other: vae, clip, base (images), motion (videos)",
        (
            "fourdiffusion train stage=motion data.path=cache/clips model.path=data/models/tiny",
            "fourdiffusion train stage=base data.path=cache/clips output=runs/base",
            "accelerate launch -m fourdiffusion train stage=motion data.path=cache/clips model.path=runs/base/model",
            "torchrun --nproc_per_node 2 -m fourdiffusion train stage=motion data.path=cache/clips",
        ),
        (
            "stage",
            "data.path",
            "output",
            "model.path",
            "max_steps",
            "batch_size",
            "learning_rate",
            "mixed_precision",
            "validation_every",
            "seed",
        ),
        makes_model=True,
    ),
    Verb(
        "convert",
        "fourdiffusion.convert",
        "convert",
        "fourdiffusion.settings:ConvertConfig",
        "make a model folder of released checkpoints, or a checkpoint of trained motion layers",
        (
            "fourdiffusion convert imagedream=sd-v2.1-base-4view-ipmv.pt motion=4dm.ckpt output=models/4dm",
            "fourdiffusion convert imagedream=sd-v2.1-base-4view-ipmv.pt output=models/imagedream dtype=bfloat16",
            "fourdiffusion convert model.path=runs/motion/model output=motion.ckpt",
        ),
        ("imagedream", "motion", "output", "tokenizer", "dtype", "model.path"),
        makes_model=True,
    ),
    Verb(
        "generate",
        "fourdiffusion.generate",
        "generate",
        "fourdiffusion.settings:GenerateConfig",
        "turn a video into videos of the same motion seen from four sides",
        ("fourdiffusion generate video=clip.mp4",),
        (
            "video",
            "output",
            "prompt",
            "num_frames",
            "num_views",
            "elevation_deg",
            "alpha",
            "crop",
            "seed",
            "model.path",
            "model.num_inference_steps",
        ),
    ),
    Verb(
        "fit",
        "fourdiffusion.fit.loop",
        "fit",
        "fourdiffusion.fit.settings:FitConfig",
        "turn a video into a 4-D scene",
        ("fourdiffusion fit video=clip.mp4", "fourdiffusion fit video='frames/*.png'"),
        (
            "video",
            "output",
            "prompt",
            "num_frames",
            "alpha",
            "crop",
            "max_steps",
            "seed",
            "sds.source",
            "model.path",
            "device",
        ),
    ),
    Verb(
        "render",
        "fourdiffusion.render",
        "render",
        "fourdiffusion.settings:RenderConfig",
        "draw a fitted scene from any camera at any time",
        ("fourdiffusion render scene=runs/clip",),
        ("scene", "output", "size", "orbit_pictures", "num_azimuths", "elevation_deg", "device"),
    ),
    Verb(
        "export",
        "fourdiffusion.export",
        "export",
        "fourdiffusion.settings:ExportConfig",
        "write a fitted scene as animated GLB, meshes, splats, an HTML page, images or a dataset",
        (
            "fourdiffusion export scene=runs/clip",
            "fourdiffusion export scene=runs/clip format=html output=clip.html",
        ),
        ("scene", "format", "output", "fps", "resolution", "iso_level", "scale", "author", "license", "device"),
    ),
    Verb(
        "view",
        "fourdiffusion.view",
        "view",
        "fourdiffusion.settings:ViewConfig",
        "turn a scene and its time in the browser, also while it is being fitted",
        ("fourdiffusion view scene=runs/clip", "fourdiffusion view scene=runs/clip html=true output=clip.html"),
        ("scene", "port", "size", "html", "output", "device"),
    ),
    Verb(
        "evaluate",
        "fourdiffusion.evaluate",
        "evaluate",
        "fourdiffusion.evaluate.settings:EvaluateConfig",
        "measure runs, or anybody's frames, against ground truth under a named protocol",
        (
            "fourdiffusion evaluate prediction=runs/clip reference=data/sample/truth",
            "fourdiffusion evaluate prediction=c4d/pred reference=c4d/gt protocol=consistent4d weights=cache/weights",
        ),
        ("prediction", "reference", "weights", "output", "device", "compare", "page"),
    ),
    Verb(
        "doctor",
        "fourdiffusion.doctor",
        "doctor",
        "fourdiffusion.settings:DoctorConfig",
        "say what is installed, what is missing, and the line that installs it",
        ("fourdiffusion doctor",),
        ("model.path",),
    ),
)


HELP = {"-h", "--help"}
VIDEO_SUFFIXES = {".mp4", ".gif", ".webm", ".mov", ".avi", ".mkv", ".m4v"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0; 2 for a mistake of the user's; 130 when interrupted; 141 when the reader of the output has left, as `head` does.
    With HYDRA_FULL_ERROR=1 in the environment a mistake keeps its traceback.
    """
    words = sys.argv[1:] if arguments is None else arguments
    safe_streams()
    try:
        _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return _report("interrupted: where a run was begun, the same command goes on from its last checkpoint", 130)
    except Terminated as error:
        return _report(str(error), 128 + error.signal_number)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            return 141
        text = mistake(error)
        if text is None or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        return _report(f"error: {text}", 2)


def _report(text: str, code: int = 0) -> int:
    print(" ".join(text.splitlines()), file=sys.stderr)
    return code


def _run(words: list[str]) -> None:
    from fourdiffusion import help_text

    if not words or words[0] in HELP:
        print(help_text.overview(VERBS))
        return
    if words[0] == "--version":
        print(f"fourdiffusion {__version__}")
        return
    verb, rest = _find(words)
    if verb is None:
        print(help_text.overview(tuple(each for each in VERBS if each.words.startswith(f"{words[0]} "))))
        return
    if HELP & set(rest):
        position = next(number for number, word in enumerate(rest) if word in HELP)
        in_full = rest[position + 1 : position + 2] == ["all"]
        del rest[position : position + 1 + in_full]
        print(help_text.explain(verb, rest, in_full))
        return
    from fourdiffusion import launch

    launch.run(launch.Task(verb.module, verb.function, verb.settings), rest, lambda text: _report(f"warning: {text}"))


def _find(words: list[str]) -> tuple[Verb | None, list[str]]:
    """The verb and the words after it; None where the words are the beginning of several verbs."""
    for verb in VERBS:
        length = len(verb.words.split())
        if words[:length] == verb.words.split():
            return verb, words[length:]
    begun = [verb.words for verb in VERBS if verb.words.startswith(f"{words[0]} ")]
    if begun and (len(words) == 1 or words[1] in HELP):
        return None, []
    if not begun and _is_video(words[0]):
        return _for_video(words)
    said = " ".join(words[:2]) if begun else words[0]
    known = [verb.words for verb in VERBS]
    alike = difflib.get_close_matches(said, known, n=1) or difflib.get_close_matches(" ".join(words[:2]), known, n=1)
    raise UserError(f"there is no verb '{said}': {f'did you mean {alike[0]}?' if alike else 'use ' + ', '.join(known)}")


def _is_video(word: str) -> bool:
    """Whether a first word is no verb but a file, a folder, or the name of a video."""
    try:
        if Path(word).exists():
            return True
    except OSError:  # a name that no file can have
        return False
    return "=" not in word and Path(word).suffix.lower() in VIDEO_SUFFIXES


def _for_video(words: list[str]) -> tuple[Verb | None, list[str]]:
    """`fourdiffusion VIDEO ...` is reserved: here it will become a verb and its words."""
    raise UserError(f"'{words[0]}' is no verb: say what to do with it, for example fourdiffusion fit video={words[0]}")

"""The command `fourdiffusion VERB KEY=VALUE ...`: find the verb, explain it or run it, report mistakes."""

import difflib
import os
import sys
from pathlib import Path

from fourdiffusion import __version__
from fourdiffusion.cli import verbs
from fourdiffusion.cli.mistakes import mistake, reader_is_gone, safe_streams
from fourdiffusion.cli.schema import shipped
from fourdiffusion.cli.verbs import Verb
from fourdiffusion.errors import Terminated, UserError
from fourdiffusion.media.paths import printable
from fourdiffusion.startup import prepare_process

HELP = {"-h", "--help"}
VIDEO_SUFFIXES = {".mp4", ".gif", ".webm", ".mov", ".avi", ".mkv", ".m4v"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0; 2 for a mistake of the user's; 130 when interrupted; 141 when the reader of the output has closed it, as `head`
    does.
    With HYDRA_FULL_ERROR=1 in the environment a mistake keeps its traceback.
    """
    words = sys.argv[1:] if arguments is None else arguments
    safe_streams()
    prepare_process()
    try:
        _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return _report("interrupted: run the same command again to resume a run from its last checkpoint", 130)
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
    print(printable(" ".join(text.splitlines())), file=sys.stderr)
    return code


def _run(words: list[str]) -> None:
    from fourdiffusion.cli import help_text

    if not words or words[0] in HELP:
        print(help_text.overview(verbs.VERBS))
        return
    if words[0] == "--version":
        print(f"fourdiffusion {__version__}")
        return
    if words[0] == "doctor":
        words = ["json=true" if word == "--json" else word for word in words]
    if _is_quick(words) and not HELP & set(words):
        from fourdiffusion.cli import quick

        quick.run(words, lambda text: _report(f"warning: {text}"))
        return
    verb, rest = find(words)
    if verb is None:
        print(help_text.overview(tuple(each for each in verbs.VERBS if each.words.startswith(f"{words[0]} "))))
        return
    if HELP & set(rest):
        position = next(number for number, word in enumerate(rest) if word in HELP)
        in_full = rest[position + 1 : position + 2] == ["all"]
        del rest[position : position + 1 + in_full]
        print(help_text.explain(verb, rest, in_full))
        return
    from fourdiffusion.cli import launch

    launch.run(launch.Task(verb.module, verb.function, verb.settings), rest, lambda text: _report(f"warning: {text}"))


def find(words: list[str]) -> tuple[Verb | None, list[str]]:
    """Return the verb and the words after it; None where the words are the beginning of several verbs."""
    if words[0] == "fit" and any(word.startswith("views=") for word in words):
        words = ["fit", "views", *words[1:]]  # `fit views=FOLDER` is a verb of its own
    for verb in verbs.VERBS:
        length = len(verb.words.split())
        if words[:length] == verb.words.split():
            return verb, words[length:]
    begun = [verb.words for verb in verbs.VERBS if verb.words.startswith(f"{words[0]} ")]
    if begun and (len(words) == 1 or words[1] in HELP):
        return None, []
    if _is_quick(words):  # for help: it takes the settings of fit
        video = shipped(verbs.SAMPLE) if words[0] == "demo" else words[0]
        return find(["fit", f"video={video}", *(word for word in words[1:] if word != "--explain")])
    said = " ".join(words[:2]) if begun else words[0]
    known = [verb.words for verb in verbs.VERBS]
    alike = difflib.get_close_matches(said, known, n=1) or difflib.get_close_matches(" ".join(words[:2]), known, n=1)
    raise UserError(f"there is no verb '{said}': {f'did you mean {alike[0]}?' if alike else 'use ' + ', '.join(known)}")


def _is_video(word: str) -> bool:
    """Return whether a first word is no verb but a file, a folder, or the name of a video."""
    try:
        if Path(word).exists():
            return True
    except OSError:  # a name that no file can have
        return False
    return "=" not in word and Path(word).suffix.lower() in VIDEO_SUFFIXES


def _is_quick(words: list[str]) -> bool:
    """Return whether the words begin with `demo`, or with a video in place of a verb."""
    firsts = {verb.words.split()[0] for verb in verbs.VERBS}
    return words[0] == "demo" or (words[0] not in firsts and _is_video(words[0]))

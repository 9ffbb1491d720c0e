"""The command `fourdiffusion VERB KEY=VALUE ...`: find the verb, explain it or run it, report mistakes."""

import difflib
import os
import sys
from pathlib import Path

from fourdiffusion import __version__
from fourdiffusion.cli import verbs
from fourdiffusion.cli.mistakes import mistake, reader_is_gone, safe_streams
from fourdiffusion.cli.verbs import Verb
from fourdiffusion.errors import Terminated, UserError

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
    from fourdiffusion.cli import help_text

    if not words or words[0] in HELP:
        print(help_text.overview(verbs.VERBS))
        return
    if words[0] == "--version":
        print(f"fourdiffusion {__version__}")
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
    """The verb and the words after it; None where the words are the beginning of several verbs."""
    for verb in verbs.VERBS:
        length = len(verb.words.split())
        if words[:length] == verb.words.split():
            return verb, words[length:]
    begun = [verb.words for verb in verbs.VERBS if verb.words.startswith(f"{words[0]} ")]
    if begun and (len(words) == 1 or words[1] in HELP):
        return None, []
    if not begun and _is_video(words[0]):
        return _for_video(words)
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


def _for_video(words: list[str]) -> tuple[Verb | None, list[str]]:
    """`fourdiffusion VIDEO ...` is reserved: here it will become a verb and its words."""
    raise UserError(f"'{words[0]}' is no verb: say what to do with it, for example fourdiffusion fit video={words[0]}")

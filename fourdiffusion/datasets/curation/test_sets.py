"""Objects of published test sets: detect them in texts, and refuse to train on them.

The lists are in lists/, each with its source in the first line. An Objaverse uid is 32 hexadecimal digits; a clip
carries one where its own name or its source holds it, as in `<uid>-<animation>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from fourdiffusion.datasets.curation.settings import TEST_SETS
from fourdiffusion.errors import UserError

LISTS = Path(__file__).with_name("lists")
UID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


class TestObjectError(UserError):
    """A clip shows an object of a test set."""

    __test__ = False  # keep pytest from collecting it


@cache
def shipped_ids(name: str) -> tuple[str, ...]:
    """Return the ids of a shipped list: consistent4d, objaversedy, motion80 or paper926."""
    lines = (LISTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


@cache
def _test_sets_by_id() -> dict[str, str]:
    return {uid: name for name in TEST_SETS for uid in shipped_ids(name)}


def ids_in(*texts: str) -> list[str]:
    """Return the unique Objaverse uids in texts, in order."""
    return list(dict.fromkeys(uid for text in texts for uid in UID.findall(text.lower())))


def test_sets_of(*texts: str) -> list[str]:
    """Return the test sets whose objects appear in texts, such as ["motion80"]."""
    return sorted({_test_sets_by_id()[uid] for uid in ids_in(*texts) if uid in _test_sets_by_id()})


def check_contamination(names: Iterable[str], allowed: list[str], setting: str) -> None:
    """Raise TestObjectError for the first name or source of a clip that is an object of a test set.

    ``allowed`` are the test sets that may be used, the value of ``setting``.
    """
    for name in names:
        found = [each for each in test_sets_of(name) if each not in allowed]
        if found:
            raise TestObjectError(
                f"{name} is an object of the test set {found[0]}: leave it out with `fourdiffusion data curate`, or "
                f"set {setting}=[{found[0]}] and report it with your results"
            )


def contamination(ids: Iterable[str]) -> dict[str, list[str]]:
    """Return {test set: ids that are objects of it} for every test set."""
    listed = set(ids)
    return {name: [uid for uid in shipped_ids(name) if uid in listed] for name in TEST_SETS}

"""Docs say what the code is called, and use the field's words."""

import importlib
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

DIALECT = (  # phrases of an earlier edition; the standard term stands in docs/glossary.md
    "so manieth",
    "for want of",
    "what is said about",
    "take no turns",
    "its sisters",
    "towers lie",
    "lie in this",
    "speaks of",
    "speak of",
    "nothing is left to see",
    "patient_interrupt",
    "teaching.",
    "Teacher",
    "number of ours",
    "run of ours",
    "file of ours",
    "not ours (",
    "nobody was shown",
    "goes on from where",
)


def test_every_function_in_method_exists() -> None:
    names = re.findall(r"`(fourdiffusion(?:\.\w+)+)`", (ROOT / "docs/method.md").read_text(encoding="utf-8"))
    assert len(names) > 20
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_equation_of_the_paper_that_is_implemented_is_in_method() -> None:
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    for equation in ("Eq. 7", "Eq. 10", "Eq. 11"):
        assert equation in text


def test_the_dialect_is_gone() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = []
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix not in {".py", ".md", ".yaml", ".toml", ".sh"} or path == Path(__file__) or "faults" in name:
            continue
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        found += [f"{name}: {phrase}" for phrase in DIALECT if phrase in text]
    assert not found, "\n".join(found)


def test_the_glossary_names_each_term_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    terms = [row.strip() for row in rows if row.strip() not in ("term", "---")]
    assert len(terms) >= 60 and len(set(terms)) == len(terms)

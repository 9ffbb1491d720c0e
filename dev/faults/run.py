"""Break the program on purpose, one fault at a time, and see which test fails.

python dev/faults/run.py            # every list in this folder
python dev/faults/run.py fit train  # some of them
python dev/faults/run.py fit --only azimuth   # faults whose name holds a word

Each list is a file NAME.py beside this one with ``FAULTS``: (name, file, old text, new text, test ids). The fault is
applied to a copy of the tree, where the old text must stand exactly once; then its tests run. The table says which test
failed first. Exit code 1: a fault passed all its tests, or could not be applied.
"""

import argparse
import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COPIED, LINKED = ("fourdiffusion", "tests", "scripts", "pyproject.toml"), ("configs", "data")
SLOW = ("torch", "numba", "diffusers", "transformers", "tensorboard", "av", "PIL", "yaml")  # to import
Fault = tuple[str, str, str, str, list[str]]


def read_faults(name: str) -> list[Fault]:
    """Return the list of one file of this folder."""
    spec = importlib.util.spec_from_file_location(f"faults_{name}", HERE / f"{name}.py")
    if spec is None or spec.loader is None or not (HERE / f"{name}.py").is_file():
        raise SystemExit(f"{HERE / name}.py is no list of faults")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.FAULTS)


def copy_tree(folder: Path) -> None:
    """Copy what the tests need, with numba's compiled kernels; large files are linked."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.pyc"))
        else:
            shutil.copy(source, folder / name)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)


def try_fault(folder: Path, fault: Fault) -> tuple[bool, str]:
    """Return whether a test failed with the fault in place, and which one or what was wrong instead."""
    _, file, old, new, tests = fault
    path = folder / file
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        return False, f"not applied: the old text stands {text.count(old)} times in {file}"
    path.write_text(text.replace(old, new), encoding="utf-8")
    try:
        code, output = run_tests(folder, tests)
    finally:
        path.write_text(text, encoding="utf-8")
    failed = [line.split(" ")[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if code == 1 and failed:
        return True, failed[0].split("/")[-1]
    return False, "SURVIVES" if code == 0 else f"pytest ended with {code}: {output.strip().splitlines()[-1:]}"


def run_tests(folder: Path, tests: list[str]) -> tuple[int, str]:
    """Run tests of a copy in a fork of this process, which has imported what is slow to import; code and output."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        child = os.fork()
        if child == 0:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.chdir(folder)
            os.environ["PYTHONPATH"] = sys.path[0] = str(folder)  # for processes that tests start, and for this one
            sys.dont_write_bytecode = True
            code = 3
            try:
                code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]))
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        file.seek(0)
        return os.waitstatus_to_exitcode(status), file.read()


def main() -> int:
    """Print a Markdown table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="*", help="names of files beside this one; all of them if none is given")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    arguments = parser.parse_args()
    names = arguments.lists or sorted(path.stem for path in HERE.glob("*.py") if path.stem != "run")
    for name in SLOW:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    survivors = 0
    print("| list | fault | failing test | seconds |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        copy_tree(Path(temporary))
        for name in names:
            for fault in read_faults(name):
                if arguments.only in fault[0]:
                    began = time.monotonic()
                    caught, what = try_fault(Path(temporary), fault)
                    survivors += not caught
                    print(f"| {name} | {fault[0]} | {what} | {time.monotonic() - began:.0f} |", flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())

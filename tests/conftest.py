"""Fixtures shared by several test files."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "dev"))

import forks  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Leave the imported modules out of garbage collection: a tenth of the time."""
    forks.collect_garbage()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums split over threads round differently: where bits are compared, torch computes with one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of every verb's small command (dev/tiny_commands.py), with the kernels compiled; not to be changed."""
    import bad_commands

    folder = tmp_path_factory.mktemp("base")
    bad_commands.prepare(folder)
    return folder


@pytest.fixture(scope="session")
def known_answers() -> Path:
    """The known answers in the repository: their weights follow from a rule, see its README.md."""
    return ROOT / "tests/data/reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The larger set of known answers beside the repository: an additional check."""
    folder = ROOT.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"the larger set of known answers is not here: {folder} is missing")
    return folder

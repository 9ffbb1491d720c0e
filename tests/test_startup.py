"""OpenMP's threads sleep soon, and at once on a busy machine; freed memory is used again, before torch is loaded."""

import os
import subprocess
import sys

import pytest

from fourdiffusion.startup import DEFAULT_SPINS, POLICY, SPINS, wait_with_few_spins

ALLOCATE = """
import os, resource, sys
os.getloadavg = lambda: (float(sys.argv[1]), 0, 0)
from fourdiffusion import cli
assert "torch" not in sys.modules
cli.main(["--version"])
import torch
tensor = torch.rand(12_000_000)
faults = []
for _ in range(8):
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.nn.functional.silu(tensor)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin)
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"), min(faults))
"""


@pytest.mark.parametrize(
    "load, given, expected",
    [
        (9.0, {}, {POLICY: "PASSIVE"}),
        (0.0, {}, {SPINS: str(DEFAULT_SPINS)}),
        (9.0, {POLICY: "ACTIVE"}, {POLICY: "ACTIVE"}),
        (9.0, {SPINS: "7"}, {SPINS: "7"}),
    ],
)
def test_the_policy_follows_the_load_unless_it_is_set(
    load: float, given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    _only(given, monkeypatch)
    wait_with_few_spins()
    assert {name: os.environ[name] for name in (POLICY, SPINS) if name in os.environ} == expected


def test_a_machine_without_load_averages_is_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[float, float, float]:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", missing)
    _only({}, monkeypatch)
    wait_with_few_spins()
    assert POLICY not in os.environ


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc is set on Linux alone")
def test_the_command_line_prepares_the_process_before_torch_is_loaded() -> None:
    policy, spins, faults = _allocate(99.0)
    assert (policy, spins) == ("PASSIVE", "None")
    assert int(faults) < 100  # a tensor of 48 MB has 11 719 pages
    policy, spins, faults = _allocate(0.0, MALLOC_TOP_PAD_="0")  # a setting of the user's stays as it is
    assert (policy, spins) == ("None", str(DEFAULT_SPINS))
    assert int(faults) > 5000


def _allocate(load: float, **variables: str) -> list[str]:
    chosen = (POLICY, SPINS, "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(chosen)} | variables
    command = [sys.executable, "-c", ALLOCATE, str(load)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    return found.stdout.split()[-3:]


def _only(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (POLICY, SPINS):
        monkeypatch.setenv(name, "")  # remembered as it was
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

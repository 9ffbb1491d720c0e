"""OpenMP's threads sleep on a busy machine, before torch reads how they wait."""

import os
import subprocess
import sys

import pytest

from fourdiffusion.waiting import POLICY, wait_quietly_when_busy


@pytest.mark.parametrize(
    "load, given, expected", [(9.0, None, "PASSIVE"), (0.0, None, None), (9.0, "ACTIVE", "ACTIVE")]
)
def test_the_policy_follows_the_load_unless_it_is_set(
    load: float, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv(POLICY, given or "")
    if given is None:
        monkeypatch.delenv(POLICY)
    assert wait_quietly_when_busy() == (expected == "PASSIVE")
    assert os.environ.get(POLICY) == expected
    monkeypatch.setenv(POLICY, "")  # so that monkeypatch takes it away again


def test_a_machine_without_load_averages_is_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[float, float, float]:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", missing)
    monkeypatch.delenv(POLICY, raising=False)
    assert not wait_quietly_when_busy()


def test_the_command_line_chooses_before_torch_is_loaded() -> None:
    program = (
        "import os, sys; os.getloadavg = lambda: (99.0, 0, 0); from fourdiffusion import cli; "
        "assert 'torch' not in sys.modules; cli.main(['--version']); print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {key: value for key, value in os.environ.items() if key != POLICY}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert found.stdout.split()[-1] == "PASSIVE", found.stderr

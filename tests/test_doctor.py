"""``doctor`` tells what works from what does not, and how to mend it."""

import json
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_config, write_model

from fourdiffusion import doctor
from fourdiffusion.cli import main
from fourdiffusion.media import u2net
from fourdiffusion.ops import hash_grid
from fourdiffusion.settings import DoctorConfig


def test_every_line_is_ok_or_names_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = (("yaml", "settings", "pip install pyyaml"), ("no_such", "magic", "pip install no_such"))
    monkeypatch.setattr(doctor, "EXTRAS", entries)
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "model")
    doctor.doctor(DoctorConfig(model=tiny_config(str(model))))
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok      ", "missing ")) for line in lines)
    assert all(": " in line.partition(": ")[2] for line in lines if line.startswith("missing"))
    assert "ok      yaml: present" in lines and "missing no_such: magic: pip install no_such" in lines
    assert f"ok      model: looked for in {model}" in lines
    released = next(line for line in lines if "released 4DM" in line)
    assert str(tmp_path / "models" / "4dm") in released and "fourdiffusion convert" in released
    for name in (
        "hash grid, torch",
        "hash grid, numba",
        "volume rendering, torch",
        "volume rendering, numba",
        "video files",
    ):
        assert any(line.startswith(f"ok      {name}: ") for line in lines), name


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", f"model.path={tmp_path}"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["torch"]["ok"] and found["torch"]["needed"]
    assert not found["model"]["ok"] and "model.path=" in found["model"]["remedy"]
    assert all(each["ok"] or each["remedy"] for each in found.values() if each["name"] != "hash grid, torch")


def test_a_backend_that_computes_nonsense_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(hash_grid.HashGrid):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * float("nan")

    monkeypatch.setattr(hash_grid, "HashGrid", Broken)
    found = {each.name: each for each in doctor.backends()}
    assert not found["hash grid, torch"].ok and "not finite" in found["hash grid, torch"].detail
    assert found["volume rendering, torch"].ok


def test_the_matting_network_is_found_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(u2net.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))

    def network() -> doctor.Finding:
        return next(each for each in doctor.weights(None) if each.name == "matting network")

    assert not network().ok and str(tmp_path) in network().detail and "--no-deps" in str(network().remedy)
    (tmp_path / "u2netp.onnx").write_bytes(b"a network")
    assert network().ok and network().detail == str(tmp_path / "u2netp.onnx")

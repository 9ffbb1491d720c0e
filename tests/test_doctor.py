"""``doctor`` tells what is here from what is not."""

from pathlib import Path

import pytest
from tiny_model import tiny_config, write_model

from fourdiffusion import doctor
from fourdiffusion.settings import DoctorConfig


def test_present_and_missing_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        doctor, "OPTIONAL", (("yaml", "settings", "pip install pyyaml"), ("no_such", "magic", "pip install no_such"))
    )
    monkeypatch.setattr(doctor, "lpips_files", lambda _: None)
    model = write_model(tmp_path / "model")
    doctor.doctor(DoctorConfig(tiny_config(str(model))))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("python 3.") and lines[1].startswith("GPU: ")
    assert lines[2] == "yaml: present"
    assert lines[3] == "no_such: missing (magic): pip install no_such"
    assert lines[4] == "LPIPS: no weights; docs/weights.md names the two files"
    assert lines[5] == f"weights: {model}"
    doctor.doctor(DoctorConfig(tiny_config(str(tmp_path))))
    assert f"model.path={tmp_path} holds none" in capsys.readouterr().out

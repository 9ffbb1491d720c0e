"""Nodes, space and notebook: they keep the contracts of their hosts, and run on something tiny."""

import ast
import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from test_quick import SMALL
from tiny_model import FRAMES, SIZE, balls, picture, write_model

from fourdiffusion import cameras

pytestmark = pytest.mark.slow

FOLDER = ROOT / "integrations"
PLAIN_TYPES = {"IMAGE", "MASK", "STRING", "INT", "FLOAT", "BOOLEAN"}


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    """The pack, loaded as ComfyUI does: a folder of any name, as a package."""
    path = FOLDER / "comfyui" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "custom_nodes_pack", path, submodule_search_locations=[str(path.parent)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def inputs_of(node: Any) -> dict[str, Any]:
    return {name: entry for group in node.INPUT_TYPES().values() for name, entry in group.items()}


def test_every_node_keeps_comfyuis_contract(pack: ModuleType) -> None:
    assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    outputs = {kind for node in pack.NODE_CLASS_MAPPINGS.values() for kind in node.RETURN_TYPES}
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        assert set(node.INPUT_TYPES()) <= {"required", "optional", "hidden"}, name
        assert isinstance(node.RETURN_TYPES, tuple) and len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert isinstance(node.CATEGORY, str) and callable(getattr(node, node.FUNCTION))
        taken = set(inspect.signature(getattr(node, node.FUNCTION)).parameters) - {"self"}
        assert taken == set(inputs_of(node)), name
        for key, entry in inputs_of(node).items():
            assert isinstance(entry, tuple) and len(entry) <= 2, key
            assert isinstance(entry[0], list) or entry[0] in PLAIN_TYPES | outputs, key
            default = entry[1].get("default") if len(entry) == 2 else None
            assert default is None or not isinstance(entry[0], list) or default in entry[0]


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """IMAGE [F, H, W, 3] and MASK [F, H, W] of the balls."""
    rgba = picture(cameras.orbit(torch.zeros(FRAMES)), balls(0, torch.linspace(0, 1, FRAMES)))
    return rgba[:, :3].movedim(1, -1), rgba[:, 3]


def test_the_nodes_make_views_a_scene_and_a_glb(pack: ModuleType, tmp_path: Path) -> None:
    nodes, (rgb, mask) = pack.NODE_CLASS_MAPPINGS, images()
    (model,) = nodes["FourDiffusionLoadModel"]().load(str(write_model(tmp_path / "tiny")), "float32")
    views, frames = nodes["FourDiffusionVideoToViews"]().generate(model, rgb, "balls", 2, 1, 0, False, mask)
    assert views.shape == (2 * FRAMES, SIZE, SIZE, 3) and frames == FRAMES
    assert 0 <= float(views.min()) and float(views.max()) <= 1
    taken = ("num_frames=", "crop=")
    settings = "\n".join(["crop=frame", *(word for word in SMALL if not word.startswith(taken))])
    fit = nodes["FourDiffusionFit"]()
    (run,) = fit.fit(model, rgb, "balls", str(tmp_path / "out"), settings, 0, False, mask)
    assert json.loads((Path(run) / "input.json").read_text())["alpha_from"] == "the file"
    done = nodes["FourDiffusionExportGLB"]().export(run, 8.0, 12)
    path = Path(done["result"][0])
    assert done["ui"]["text"] == [str(path)] and path.read_bytes()[:4] == b"glTF"
    again = fit.fit(model, rgb, "balls", str(tmp_path / "out"), settings, 0, False, mask)
    assert again == (run,)  # goes on with the run, which is done


def test_masks_and_margins(pack: ModuleType) -> None:
    from custom_nodes_pack.nodes import rgba_of

    rgb, mask = torch.rand(2, 4, 8, 3), torch.rand(2, 4, 8)
    rgba = rgba_of(rgb, mask, False)
    assert rgba.shape == (2, 4, 8, 8)
    assert torch.equal(rgba[:, 3, 2:6], mask) and float(rgba[:, :, :2].sum()) == 0
    assert torch.equal(rgba[:, :3, 2:6], rgb.movedim(-1, 1))
    assert torch.equal(rgba_of(rgb, mask, True)[:, 3, 2:6], 1 - mask)
    assert torch.equal(rgba_of(rgb, None, False)[:, :3, 0], rgb[:, 0].movedim(-1, 1))
    with pytest.raises(ValueError, match=r"the mask is \[3, 8\] pixels"):
        rgba_of(rgb, mask[:, :3], False)


def test_the_space_is_a_gradio_space_that_calls_the_page() -> None:
    text = (FOLDER / "huggingface_space" / "README.md").read_text(encoding="utf-8")
    card = yaml.safe_load(text.split("---")[1])
    assert card["sdk"] == "gradio" and (FOLDER / "huggingface_space" / card["app_file"]).is_file()
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert card["sdk_version"] == pins["gradio"]
    ast.parse((FOLDER / "huggingface_space" / card["app_file"]).read_text(encoding="utf-8"))


def test_a_space_is_filled_with_the_source_that_is_given(tmp_path: Path) -> None:
    def fill(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
        script = ROOT / "scripts" / "build" / "make_space.sh"
        return subprocess.run([script, folder, source], capture_output=True, text=True)

    source = f"file://{tmp_path}/fourdiffusion-0.1.0-py3-none-any.whl"
    assert fill(tmp_path / "space", source).returncode == 0
    (line,) = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    wanted = Requirement(line)
    assert wanted.url == source and wanted.extras == {"app", "matting"}
    assert {path.name for path in (tmp_path / "space").iterdir()} == {"README.md", "app.py", "requirements.txt"}
    for folder, given in (("space", source), ("other", "fourdiffusion")):
        refused = fill(tmp_path / folder, given)
        assert refused.returncode == 2 and refused.stderr.startswith("error: ") and not (tmp_path / "other").exists()


def test_nothing_names_an_address_that_nobody_gave() -> None:
    for path in FOLDER.rglob("*"):
        if path.suffix in (".ipynb", ".txt", ".md", ".py"):
            assert "OWNER" not in path.read_text(encoding="utf-8"), path


def test_the_notebook_asks_for_the_source_before_it_installs() -> None:
    notebook = json.loads((FOLDER / "colab" / "fourdiffusion.ipynb").read_text(encoding="utf-8"))
    cell = next(cell["source"] for cell in notebook["cells"] if "%pip" in cell["source"])
    lines = [line for line in cell.splitlines() if not line.startswith(("%", "SOURCE = "))]
    with pytest.raises(AssertionError, match="put into SOURCE"):
        exec("\n".join(lines), {"SOURCE": ""})
    for given, url in (("git+https://x/y", "git+https://x/y"), ("/a/b.whl", "file:///a/b.whl")):
        names = {"SOURCE": given}
        exec("\n".join(lines), names)
        filled = Requirement(cell.partition('install --quiet "')[2].rstrip('"').format(URL=names["URL"]))
        assert filled.url == url and filled.extras == {"matting", "viewer"}


def test_the_notebooks_cells_parse_and_those_for_cpus_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((FOLDER / "colab" / "fourdiffusion.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    ran = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = [line for line in cell["source"].splitlines() if not line.startswith(("%", "!"))]
        compiled = compile("\n".join(lines), "cell", "exec")
        if "cpu" in cell["metadata"]["tags"]:
            exec(compiled, names)
            ran += 1
    assert ran == 3
    told = capsys.readouterr().out
    assert "alpha from the plain background" in told and "time: about" in told
    assert not (tmp_path / "runs").exists()

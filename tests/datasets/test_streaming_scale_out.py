"""Two jobs of `data render` through Hydra's joblib launcher render what one does; their clips are packed as one set."""

import subprocess
import sys
from pathlib import Path

import pytest
from animated_glb import swinging_box

from fourdiffusion.datasets.rendering import plan
from fourdiffusion.datasets.rendering.gltf import AssetError
from fourdiffusion.datasets.rendering.rasterizer import create_context
from fourdiffusion.datasets.rendering.settings import RenderAssetsConfig, validate
from fourdiffusion.datasets.shards.reader import ShardSet
from fourdiffusion.errors import UserError
from fourdiffusion.prepare.pack import pack
from fourdiffusion.prepare.settings import PackConfig

pytestmark = pytest.mark.slow


def assets(folder: Path, count: int) -> Path:
    for k in range(count):
        swinging_box(folder / f"box{k}.glb")
    return folder


def test_shards_of_the_assets_are_disjoint_and_whole(tmp_path: Path) -> None:
    folder = assets(tmp_path / "assets", 5)

    def listed(shard: str, limit: int = 0) -> list[str]:
        config = RenderAssetsConfig(assets=str(folder), output="clips", engine="opengl", shard=shard, limit=limit)
        validate(config)
        return [entry.object for entry in plan.list_assets(config)]

    parts = [listed(f"{k}/3") for k in range(3)]
    assert [len(part) for part in parts] == [2, 2, 1]
    assert sorted(sum(parts, [])) == listed("0/1") and len(listed("0/2", limit=3)) == 2
    for shard in ("3/3", "1", "-1/2", "0/0", "a/b"):
        with pytest.raises(UserError, match="give k/n with k from 0"):
            listed(shard)


def test_two_jobs_of_a_sweep_render_one_set(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    try:
        create_context()
    except AssetError as error:
        pytest.skip(str(error))
    assets(tmp_path / "assets", 3)
    words = "data render -m hydra/launcher=joblib hydra.launcher.n_jobs=2 shard=0/2,1/2 assets=assets output=clips "
    words += "engine=opengl width=24 height=24 supersampling=1 num_views=4 num_frames=3 part=whole"
    done = subprocess.run(
        [sys.executable, "-m", "fourdiffusion", *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = sorted(path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.glob("clips/*/*/transforms.json"))
    assert [path.split("/")[1] for path in made] == ["0", "0", "1"]
    pack(PackConfig(str(tmp_path / "clips"), str(tmp_path / "shards"), clips_per_shard=2))
    assert ShardSet(str(tmp_path / "shards")).names == sorted(path.split("/")[2] for path in made)

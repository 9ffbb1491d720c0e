"""`data pack`: shards that hold the clips bit for bit, that others read, that survive a kill, and what is left out."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_model import CAPTIONS, FRAMES, tiny_clip, write_model

from fourdiffusion import cli
from fourdiffusion.datasets.clips import Clip, write_clip
from fourdiffusion.datasets.pictures import on_white
from fourdiffusion.datasets.shards.reader import ShardSet
from fourdiffusion.datasets.shards.writer import file_sha256, sample_key
from fourdiffusion.diffusion import encoders
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.errors import UserError
from fourdiffusion.prepare.pack import pack
from fourdiffusion.prepare.settings import PackConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def named_clip(k: int) -> Clip:
    clip = tiny_clip(k % 2)
    clip.author, clip.caption = f"author {k}", f"{clip.caption}, number {k}"
    clip.rgba = clip.rgba.roll(k, -1)
    return clip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of this project; c.d needs another key; e is Consistent4D's layout."""
    folder = tmp_path_factory.mktemp("clips")
    for k, name in enumerate(["a", "b", "c.d"]):
        write_clip(folder / name, named_clip(k))
    for v in range(4):
        (folder / f"e/eval_{v}").mkdir(parents=True)
        for f in range(FRAMES):
            Image.new("RGB", (16, 16), (60 * v, 60 * f, 9)).save(folder / f"e/eval_{v}/{f}.png")
    return folder


@pytest.fixture(scope="module")
def shards(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("packed") / "shards"
    pack(PackConfig(str(clips), str(output), clips_per_shard=2))
    return output


def contents(folder: Path) -> dict[str, str]:
    return {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file()}


def check_clip(found: ShardSet, number: int, expected: Clip, tolerance: int = 0) -> None:
    clip = found.open(number)
    rgba = clip.pictures[:, :]
    assert (rgba.int() - expected.rgba.int()).abs().max() <= tolerance
    assert torch.equal(clip.c2w, expected.c2w) and torch.equal(clip.times, expected.times)
    assert clip.fovy_deg == pytest.approx(expected.fovy_deg)
    texts = clip.caption, clip.license, clip.author, clip.source
    assert texts == (expected.caption, expected.license, expected.author, expected.source)


def test_shards_hold_the_clips(shards: Path) -> None:
    found = ShardSet(str(shards))
    assert found.names == ["a", "b", "c.d", "e"] and len(found) == 4
    for k in range(3):
        check_clip(found, k, named_clip(k))
    foreign = found.open(3)
    assert foreign.fovy_deg == 49.1 and foreign.pictures[2, 1][:3, 0, 0].tolist() == [120, 60, 9]
    assert found.caption(1) == f"{CAPTIONS[1]}, number 1"


def test_the_index_counts_and_hashes(shards: Path) -> None:
    index = json.loads((shards / "index.json").read_text())
    assert index["num_clips"] == 4 and [shard["count"] for shard in index["shards"]] == [2, 2]
    for shard in index["shards"]:
        file = shards / shard["name"]
        assert shard["sha256"] == file_sha256(file) and shard["bytes"] == file.stat().st_size
    assert index["bytes"] == sum(shard["bytes"] for shard in index["shards"])
    with tarfile.open(shards / "shard-00001.tar") as tar:
        names = tar.getnames()
        meta = json.loads(tar.extractfile(names[0]).read())  # type: ignore[union-attr]
    assert names[0].startswith("c_d-") and names[1].endswith(".v00_f00.png") and meta["uid"] == "c.d"
    assert (meta["license"], meta["author"], meta["caption"]) == ("Apache-2.0", "author 2", named_clip(2).caption)


def test_keys_are_webdatasets() -> None:
    assert sample_key("a-b_9") == "a-b_9"
    keys = {sample_key(uid) for uid in ("a.b", "a_b", "a/b", "x" * 99, "x" * 98)}
    assert len(keys) == 5 and all(len(key) <= 60 and "." not in key and "/" not in key for key in keys)


def test_webdataset_reads_the_tars(shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = str(shards / "shard-{00000..00001}.tar")
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgba"))
    assert [sample["json"]["uid"] for sample in samples] == ["a", "b", "c.d", "e"]
    picture = samples[1]["v03_f02.png"]
    assert picture.getpixel((5, 7)) == tuple(named_clip(1).rgba[3, 2, :, 7, 5].tolist())


@pytest.mark.parametrize("frames, quality, tolerance", [("webp", None, 0), ("webp", 95, 60)])
def test_webp(clips: Path, tmp_path: Path, frames: str, quality: int | None, tolerance: int) -> None:
    pack(PackConfig(str(clips), str(tmp_path / "out"), frames=frames, quality=quality))
    found = ShardSet(str(tmp_path / "out"))
    if quality is None:
        return check_clip(found, 1, named_clip(1))
    seen, truth = on_white(found.open(1).pictures[:, :]).float(), on_white(named_clip(1).rgba).float()
    assert 0 < (seen - truth).abs().mean() < 12


def test_video(clips: Path, tmp_path: Path) -> None:
    pack(PackConfig(str(clips), str(tmp_path / "out"), frames="mp4"))
    grid = ShardSet(str(tmp_path / "out")).open(1).pictures
    truth = on_white(named_clip(1).rgba).float()
    for view, frames in ((2, [3, 1]), (0, [0])):
        seen = grid[view, frames]
        assert (seen[:, 3] == 255).all()
        assert (seen[:, :3].float() - truth[view, frames]).abs().mean() < 8
        others = truth[view, [0, 2]] if frames == [3, 1] else truth[view, [3]]
        assert (seen[:, :3].float() - truth[view, frames]).abs().mean() < (seen[:, :3].float() - others).abs().mean()


# ---- stopping, resuming, bad clips ----------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_bytes(clips: Path, shards: Path, tmp_path: Path) -> None:
    config = PackConfig(str(clips), str(tmp_path / "out"), clips_per_shard=2)
    pack(config)
    whole = contents(tmp_path / "out")
    assert whole == contents(shards)
    out = tmp_path / "out"
    kept = (out / "shard-00000.tar").stat().st_mtime_ns
    for name in ("shard-00001.tar", "index.json"):  # what SIGKILL leaves in the middle of the second shard
        (out / name).unlink()
    (out / "shard-00001.tar.77.partial").write_bytes(b"half")
    pack(config)
    assert contents(out) == whole and (out / "shard-00000.tar").stat().st_mtime_ns == kept
    damaged = bytearray((out / "shard-00000.tar").read_bytes())
    damaged[2000] ^= 1
    (out / "shard-00000.tar").write_bytes(damaged)
    (out / "shard-00001.json").write_text("{")
    pack(config)
    assert contents(out) == whole


def test_clips_that_cannot_be_read_are_left_out_and_named(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "bad1", "bad2", "z"):
        write_clip(tmp_path / "clips" / name, named_clip(0))
    (tmp_path / "clips/bad1/rgba/v03_f01.png").write_bytes(b"no picture")
    (tmp_path / "clips/bad2/transforms.json").write_text("{")
    words = ["data", "pack", f"clips={tmp_path / 'clips'}", f"output={tmp_path / 'out'}", "clips_per_shard=3"]
    assert cli.main(words) == 0
    assert "left out: 2 clips" in capsys.readouterr().out
    found = ShardSet(str(tmp_path / "out"))
    assert found.names == ["a", "z"]
    check_clip(found, 1, named_clip(0))
    skipped = {each["clip"]: each["reason"] for each in found.index["skipped"]}
    assert "v03_f01.png: not a readable image" in skipped["bad1"] and "not valid JSON" in skipped["bad2"]
    (tmp_path / "out/index.json").unlink()
    assert cli.main(words) == 0  # what was left out is remembered
    assert ShardSet(str(tmp_path / "out")).index["skipped"] == found.index["skipped"]


def test_a_list_chooses(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("# chosen\nb\n\na\n")
    pack(PackConfig(str(clips), str(tmp_path / "out"), ids=str(tmp_path / "ids.txt")))
    assert ShardSet(str(tmp_path / "out")).names == ["a", "b"]
    (tmp_path / "ids.txt").write_text("b\nnone\n")
    with pytest.raises(UserError, match="1 of its 2 clips are not in .* the first is none"):
        pack(PackConfig(str(clips), str(tmp_path / "other"), ids=str(tmp_path / "ids.txt")))


MISTAKES = {
    "readers": ({"num_readers": 3, "clips_per_shard": 2}, "makes 2 shards of 4 clips .* set clips_per_shard=1"),
    "frames": ({"frames": "jpg"}, "frames=jpg is unknown"),
    "quality": ({"quality": 50}, "quality=50 is of frames=webp"),
    "model": ({"latents": True}, "latents=true needs the model"),
    "dtype": ({"latents_dtype": "int8"}, "latents_dtype=int8 is not one of"),
    "folder": ({"clips": "nowhere"}, "clips=nowhere: no such folder"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(clips: Path, tmp_path: Path, case: str) -> None:
    changes, message = MISTAKES[case]
    values = {"clips": str(clips), "output": str(tmp_path / "out")} | changes  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        pack(PackConfig(**values))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_other_settings_and_foreign_folders_are_refused(clips: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds shards made with clips_per_shard=2"):
        pack(PackConfig(str(clips), str(shards), clips_per_shard=3))
    (tmp_path / "shard-00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="holds shard-00000.tar and no pack.json"):
        pack(PackConfig(str(clips), str(tmp_path)))
    for content, message in (("{}", "format is not"), ("[]", "holds no object"), ("x", "not valid JSON")):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(UserError, match=message):
            ShardSet(str(tmp_path))


# ---- cached tensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [("float16", 2e-3), ("float32", 1e-5)])
def test_cached_tensors_are_what_the_encoders_make(clips: Path, tmp_path: Path, dtype: str, tolerance: float) -> None:
    model = write_model(tmp_path / "model")
    (tmp_path / "ids").write_text("b")
    settings = {"ids": str(tmp_path / "ids"), "latents": True, "latents_dtype": dtype, "encode_batch": 3}
    pack(PackConfig(str(clips), str(tmp_path / "out"), model=ModelConfig(path=str(model)), **settings))  # type: ignore[arg-type]
    cached, pipeline = ShardSet(str(tmp_path / "out")).cached(0), load_pipeline(model)
    places = [(5, 2), (0, 3)]
    images = torch.stack([on_white(named_clip(1).rgba[v, f]) for v, f in places]).float() / 255

    def same(found: torch.Tensor, live: torch.Tensor) -> None:
        torch.testing.assert_close(found, live, atol=tolerance * float(live.abs().max()), rtol=0)

    with torch.no_grad():
        same(cached.rows("latents", places), encoders.encode_latents(pipeline.vae, images))  # type: ignore[arg-type]
        states = encoders.encode_image(pipeline.feature_extractor, pipeline.image_encoder, images)
        same(cached.rows("image_tokens", places), pipeline.unet.resampler(states))  # type: ignore[arg-type]
        text = encoders.encode_text(pipeline.tokenizer, pipeline.text_encoder, [named_clip(1).caption, ""])
        same(cached.rows("text", [()])[0], text[0])
        same(cached.rows("empty_text", [()])[0], text[1])

"""Training from shards: each clip once an epoch, in any number of processes; damage is skipped and named."""

import importlib.util
import io
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_model import FRAMES, write_clips

from fourdiffusion import cameras
from fourdiffusion.cli.config import build, compose
from fourdiffusion.datasets.clips import ClipFiles
from fourdiffusion.datasets.pictures import PictureGrid
from fourdiffusion.datasets.sampling import Batch, ClipSamples, collate, epoch_order
from fourdiffusion.datasets.settings import DataConfig
from fourdiffusion.datasets.shards import reader, storage
from fourdiffusion.datasets.shards.writer import PackedClip, write_shard
from fourdiffusion.errors import UserError
from fourdiffusion.prepare.pack import pack
from fourdiffusion.prepare.settings import PackConfig
from fourdiffusion.train.batches import make_loader
from fourdiffusion.train.health import Meter
from fourdiffusion.train.settings import TrainConfig
from fourdiffusion.train.setup import open_data

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

MANY, PER_SHARD, BATCH = 2000, 500, 8


def one_picture_clip(k: int) -> PackedClip:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (k % 256, k // 256, 7)).save(file, "PNG")
    grid = PictureGrid([[Path("unused")]], (8, 8))
    c2w, times = cameras.orbit(torch.zeros(1)), torch.zeros(1)
    clip = ClipFiles(f"clip-{k:04d}", grid, c2w, 45.0, times, f"number {k}", "CC0", "test", "me", None, 0.0)
    return PackedClip(clip, [file.getvalue()], {})


def write_index(folder: Path, tables: list[dict]) -> None:
    shards = [{"name": table["name"], "clips": [entry["uid"] for entry in table["clips"]]} for table in tables]
    content = {"format": reader.FORMAT, "frames": "png", "shards": shards, "encoders": {}, "skipped": []}
    (folder / "index.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2000 clips of one picture each in four shards."""
    folder = tmp_path_factory.mktemp("many")
    tables = []
    for first in range(0, MANY, PER_SHARD):
        clips = (one_picture_clip(k) for k in range(first, first + PER_SHARD))
        tables.append(write_shard(folder, f"shard-{first // PER_SHARD:05d}.tar", "png", clips, []))
    write_index(folder, tables)
    return folder


def batches(
    path: Path | str, start: int, steps: int, rank: int = 0, ranks: int = 1, workers: int = 0
) -> Iterator[Batch]:
    """Return the samples that one process of a training run reads, starting at step ``start``."""
    data = DataConfig(str(path), num_views=1, num_frames=1)
    config = TrainConfig(
        stage="base", batch_size=BATCH, micro_batch_size=2, max_steps=steps, num_workers=workers, data=data
    )
    return iter(make_loader(config, open_data(config), start, rank, ranks))


def test_two_ranks_with_two_workers_read_each_clip_once_an_epoch(many: Path) -> None:
    seen: Counter[str] = Counter()
    for rank in range(2):
        for batch in batches(many, 0, MANY // BATCH, rank, 2, workers=2):
            seen.update(batch.uids)
            for uid, picture in zip(batch.uids, batch.input, strict=True):  # the picture is this clip's
                k = int(uid[5:])
                assert (picture[0, :, 0, 0] * 255).round().tolist() == [k % 256, k // 256, 7]
    assert len(seen) == MANY and set(seen.values()) == {1}


def test_a_resumed_run_reads_on_in_the_same_order(many: Path) -> None:
    steps = MANY // BATCH + 3  # into the second epoch
    whole = [uid for batch in batches(many, 0, steps) for uid in batch.uids]
    assert [uid for batch in batches(many, 200, steps) for uid in batch.uids] == whole[200 * BATCH :]
    assert whole[MANY:] != whole[: len(whole) - MANY]  # another epoch has another order
    assert whole[:BATCH] != sorted(whole)[:BATCH]
    assert torch.equal(epoch_order(3, 1, 9).sort().values, torch.arange(9))


def test_five_broken_clips_are_skipped_and_named(many: Path, tmp_path: Path) -> None:
    for file in many.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = [3, 499, 500, 1000, 1999]
    found = reader.ShardSet(str(many))
    for k in broken:
        member = found.open(k).pictures.files[0][0]
        assert isinstance(member, storage.Member)
        with open(tmp_path / Path(member.url).name, "r+b") as file:  # type: ignore[assignment]
            file.seek(member.offset)  # type: ignore[attr-defined]
            file.write(bytes(member.size))  # type: ignore[attr-defined]
    seen: Counter[str] = Counter()
    skipped: list[str] = []
    for batch in batches(tmp_path, 0, MANY // BATCH):
        seen.update(batch.uids)
        skipped += batch.skipped
    named = sorted({reason.split(":")[0] for reason in skipped})
    assert named == [f"clip-{k:04d}" for k in broken]
    assert all("not a readable image" in reason and ".png" in reason for reason in skipped)
    assert sum(seen.values()) == MANY and not set(named) & set(seen) and len(seen) == MANY - 5


def test_a_run_names_each_skipped_clip_once(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter()
    assert "skipped" not in meter.read(torch.device("cpu"))
    for reasons in (["a: broken", "b: broken"], [], ["a: broken"]):
        meter.note_skipped(reasons)
    assert meter.read(torch.device("cpu"))["skipped"] == 2
    written = capsys.readouterr()
    assert (written.out + written.err).splitlines() == ["skipped: a: broken", "skipped: b: broken"]


def test_a_set_of_which_nothing_can_be_used_ends_the_run_with_the_reason(many: Path) -> None:
    samples = ClipSamples(DataConfig(str(many), num_views=4), 1, 0, BATCH)
    with pytest.raises(UserError, match="50 of 2000 clips in a row cannot be used; the first is clip-.* no 4 evenly"):
        _ = samples[0, 0]


def test_clips_of_another_size_are_skipped(tmp_path: Path) -> None:
    write_clips(tmp_path)
    for file in (tmp_path / "clip-1/rgba").iterdir():
        Image.new("RGBA", (24, 16)).save(file)
    meta = (tmp_path / "clip-1/transforms.json").read_text()
    (tmp_path / "clip-1/transforms.json").write_text(meta.replace('"w": 16', '"w": 24'))
    samples = ClipSamples(DataConfig(str(tmp_path)), 2, 0, 2)
    pair = [samples[0, 0], samples[0, 1]]
    assert {sample.uid for sample in pair} == {"clip-0"}
    assert [reason for sample in pair for reason in sample.skipped] == [
        "clip-1: its pictures are 24 x 16, those of the first clip 16 x 16"
    ]


# ---- the same samples from folders, shards and addresses ------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of clips, and its shards."""
    folder = tmp_path_factory.mktemp("both")
    write_clips(folder / "clips")
    pack(PackConfig(str(folder / "clips"), str(folder / "shards"), clips_per_shard=1))
    return folder / "clips", folder / "shards"


def samples_of(path: str, cache_mib: int = 64) -> Batch:
    samples = ClipSamples(DataConfig(path, num_views=2, augment=True, cache_mib=cache_mib), FRAMES - 1, 5, 3)
    return collate([samples[step, number] for step in range(2) for number in range(3)])


def equal(a: Batch, b: Batch) -> bool:
    tensors = torch.equal(a.target, b.target) and torch.equal(a.input, b.input) and torch.equal(a.c2w, b.c2w)
    return tensors and (a.captions, a.uids) == (b.captions, b.uids)


def test_shards_give_the_samples_of_the_folder(both: tuple[Path, Path]) -> None:
    expected = samples_of(str(both[0]))
    assert equal(samples_of(str(both[1])), expected) and equal(samples_of(str(both[1]), 0), expected)
    assert not expected.skipped


class Ranges(SimpleHTTPRequestHandler):
    """Answers byte ranges, as web servers do; notes how much was asked for."""

    served = 0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802
        content = Path(self.translate_path(self.path)).read_bytes()
        begin, end = 0, len(content) - 1
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last), end)
        part = content[begin : end + 1]
        Ranges.served += len(part)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {begin}-{end}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="fsspec reads https:// through aiohttp")
def test_shards_are_read_over_http(both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(both[1])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert equal(samples_of(url), samples_of(str(both[0])))
        with monkeypatch.context() as patch:
            patch.setattr(storage, "_read_remote", None)  # a fork would inherit this, and its parent's connections
            reading = batches(url, 0, 8, workers=1)
            in_worker = next(reading)
        assert equal(in_worker, next(batches(both[1], 0, 1)))
        os.kill(reading._workers[0].pid, signal.SIGINT)  # type: ignore[attr-defined]
        # Ctrl-C reaches the workers too; the main process needs them until its checkpoint
        assert len(list(reading)) == 8 * BATCH // 2 - 1
        words = [f"data.path={url}", f"validation_data={url}", "output=run"]
        config = build(compose("train", TrainConfig, words), TrainConfig)
        assert (config.data.path, config.validation_data) == (url, url)  # an address passes the command line as it is
        with pytest.raises(UserError, match="output=http.* is an address"):
            build(compose("train", TrainConfig, [f"data.path={url}", f"output={url}"]), TrainConfig)
        samples = ClipSamples(DataConfig(url, num_views=1), 1, 0, 1)
        Ranges.served = 0
        _ = samples[0, 0]
        tables = max((both[1] / name).stat().st_size for name in ("shard-00000.json", "shard-00001.json"))
        assert Ranges.served < 2 * tables + 4000 < (both[1] / "shard-00000.tar").stat().st_size
    finally:
        server.shutdown()
    monkeypatch.setattr(storage, "PAUSE_S", 0.01)
    with pytest.raises(UserError, match="cannot be read .* tried 4 times"):
        ClipSamples(DataConfig("http://127.0.0.1:9/shards"), 1, 0, 1)  # where nobody answers

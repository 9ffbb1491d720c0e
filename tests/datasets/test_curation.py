"""`data curate` on clips: manifest and keep.txt, resuming, kept decisions, and the page."""

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from test_curation_scores import blob, everywhere

from fourdiffusion.cameras import orbit
from fourdiffusion.datasets.clips import Clip, write_clip
from fourdiffusion.datasets.curation import page
from fourdiffusion.datasets.curation.decide import decide
from fourdiffusion.datasets.curation.manifest import read_manifest
from fourdiffusion.datasets.curation.settings import CurateConfig
from fourdiffusion.datasets.curation.test_sets import shipped_ids
from fourdiffusion.datasets.shards.reader import ShardSet
from fourdiffusion.errors import UserError
from fourdiffusion.prepare import curate as verb
from fourdiffusion.prepare.curate import curate
from fourdiffusion.prepare.pack import pack
from fourdiffusion.prepare.settings import PackConfig

pytest.importorskip("pyarrow")
TEST = shipped_ids("consistent4d")[0]


def clip(folder: Path, moves: bool = True, **texts: str) -> None:
    """Write a clip of a disk whose mouth opens, or of one at rest."""
    rgba = blob(torch.zeros(8), torch.zeros(8), 0.5, 24)
    for k in range(8 if moves else 0):
        rgba[k, 3, 12 - k : 12 + k, 12:] = 0
    words = {"caption": "a disk", "license": "CC0-1.0", "source": "drawn", "author": "Ada"} | texts
    views = orbit(torch.arange(8) * 45.0)
    write_clip(folder, Clip(folder.name, everywhere(rgba), views, 45.0, torch.linspace(0, 1, 8), **words))  # type: ignore[arg-type]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    clip(tmp_path / "clips" / "moves")
    clip(tmp_path / "clips" / "rests", moves=False)
    clip(tmp_path / "clips" / f"{TEST}-bite")
    clip(tmp_path / "clips" / "damaged", license="CC-BY-NC-4.0")
    (tmp_path / "clips" / "damaged" / "rgba" / "v03_f03.png").write_bytes(b"no picture")
    return tmp_path


def settings(folder: Path, **changes: Any) -> CurateConfig:
    return CurateConfig(str(folder / "clips"), str(folder / "curated"), **changes)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["uid"]: row for row in read_manifest(folder / "curated" / "manifest.parquet")}


def kept(folder: Path) -> list[str]:
    return (folder / "curated" / "keep.txt").read_text().split()


def test_manifest_and_keep_list(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curate(settings(clips))
    rows = rows_of(clips)
    assert {uid: row["reasons"] for uid, row in rows.items()} == {
        "moves": [], "rests": ["static"], f"{TEST}-bite": ["test_set"], "damaged": ["unreadable"],
    }  # fmt: skip
    assert kept(clips) == ["moves"] and [uid for uid, row in rows.items() if row["keep"]] == ["moves"]
    row = rows["moves"]
    assert (row["caption"], row["license"], row["author"], row["source"]) == ("a disk", "CC0-1.0", "Ada", "drawn")
    assert row["pixel_motion"] > 0.3 and row["num_frames"] == 8 and rows["rests"]["pixel_motion"] == 0
    assert "v03_f03.png" in rows["damaged"]["error"] and rows[f"{TEST}-bite"]["test_sets"] == ["consistent4d"]
    printed = capsys.readouterr().out
    assert "4 clips, 1 kept" in printed and "1 consistent4d, 0 objaversedy, 0 motion80" in printed
    assert sorted(path.stem for path in (clips / "curated" / "thumbnails").iterdir()) == [
        f"{TEST}-bite",
        "moves",
        "rests",
    ]


def test_settings_choose_without_scoring_again(clips: Path) -> None:
    curate(settings(clips))
    lines = (clips / "curated" / "scores.jsonl").read_text()
    curate(settings(clips, allow_test_sets=["consistent4d"]))
    assert kept(clips) == [
        f"{TEST}-bite"
    ]  # of the two that show the same, the first by name; the other is its repetition
    assert rows_of(clips)["moves"]["duplicate_of"] == f"{TEST}-bite"
    (clips / "ids.txt").write_text("rests\n")
    curate(settings(clips, lists=[str(clips / "ids.txt")]))
    assert rows_of(clips)["moves"]["reasons"] == ["not_listed"] and kept(clips) == []
    curate(settings(clips, licenses=["mit", "cc-by-[0-9]*"]))
    assert rows_of(clips)["moves"]["reasons"] == ["license"]
    curate(settings(clips, licenses=["cc0*"]))
    assert kept(clips) == ["moves"]
    assert (clips / "curated" / "scores.jsonl").read_text() == lines


@pytest.mark.slow
def test_a_killed_run_goes_on_and_a_changed_clip_is_scored_again(clips: Path) -> None:
    curate(settings(clips))
    log = clips / "curated" / "scores.jsonl"
    first = rows_of(clips)
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:30])
    curate(settings(clips, num_workers=2))
    assert rows_of(clips) == first and len(log.read_text().splitlines()) == 4
    shutil.rmtree(clips / "clips" / "rests")
    clip(clips / "clips" / "rests", caption="moves now")
    curate(settings(clips))
    assert rows_of(clips)["rests"]["pixel_motion"] > 0.3 and len(log.read_text().splitlines()) == 5
    log.write_text("no line\n")
    with pytest.raises(UserError, match="scores.jsonl:1: not a line"):
        curate(settings(clips))


def test_a_persons_decisions_are_the_last_word_and_survive(clips: Path) -> None:
    (clips / "curated").mkdir()
    (clips / "curated" / "decisions.json").write_text(
        json.dumps({"rests": "keep", "moves": "drop", f"{TEST}-bite": "keep"})
    )
    for _ in range(2):
        curate(settings(clips))
        assert kept(clips) == ["rests"] and rows_of(clips)["rests"]["decision"] == "keep"
    assert rows_of(clips)["rests"]["reasons"] == ["static"]  # for the record
    (clips / "curated" / "decisions.json").write_text('{"rests": "maybe"}')
    with pytest.raises(UserError, match="keep"):
        curate(settings(clips))


def test_of_two_that_repeat_each_other_the_one_that_moves_more_stays_or_what_a_person_keeps() -> None:
    line = {
        "num_frames": 9, "opacity": 0.1, "pixel_motion": 1.0, "silhouette_motion": 0.5, "turning": 0.0, "outside": 0.0,
        "size": 0.5, "flicker": 0.0, "texture": 2.0, "look": "00" * 24, "motion": "00" * 8,
    }  # fmt: skip
    lines = [line | {"uid": uid, "articulation": value} for uid, value in (("a", 0.4), ("b", 0.8), ("c", 0.6))]
    config = CurateConfig()
    assert [row["duplicate_of"] for row in decide(lines, config, {}, None)] == ["b", "", "b"]
    assert [row["keep"] for row in decide(lines, config, {"b": "drop"}, None)] == [False, False, True]
    assert [row["keep"] for row in decide(lines, config, {"a": "keep"}, None)] == [True, False, False]
    config.thresholds.duplicate_look = -1
    assert all(row["keep"] for row in decide(lines, config, {}, None))


def test_mistakes_are_named(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, message in (
        ({"allow_test_sets": ["davis"]}, "allow_test_sets=davis"),
        ({"lists": ["gone.txt"]}, "gone.txt"),
        ({"captions": "gone.csv"}, "gone.csv"),
    ):
        with pytest.raises(UserError, match=message):
            curate(settings(clips, **change))
    with pytest.raises(UserError, match="output is not set"):
        curate(CurateConfig(str(clips)))
    monkeypatch.setattr("fourdiffusion.datasets.curation.manifest.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"fourdiffusion\[data\]"):
        curate(settings(clips))


@pytest.fixture
def server(clips: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """The page as `data curate page=true` serves it, at a free port."""
    made: list[ThreadingHTTPServer] = []
    monkeypatch.setattr(verb, "serve", lambda *arguments: made.append(page.make_server(*arguments)))
    curate(settings(clips, page=True, port=0))
    thread = threading.Thread(target=made[0].serve_forever)
    thread.start()
    yield made[0]
    made[0].shutdown()
    thread.join()
    made[0].server_close()


def ask(server: ThreadingHTTPServer, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    address = f"http://127.0.0.1:{server.server_address[1]}{path}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_the_server_stores_decisions_and_refuses_strangers(server: ThreadingHTTPServer, clips: Path) -> None:
    assert b"<title>Curation" in ask(server, "/")[1]
    rows = {row["uid"]: row for row in json.loads(ask(server, "/rows")[1])}
    assert rows["rests"]["reasons"] == ["static"] and rows["moves"]["keep"] and "look" not in rows["moves"]
    assert ask(server, "/thumbnails/moves")[1][8:12] == b"WEBP" and ask(server, "/thumbnails/damaged")[0] == 404
    assert ask(server, "/thumbnails/..%2Fmanifest.parquet")[0] == 404
    status, body = ask(server, "/decision", {"uid": "rests", "decision": "keep"})
    assert status == 200 and {row["uid"] for row in json.loads(body) if row["keep"]} == {"moves", "rests"}
    assert kept(clips) == ["moves", "rests"] and rows_of(clips)["rests"]["decision"] == "keep"
    assert ask(server, "/decision", {"uid": "rests", "decision": ""})[0] == 200 and kept(clips) == ["moves"]
    assert ask(server, "/decision", {"uid": "moves", "decision": "drop"}, Host="evil.example")[0] == 403
    assert ask(server, "/decision", {"uid": "moves", "decision": "drop"}, **{"Content-Type": "text/plain"})[0] == 400
    for body in ({"uid": "none", "decision": "keep"}, {"uid": "moves", "decision": "x"}, ["x"], {"uid": ["moves"]}):  # type: ignore[assignment]
        assert ask(server, "/decision", body)[0] == 400
    assert kept(clips) == ["moves"]


def test_a_port_in_use_is_named(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"port=\d+ cannot be used"):
        page.make_server([], lambda *_: [], tmp_path, server.server_address[1])


@pytest.mark.slow
def test_a_switch_on_the_page_changes_the_manifest(server: ThreadingHTTPServer, clips: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the PATH")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": 900, "height": 700})
        problems: list[str] = []
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        shown.wait_for_selector("article")
        assert shown.locator("article").count() == 4 and "1 of 4 clips kept" in shown.inner_text("#summary")
        card = shown.locator('article[data-uid="rests"]')
        assert "static" in card.inner_text() and "a disk" in card.inner_text() and "Ada" in card.inner_text()
        shown.wait_for_function("document.querySelector('article[data-uid=moves] img').naturalWidth > 0")
        with shown.expect_response("**/decision"):
            card.locator('input[value="keep"]').check()
        shown.wait_for_function("document.getElementById('summary').textContent.startsWith('2 of 4')")
        assert kept(clips) == ["moves", "rests"] and rows_of(clips)["rests"]["keep"]
        shown.select_option("#show", "dropped")
        assert shown.locator("article").count() == 2
        browser.close()
    assert problems == []


def test_pack_takes_the_kept_clips_with_the_manifests_captions(clips: Path) -> None:
    (clips / "captions.csv").write_text("moves,a disk that chews\n")
    curate(settings(clips, captions=str(clips / "captions.csv")))
    config = PackConfig(
        str(clips / "clips"), str(clips / "shards"), manifest=str(clips / "curated" / "manifest.parquet")
    )
    pack(config)
    shards = ShardSet(str(clips / "shards"))
    assert shards.names == ["moves"]
    packed = shards.open(0)
    assert (packed.caption, packed.license, packed.author) == ("a disk that chews", "CC0-1.0", "Ada")
    config.ids = "ids.txt"
    with pytest.raises(UserError, match="give one of them"):
        pack(config)

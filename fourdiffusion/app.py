"""Verb `app`: a page in the browser: drop a video, see what is taken for the object, fit, turn the result, download it.

Each job is a process that runs `fourdiffusion VIDEO` in a folder of its own: it can be stopped, its memory is given
back, and the page keeps nothing between requests but what its own widgets hold.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml

from fourdiffusion.errors import UserError
from fourdiffusion.media.read import load_video
from fourdiffusion.media.settings import ALPHA_SOURCES, CROPS, InputVideo
from fourdiffusion.settings import AppConfig

AUTOMATIC = "automatic"
RECIPES = {  # name on the page: settings of fit
    AUTOMATIC: [],
    "quick look (100 steps)": ["max_steps=100"],
    "fast, full size (needs converted weights)": ["experiment=fast", "model.path=models/4dm"],
    "paper, full size (needs converted weights)": ["experiment=paper", "model.path=models/4dm"],
}
FILES = ("turntable.mp4", "scene.glb", "scene.html")  # of `fourdiffusion VIDEO`, in the run folder
LOOK_SIZE = 64  # pixels of the crop, which the look at the matte does not show
POLL_SECONDS = 0.5
STOP_SECONDS = 60.0  # a fit has to save after its step


def app(config: AppConfig) -> None:
    """Serve the page until Ctrl-C."""
    gradio = _import_gradio()
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    page = build_page(gradio, folder)
    page.queue(default_concurrency_limit=config.jobs, max_size=32)
    # system fonts and no analytics: the page asks no other machine for anything
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        page.launch(
            server_name=config.host, server_port=config.port, share=False, quiet=True, prevent_thread_lock=True,
            max_file_size="500mb", allowed_paths=[str(folder.resolve())], theme=theme, ssr_mode=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"port={config.port} cannot be used on {config.host}: give another port=") from error
    print(f"page: http://{config.host}:{config.port} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()  # not page.block_thread(), which has words of its own for Ctrl-C
    except KeyboardInterrupt:
        print("page closed")
    finally:
        page.close(verbose=False)


# ---- a job: a process that runs the command -------------------------------------------------------------------------


@dataclass
class State:
    """How far a job is."""

    text: str = "starts"
    share: float = 0.0  # of the steps done
    preview: str | None = None  # a picture
    files: dict[str, str] = field(default_factory=dict)  # of FILES, once all are there
    failed: bool = False


def look(video: str, alpha: str, crop: str) -> tuple[np.ndarray | None, str]:
    """Return the frames above what is taken for the object, uint8 [H, W, 3], and one line; None for a bad file."""
    try:
        found = load_video(InputVideo(video=video, alpha=alpha, crop=crop), LOOK_SIZE)
    except UserError as error:
        return None, f"error: {error}"
    return found.matte, found.summary()


def words_of(video: str, output: Path, recipe: str, prompt: str, alpha: str, crop: str) -> list[str]:
    """Return the words of the command for what the page holds."""
    words = [video, f"output={output}", f"alpha={alpha}", f"crop={crop}", "trackers=[]", "log_every=1"]
    words += ["preview_minutes=0.5", *RECIPES[recipe]]
    return [*words, f"prompt={' '.join(prompt.split())}"] if prompt.strip() else words


def run_job(words: list[str], run: Path) -> Iterator[State]:
    """Run `fourdiffusion` with ``words``, which write into ``run``, and yield how far it is; stop it when closed."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told, tempfile.TemporaryFile("w+") as complained:
        process = subprocess.Popen(
            [sys.executable, "-m", "fourdiffusion", *words], stdout=told, stderr=complained, stdin=subprocess.DEVNULL
        )
        try:
            while process.poll() is None:
                yield progress(run)
                time.sleep(POLL_SECONDS)
        finally:
            stop(process)
        if process.returncode:
            complained.seek(0)
            yield State(reason_of(complained.read()), failed=True)
            return
    yield State("done", 1.0, preview_of(run), {name: str(run / name) for name in FILES})


def stop(process: subprocess.Popen[bytes]) -> None:
    """Tell a process that still runs to save and end (SIGTERM: jobs in the background ignore SIGINT), or kill it."""
    if process.poll() is not None:
        return
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
        return
    process.kill()
    process.wait()


def reason_of(complaint: str) -> str:
    """Return the one line in which a command says why it failed."""
    lines = [line.strip() for line in complaint.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["error: the command ended without a word"])[-1]


def progress(run: Path) -> State:
    """Return how far a run is, as its files say."""
    try:
        total = int(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["settings"]["max_steps"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return State("reads the video and the model")
    try:
        done = int(json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"])
    except (OSError, IndexError, KeyError, ValueError):
        return State("generates the views", preview=preview_of(run))
    if done >= total:
        return State("writes the results", 1.0, preview_of(run))
    return State(f"step {done} of {total}", done / total, preview_of(run))


def preview_of(run: Path) -> str | None:
    """Return the newest picture of a run."""
    names = ("contact_sheet.png", "preview/contact_sheet.png", "generated/contact_sheet.png", "matte.png")
    return next((str(run / name) for name in names if (run / name).is_file()), None)


# ---- the page -------------------------------------------------------------------------------------------------------


def build_page(gradio: ModuleType, folder: Path) -> Any:
    """Return the page; its jobs write under ``folder``."""
    with gradio.Blocks(title="fourdiffusion", analytics_enabled=False) as page:
        gradio.Markdown("# fourdiffusion\nA video becomes a moving 3-D object. Drop one, look at the matte, start.")
        with gradio.Row():
            with gradio.Column():
                video = gradio.File(label="video", type="filepath", file_count="single", elem_id="video")
                alpha = gradio.Dropdown([a for a in ALPHA_SOURCES if a != "mask"], value="auto", label="object from")
                crop = gradio.Dropdown(list(CROPS), value="object", label="crop")
                recipe = gradio.Dropdown(list(RECIPES), value=AUTOMATIC, label="recipe", elem_id="recipe")
                prompt = gradio.Textbox(label="what it is", placeholder="a cat walking")
                with gradio.Row():
                    start = gradio.Button("start", variant="primary", elem_id="start")
                    halt = gradio.Button("stop", elem_id="stop")
            with gradio.Column():
                matte = gradio.Image(label="frames, and what is taken for the object", interactive=False)
                status = gradio.Markdown(elem_id="status")
                bar = gradio.Slider(0, 1, 0, label="progress", interactive=False)
                preview = gradio.Image(label="preview", interactive=False)
        with gradio.Row():
            turntable = gradio.Video(label="turntable", autoplay=True, loop=True)
            model = gradio.Model3D(label="scene.glb", elem_id="model", height=400)  # it has none of its own
            files = gradio.File(label="downloads", file_count="multiple", elem_id="downloads", interactive=False)

        def show(path: str | None, alpha_from: str, cropped: str) -> tuple[np.ndarray | None, str]:
            return look(path, alpha_from, cropped) if path else (None, "")

        def work(path: str | None, chosen: str, what: str, alpha_from: str, cropped: str) -> Iterator[tuple[Any, ...]]:
            """Run a job; yield what the page shows: status, share done, preview, turntable, downloads."""
            if not path:
                yield "error: drop a video first", 0, None, None, None
                return
            run = Path(tempfile.mkdtemp(prefix="job-", dir=folder)) / "run"
            for state in run_job(words_of(path, run, chosen, what, alpha_from, cropped), run):
                yield (
                    state.text,
                    state.share,
                    state.preview,
                    state.files.get(FILES[0]),
                    list(state.files.values()) or None,
                )

        for widget in (video, alpha, crop):
            widget.change(show, [video, alpha, crop], [matte, status], show_progress="minimal")
        results = [status, bar, preview, turntable, files]
        job = start.click(work, [video, recipe, prompt, alpha, crop], results, show_progress="hidden")
        # not by the generator: gradio 6.31 then leaves the player without a picture
        job.then(lambda paths: next((p for p in paths or [] if p.endswith(".glb")), None), files, model)
        halt.click(lambda: "stopped", None, status, cancels=[job])
    return page


def _import_gradio() -> ModuleType:
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs gradio: pip install 'fourdiffusion[app]'") from error
    return gradio

"""Verb `view`: a scene in the browser, of a finished fit or of one that runs, or as one HTML file.

One loop draws: it looks at what each browser's camera and the controls say, renders coarsely while something moves and
finely once all rests. Callbacks of viser only set values.
"""

import getpass
import math
import socket
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourdiffusion.cameras import DISTANCE, FOVY_DEG
from fourdiffusion.device import resolve_device
from fourdiffusion.errors import UserError
from fourdiffusion.media.image import composite
from fourdiffusion.media.write import write_video
from fourdiffusion.scene.export.html import write_html
from fourdiffusion.scene.export.origin import credit_of, frame_times, origin
from fourdiffusion.scene.export.surface import scene_meshes
from fourdiffusion.scene.frames import CHANNELS, occupancy_at, render_frame, render_path, show
from fourdiffusion.scene.live import load_newest, newest_file
from fourdiffusion.scene.paths import CameraPath, write_path
from fourdiffusion.scene.renderer import OccupancyGrid
from fourdiffusion.scene.run_input import read_run_input
from fourdiffusion.scene.scene import Scene, load_scene, scene_folder
from fourdiffusion.settings import ViewConfig

BACKGROUNDS = {"white": 1.0, "gray": 0.5, "black": 0.0}
SPEEDS = ("0.25", "0.5", "1", "2", "4")
INPUT_HEIGHT = 256  # of the input video beside the scene, at least about this many pixels
SMALLEST = 32  # height of a picture in pixels
REST_SECONDS = 0.3  # without a change, then the picture is refined
RECORD_FPS = 12.0  # pictures a second of a recorded camera path
GRIDS = 64  # occupancy grids kept, one a time
RELOAD_SECONDS = 1.0  # between looks at the files of a fit that runs


def view(config: ViewConfig) -> None:
    """Serve a scene until Ctrl-C, or write it as one HTML file."""
    _check(config)
    run = Path(config.scene)
    if config.html:
        _write_html(run, config)
        return
    device = resolve_device(config.device)
    session = Session(run, config, *load_newest(run, device), device)
    session.beside = [Session(Path(b), config, *load_newest(Path(b), device), device) for b in config.beside]
    viser = _import_viser()
    # A browser may close while its picture is rendered.
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
    server = viser.ViserServer(host=config.host, port=config.port, label="fourdiffusion", verbose=False)
    try:
        print("\n".join(_addresses(config.host, server.get_port())), flush=True)
        serve(server, session, threading.Event())
    except KeyboardInterrupt:
        print("viewer closed")
    finally:
        server.stop()


@dataclass
class Picture:
    """What a browser was shown last, and when something changed."""

    state: tuple = ()
    changed: float = 0.0  # of time.monotonic(), when the last change had been drawn
    fine: bool = False  # shown at full resolution
    height: int = 64  # while moving


class Session:
    """A scene on the disk, the newest of it in memory, and its clip."""

    def __init__(self, run: Path, config: ViewConfig, scene: Scene, step: int | None, device: torch.device):
        self.run, self.config, self.scene, self.step, self.device = run, config, scene, step, device
        self.folder = run.parent if run.name == "scene" else run
        self.read, self.version, self.looked = self._stamp(), 0, time.monotonic()
        self.times = frame_times(self.folder, None if self._input().is_file() else config.num_frames)
        self.images = self._images()
        self.beside: list[Session] = []  # shown to the right of this one, under its time
        self.grids: dict[float, OccupancyGrid] = {}  # of the scene in memory, by time

    def panels(self) -> list["Session"]:
        """Return the scenes that are shown, from left to right."""
        return [self, *self.beside]

    def reload(self) -> bool:
        """Load the scenes anew whose files changed; return whether one did."""
        return any([panel._reload() for panel in self.panels()])

    def _reload(self) -> bool:
        if time.monotonic() - self.looked < RELOAD_SECONDS:
            return False
        self.looked = time.monotonic()
        stamp = self._stamp()
        if stamp == self.read:
            return False
        try:
            self.scene, self.step = load_newest(self.run, self.device)
        except UserError:  # a fit is writing its last files: the next look finds them whole
            return False
        self.read, self.version, self.grids = stamp, self.version + 1, {}
        return True

    def grid_at(self, moment: float) -> OccupancyGrid:
        """Return the occupancy grid of a time, made once for each scene and time."""
        if moment not in self.grids:
            if len(self.grids) >= GRIDS:
                self.grids.pop(next(iter(self.grids)))
            self.grids[moment] = occupancy_at(self.scene, moment)
        return self.grids[moment]

    def status(self) -> str:
        """Return where the scene comes from, in one line."""
        texts = ["finished scene" if each.step is None else f"fit at step {each.step}" for each in self.panels()]
        if not self.beside:
            return texts[0]
        names = [each.folder.resolve().name for each in self.panels()]
        return " | ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True))

    def frame_at(self, moment: float) -> int:
        """Return the number of the clip's frame that is nearest in time."""
        return int((self.times - moment).abs().argmin())

    def _input(self) -> Path:
        return self.folder / "input.safetensors"

    def _images(self) -> np.ndarray | None:
        """Return the input video, uint8 [F, H, W, 3] on white; None where the run has none."""
        found = read_run_input(self.folder)
        if found is None or found[0] is None:
            return None
        pixels = to_pixels(composite(found[0]))
        factor = max(INPUT_HEIGHT // pixels.shape[1], 1)
        return pixels.repeat(factor, axis=1).repeat(factor, axis=2)

    def _stamp(self) -> tuple | None:
        path = newest_file(self.run)
        return (path, path.stat().st_mtime_ns) if path else None


@dataclass
class Controls:
    """The widgets of the page."""

    moment: Any  # slider of the time in [0, 1]
    playing: Any
    speed: Any
    channel: Any
    background: Any
    size: Any
    status: Any
    image: Any  # the input video's frame, or None
    recording: Any  # whether the camera path is recorded
    frame: int = -1  # of the input video shown

    clock: float = field(default_factory=time.monotonic)  # when a frame was last played


def add_controls(server: Any, session: Session) -> Controls:
    """Add the widgets to the page."""
    gui = server.gui
    step = 1 / max(len(session.times) - 1, 1)  # between its frames the field has seen nothing
    with gui.add_folder("time"):
        moment = gui.add_slider("time", 0.0, 1.0, step, 0.0)
        playing = gui.add_checkbox("play", False)
        speed = gui.add_dropdown("speed", SPEEDS, initial_value="1")
    with gui.add_folder("picture"):
        channel = gui.add_dropdown("channel", CHANNELS, initial_value="rgb")
        background = gui.add_dropdown("background", tuple(BACKGROUNDS), initial_value="white")
        size = gui.add_slider("height", SMALLEST, 1024, 32, session.config.size)
    recording = gui.add_checkbox("record", False, hint="the camera and the time; unchecked, they become a video")
    status = gui.add_markdown(session.status())
    image = None if session.images is None else gui.add_image(session.images[0], label="input video")
    return Controls(moment, playing, speed, channel, background, size, status, image, recording)


def serve(server: Any, session: Session, stop: threading.Event) -> None:
    """Draw for every connected browser until ``stop`` is set."""
    controls = add_controls(server, session)
    pictures: dict[int, Picture] = {}
    recorder = Recorder()
    server.scene.set_up_direction("+z")
    server.on_client_connect(_place_camera)
    while not stop.is_set():
        if session.reload():
            controls.status.content = session.status()
        play(controls, session)
        busy = False
        for number, client in server.get_clients().items():
            busy |= draw(client, pictures.setdefault(number, Picture()), controls, session)
        record(recorder, list(server.get_clients().values()), controls, session)
        for number in pictures.keys() - server.get_clients().keys():
            del pictures[number]
        if not busy:
            stop.wait(0.01)


def play(controls: Controls, session: Session) -> None:
    """Advance the time by a frame of the clip when one is due, and show the input video's frame."""
    now = time.monotonic()
    if not controls.playing.value:
        controls.clock = now
    elif now - controls.clock >= 1 / (session.config.fps * float(controls.speed.value)):
        controls.clock = now
        following = (session.frame_at(controls.moment.value) + 1) % len(session.times)
        controls.moment.value = float(session.times[following])
    frame = session.frame_at(controls.moment.value)
    if controls.image is not None and session.images is not None and frame != controls.frame:
        controls.image.image, controls.frame = session.images[frame], frame


def draw(client: Any, picture: Picture, controls: Controls, session: Session) -> bool:
    """Render and send one picture if this browser needs one; return whether it did."""
    camera = client.camera
    if camera.update_timestamp == 0:  # not heard of yet
        return False
    choice = (controls.moment.value, controls.channel.value, controls.background.value, controls.size.value)
    pose = (*camera.wxyz, *camera.position, camera.fov, camera.aspect)
    versions = [panel.version for panel in session.panels()]
    state, now = (*choice, *(round(float(value), 5) for value in pose), *versions), time.monotonic()
    moving = state != picture.state
    if moving:
        picture.state = state
    elif picture.fine or now - picture.changed < REST_SECONDS:
        return False
    largest = controls.size.value
    height = min(picture.height, largest) if moving else largest
    width = max(round(height * camera.aspect / len(versions)), 1)
    distance = math.dist(camera.position, (0, 0, 0))
    background = torch.full((3,), BACKGROUNDS[controls.background.value])
    shown = []
    for panel in session.panels():
        frame = render_frame(
            panel.scene, to_c2w(camera.wxyz, camera.position), math.degrees(camera.fov), controls.moment.value,
            height, width, normals=controls.channel.value == "normal", occupancy=panel.grid_at(controls.moment.value),
        )  # fmt: skip
        shown.append(show(frame, controls.channel.value, background, distance))
    pixels = to_pixels(torch.cat(shown, dim=-1)[None])[0]
    client.scene.set_background_image(pixels, format="jpeg", jpeg_quality=90)
    client.flush()
    picture.fine = not moving
    if moving:
        picture.changed = time.monotonic()
        picture.height = adapted_height(height, picture.changed - now, session.config.moving_seconds, largest)
    return True


@dataclass
class Recorder:
    """The camera path that is being recorded."""

    poses: list[Tensor] = field(default_factory=list)  # c2w [4, 4] each
    angles: list[float] = field(default_factory=list)  # vertical fields of view in degrees
    times: list[float] = field(default_factory=list)
    due: float = 0.0  # of time.monotonic(), the next sample


def record(recorder: Recorder, clients: list[Any], controls: Controls, session: Session) -> None:
    """Note the first browser's camera when a sample is due; once recording has ended, write the path and its video."""
    if not controls.recording.value:
        if recorder.poses:
            controls.status.content = "rendering what was recorded"
            path = CameraPath(
                torch.stack(recorder.poses), torch.tensor(recorder.times), torch.tensor(recorder.angles), RECORD_FPS
            )
            recorder.poses, recorder.angles, recorder.times = [], [], []
            controls.status.content = f"{session.status()}; recorded: {save_recording(path, controls, session)}"
        return
    now = time.monotonic()
    known = [client.camera for client in clients if client.camera.update_timestamp]
    if not known or now < recorder.due:
        return
    recorder.due = now + 1 / RECORD_FPS
    recorder.poses.append(to_c2w(known[0].wxyz, known[0].position))
    recorder.angles.append(math.degrees(known[0].fov))
    recorder.times.append(float(controls.moment.value))


def save_recording(path: CameraPath, controls: Controls, session: Session) -> Path:
    """Write recorded_N.json, for `render path=`, and recorded_N.mp4 into the run's render/; return the video."""
    folder, number = session.folder / "render", 1
    while (folder / f"recorded_{number}.json").exists():
        number += 1
    write_path(folder / f"recorded_{number}.json", path)
    background = torch.full((3,), BACKGROUNDS[controls.background.value])
    size = int(controls.size.value)
    frames = render_path(session.scene, path, size, size, controls.channel.value, background, "recorded path")
    video = folder / f"recorded_{number}.mp4"
    write_video(video, torch.from_numpy(frames[..., :3]).movedim(-1, 1) / 255, RECORD_FPS, min_side=1)
    return video


def adapted_height(height: int, seconds: float, target: float, largest: int) -> int:
    """Return the height at which a picture takes ``target`` seconds, if its time grows with its pixels.

    At most twice or half the height before, a multiple of 8, and between the smallest and ``largest``.
    """
    factor = min(max(math.sqrt(target / max(seconds, 1e-4)), 0.5), 2.0)
    return min(max(round(height * factor / 8) * 8, SMALLEST), largest)


def to_c2w(wxyz: np.ndarray, position: np.ndarray) -> Tensor:
    """Return the camera-to-world matrix [4, 4] of this project (y up, z back) of viser's pose (y down, z forward)."""
    w, x, y, z = (float(value) for value in wxyz)
    rotation = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    c2w = torch.eye(4)
    c2w[:3, :3] = rotation * torch.tensor([1.0, -1.0, -1.0])
    c2w[:3, 3] = torch.tensor([float(value) for value in position])
    return c2w


def to_pixels(images: Tensor) -> np.ndarray:
    """[N, 3, H, W] in [0, 1] -> uint8 [N, H, W, 3]."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).numpy()


def _place_camera(client: Any) -> None:
    """Put a new browser's camera where the input video was seen from."""
    client.camera.up_direction = (0.0, 0.0, 1.0)
    client.camera.position = (DISTANCE, 0.0, 0.0)
    client.camera.look_at = (0.0, 0.0, 0.0)
    client.camera.fov = math.radians(FOVY_DEG)


def _check(config: ViewConfig) -> None:
    for name in ("fps", "moving_seconds", "num_frames"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}={value} must be positive")
    if not SMALLEST <= config.size <= 1024:
        raise UserError(f"size={config.size}; give {SMALLEST} to 1024 pixels")
    if not 1 <= config.port <= 65535:
        raise UserError(f"port={config.port}; give a port from 1 to 65535")
    if config.output is not None and not config.html:
        raise UserError(f"output={config.output} is only for html=true: add html=true, or leave output away")
    if config.output is not None and Path(config.output).suffix != ".html":
        raise UserError(f"output={config.output}: the name of an html file ends in .html")
    try:
        socket.getaddrinfo(config.host, config.port)
    except (OSError, UnicodeError) as error:
        raise UserError(f"host={config.host} is no address of this machine: use 127.0.0.1 or 0.0.0.0") from error


def _import_viser() -> ModuleType:
    try:
        import viser
    except ImportError as error:
        raise UserError("the viewer needs viser: pip install 'fourdiffusion[viewer]', or add html=true") from error
    return viser


def _addresses(host: str, port: int) -> list[str]:
    """Return the lines that say how to reach the viewer."""
    local = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    lines = [f"viewer: http://{local}:{port} (Ctrl-C ends it)"]
    if host in ("127.0.0.1", "localhost"):
        target = f"{getpass.getuser()}@{socket.gethostname()}"
        lines.append(f"from another machine: ssh -N -L {port}:127.0.0.1:{port} {target}, then open that address there")
    return lines


def _write_html(run: Path, config: ViewConfig) -> None:
    folder = scene_folder(run)
    run = folder.parent if folder.name == "scene" else folder
    times = frame_times(run, None if (run / "input.safetensors").is_file() else config.num_frames)
    notes = origin(run)
    meshes, _ = scene_meshes(load_scene(folder, resolve_device(config.device)), times, 96, progress=True)
    path = Path(config.output) if config.output else run / "export" / "scene.html"
    write_html(path, meshes, config.fps, notes.get("prompt", run.resolve().name), credit_of(notes), notes)
    print(f"written: {path}")

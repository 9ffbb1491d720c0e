"""Write one self-contained HTML file that shows an animated scene offline: orbit, time slider, play."""

import base64
import gzip
import html
from pathlib import Path

from fourdiffusion.files import write_atomic
from fourdiffusion.scene.export.glb import build_glb
from fourdiffusion.scene.export.surface import Mesh

TEMPLATE = Path(__file__).with_name("viewer.html")


def write_html(
    path: Path, meshes: list[Mesh], fps: float, title: str, copyright: str = "", extras: dict | None = None
) -> None:
    """Write the page: template, script and the gzipped animated GLB in one file that loads nothing else."""
    model = base64.b64encode(
        gzip.compress(build_glb(meshes, fps, copyright=copyright, extras=extras), mtime=0)
    ).decode()
    values = {"TITLE": html.escape(title), "CREDIT": html.escape(copyright), "FPS": f"{fps:g}", "MODEL": model}
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        page = page.replace(f"@@{name}@@", value)
    write_atomic(path, lambda partial: partial.write_text(page, encoding="utf-8"))

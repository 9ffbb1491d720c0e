"""One HTML file that plays predictions beside their references, with curves over frames, worst videos first."""

import base64
import html
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fourdiffusion.evaluate.settings import ProtocolConfig
from fourdiffusion.evaluate.tables import HIGHER_IS_BETTER
from fourdiffusion.files import write_atomic
from fourdiffusion.media.write import write_video

SIDE = 192  # pixels of a shown frame
FPS = 8.0
MAX_FILMS = 64  # videos that the page shows: bounds memory


@dataclass
class Film:
    """One compared video, small."""

    object: str
    view: str
    prediction: Tensor  # [F, 3, S, S] in [0, 1]; kept as uint8 of at most SIDE pixels
    reference: Tensor
    per_frame: dict[str, list[float]]

    def __post_init__(self) -> None:
        self.prediction, self.reference = _small(self.prediction), _small(self.reference)


def write_page(path: Path, report: dict[str, Any], films: list[Film], protocol: ProtocolConfig) -> None:
    """Write the page, whole or not at all; it needs no other file and no network."""
    key = next(iter(films[0].per_frame), "") if films else ""
    sign = 1 if key in HIGHER_IS_BETTER else -1
    ordered = films
    if key:
        ordered = sorted(films, key=lambda film: sign * sum(film.per_frame[key]) / len(film.per_frame[key]))
    blocks = [_block(film, sign, key) for film in ordered]
    means = "".join(f"<tr><td>{html.escape(k)}</td><td>{v:.4g}</td></tr>" for k, v in report["mean"].items())
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in [*report["notes"], *report["missing"]])
    shown = f"Left: prediction, right: reference. Worst {html.escape(key)} first." if films else "No videos: meshes."
    title = html.escape(f"{report['prediction']} under {protocol.name}")
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1><p>{html.escape(protocol.description)}</p>"
        f'<p><button id="play">pause</button> <input id="frame" type="range" min="0" max="1000" value="0">'
        f' <span id="said"></span></p><table>{means}</table><ul>{notes}</ul>'
        f"<p>{shown}</p>{''.join(blocks)}"
        f"<script>{SCRIPT}</script></html>\n"
    )
    write_atomic(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _small(frames: Tensor) -> Tensor:
    scale = SIDE / max(frames.shape[-2:])
    if scale < 1:
        size = [max(2, round(side * scale)) for side in frames.shape[-2:]]
        frames = interpolate(frames, size, mode="bilinear", antialias=True)
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8)


def _block(film: Film, sign: int, key: str) -> str:
    """A video of both sides, and curves over frames."""
    both = torch.cat([film.prediction, film.reference], dim=-1).float() / 255
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        write_video(path, both, FPS, min_side=SIDE)
        content = base64.b64encode(path.read_bytes()).decode()
    worst = ""
    if key:
        values = film.per_frame[key]
        number = values.index(min(values, key=lambda value: sign * value))
        worst = f"<p>worst frame by {html.escape(key)}: {number} ({values[number]:.4g})</p>"
    curves = "".join(_curve(name, each) for name, each in film.per_frame.items())
    name = html.escape(f"{film.object}, view {film.view}")
    return (
        f"<section><h2>{name}</h2>{worst}"
        f'<video muted loop playsinline data-frames="{len(film.prediction)}" '
        f'src="data:video/mp4;base64,{content}"></video>'
        f"<div>{curves}</div></section>"
    )


def _curve(name: str, values: list[float]) -> str:
    """A small SVG curve that carries its values for the pointer."""
    low, high = min(values), max(values)
    extent = (high - low) or 1.0
    step = 200 / max(len(values) - 1, 1)
    points = " ".join(f"{i * step:.1f},{56 - 50 * (value - low) / extent:.1f}" for i, value in enumerate(values))
    data = html.escape(json.dumps([round(value, 5) for value in values]))
    return (
        f'<figure><svg viewBox="-2 0 204 60" data-values="{data}"><polyline points="{points}"/>'
        f'<line x1="0" x2="0" y1="0" y2="60"/></svg><figcaption>{html.escape(name)} '
        f"{low:.4g} .. {high:.4g} <b></b></figcaption></figure>"
    )


STYLE = """
body{font:14px sans-serif;margin:2em;max-width:70em}section{border-top:1px solid #ccc;overflow:auto}
video{float:left;margin-right:1em;background:#fff}figure{display:inline-block;margin:.3em;width:210px}
polyline{fill:none;stroke:#06c;stroke-width:1.5}line{stroke:#c30;stroke-width:1}svg{width:210px;border:1px solid #ddd}
figcaption{font-size:12px}td{padding:0 1em 0 0}#frame{width:30em}
"""

SCRIPT = """
const videos=[...document.querySelectorAll('video')],bar=document.getElementById('frame');
const button=document.getElementById('play'),said=document.getElementById('said');
let playing=true,at=0,last=null;
function show(){
  for(const v of videos){
    const n=+v.dataset.frames,f=Math.min(n-1,Math.floor(at*n));
    if(v.readyState>0){const t=(f+.5)/n*v.duration;if(Math.abs(v.currentTime-t)>.3/n*v.duration)v.currentTime=t;}
    for(const s of v.parentNode.querySelectorAll('svg')){
      const d=JSON.parse(s.dataset.values),x=f*200/Math.max(n-1,1),l=s.querySelector('line');
      l.setAttribute('x1',x);l.setAttribute('x2',x);
      s.parentNode.querySelector('b').textContent='frame '+f+': '+d[f];
    }
  }
  bar.value=Math.round(at*1000);said.textContent=(at*100).toFixed(0)+' percent';
}
function tick(now){
  if(playing&&last!==null){at=(at+(now-last)/4000)%1;show();}
  last=now;requestAnimationFrame(tick);
}
button.onclick=()=>{playing=!playing;button.textContent=playing?'pause':'play';};
bar.oninput=()=>{playing=false;button.textContent='play';at=bar.value/1000.001;show();};
show();requestAnimationFrame(tick);
"""

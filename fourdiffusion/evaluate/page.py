"""One HTML file that plays predictions beside their references, with curves over frames, worst videos first."""

import base64
import html
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fourdiffusion.evaluate.settings import ProtocolConfig
from fourdiffusion.evaluate.tables import higher_is_better
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
    others: dict[str, Tensor] = field(default_factory=dict)  # {method: frames} of other methods

    def __post_init__(self) -> None:
        self.prediction, self.reference = _small(self.prediction), _small(self.reference)
        self.others = {name: _small(frames) for name, frames in self.others.items()}


def write_page(
    path: Path, report: dict[str, Any], others: dict[str, dict[str, Any]], films: list[Film], protocol: ProtocolConfig
) -> None:
    """Write the page, whole or not at all; it needs no other file and no network.

    ``others`` are other methods' reports by name: a column of means, and a curve beside the prediction's.
    """
    key = next((name for film in films[:1] for name in film.per_frame if all(name in x.per_frame for x in films)), "")
    sign = 1 if higher_is_better(key) else -1
    ordered = films
    if key:
        ordered = sorted(films, key=lambda film: sign * sum(film.per_frame[key]) / len(film.per_frame[key]))
    blocks = [_block(film, sign, key, others) for film in ordered]
    means = "<tr><td></td><td>prediction</td>" + "".join(f"<td>{html.escape(name)}</td>" for name in others) + "</tr>"
    for name, value in report["mean"].items():
        cells = [value, *(other["mean"].get(name) for other in others.values())]
        texts = "".join(f"<td>{'' if cell is None else f'{cell:.4g}'}</td>" for cell in cells)
        means += f"<tr><td>{html.escape(name)}</td>{texts}</tr>"
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in [*report["notes"], *report["missing"]])
    shown = f"Worst {html.escape(key)} first." if films else "No videos: meshes."
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


def _block(film: Film, sign: int, key: str, others: dict[str, dict[str, Any]]) -> str:
    """A video of all sides, and curves over frames."""
    sides = [film.prediction, *film.others.values(), film.reference]
    both = torch.cat(sides, dim=-1).float() / 255
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        write_video(path, both, FPS, min_side=SIDE)
        content = base64.b64encode(path.read_bytes()).decode()
    worst = ""
    if key:
        values = film.per_frame[key]
        number = values.index(min(values, key=lambda value: sign * value))
        worst = f"<p>worst frame by {html.escape(key)}: {number} ({values[number]:.4g})</p>"
    known = {method: _values_of(other, film) for method, other in others.items()}
    curves = ""
    for name, each in film.per_frame.items():
        beside = {method: values[name] for method, values in known.items() if len(values.get(name, [])) == len(each)}
        curves += _curve(name, each, beside)
    name = html.escape(f"{film.object}, view {film.view}")
    order = html.escape(", ".join(["prediction", *film.others, "reference"]))
    return (
        f"<section><h2>{name}</h2><p>left to right: {order}</p>{worst}"
        f'<video muted loop playsinline data-frames="{len(film.prediction)}" '
        f'src="data:video/mp4;base64,{content}"></video>'
        f"<div>{curves}</div></section>"
    )


def _values_of(report: dict[str, Any], film: Film) -> dict[str, list[float]]:
    """Another method's values of a film's video, {metric: [F]}; empty where it has not measured it."""
    views = report["objects"].get(film.object, {}).get("views", {})
    return dict(views.get(film.view, {}).get("per_frame", {}))


def _curve(name: str, values: list[float], others: dict[str, list[float]]) -> str:
    """A small SVG curve that carries its values for the pointer; other methods' curves are dashed."""
    everything = [*values, *(value for each in others.values() for value in each)]
    low, high = min(everything), max(everything)
    extent = (high - low) or 1.0
    step = 200 / max(len(values) - 1, 1)

    def line(each: list[float]) -> str:
        return " ".join(f"{i * step:.1f},{56 - 50 * (value - low) / extent:.1f}" for i, value in enumerate(each))

    points = line(values)
    dashed = "".join(
        f'<polyline class="other" points="{line(each)}"><title>{html.escape(method)}</title></polyline>'
        for method, each in others.items()
    )
    data = html.escape(json.dumps([round(value, 5) for value in values]))
    return (
        f'<figure><svg viewBox="-2 0 204 60" data-values="{data}"><polyline points="{points}"/>{dashed}'
        f'<line x1="0" x2="0" y1="0" y2="60"/></svg><figcaption>{html.escape(name)} '
        f"{low:.4g} .. {high:.4g} <b></b></figcaption></figure>"
    )


STYLE = """
body{font:14px sans-serif;margin:2em;max-width:70em}section{border-top:1px solid #ccc;overflow:auto}
video{float:left;margin-right:1em;background:#fff}figure{display:inline-block;margin:.3em;width:210px}
polyline{fill:none;stroke:#06c;stroke-width:1.5}.other{stroke:#888;stroke-dasharray:4 2}
line{stroke:#c30;stroke-width:1}svg{width:210px;border:1px solid #ddd}
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

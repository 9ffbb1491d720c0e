"""Write a trained small model as it ships: half-precision safetensors in a diffusers folder, with its model card.

    python scripts/build/export_small_model.py runs/tiny_motion/model data/models/tiny
    python scripts/build/export_small_model.py runs/small_motion_more/model data/models/small .cache/assets/train

The first is the model of the synthetic world. With a folder of the clips that it was trained on, the card lists every
object in it with author, license and source. The same input gives the same bytes.
"""

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.errors import UserError

HEAD = """---
license: apache-2.0
pipeline_tag: image-to-3d
library_name: diffusers
---

"""
TAIL = """

SHA-256 of the weights:

{hashes}
"""
SYNTHETIC = """# The small model of fourdiffusion

A multi-view video diffusion model (4DM, "4Diffusion: Multi-view Video Diffusion Model for 4D Generation", NeurIPS
2024) of a small world: creatures made of ellipsoids, 64 x 64 pixels, 8 frames, 4 views. It runs on two CPU cores, so
that the method can be tried, tested and taken apart without a GPU and a download. It shares the architecture and the
code with full size, and no weight with anybody's model.

- **Use**: `fourdiffusion generate model=tiny video=...` and `fit experiment=tiny`. Say what the object is:
  `prompt='a pink bird with a purple belly flying'`; its captions are `a COLOUR PLAN with COLOUR TEXTURE ACTION`.
- **Parts**: {parts}.
- **Data**: 1500 clips of 8 views x 8 frames that `fourdiffusion data synth` renders (seeds 0 to 1499). No picture
  of the real world, no human being, nothing of others.
- **Recipe**: `scripts/build/make_small_model.sh`, six runs; the weights are moving averages, rounded to half precision.
- **Compute**: five hours of two AMD EPYC cores, no GPU; steps, hours and what failed: `dev/LOG.md`.
- **Measures**: on 30 objects that training never saw, three views of 8 frames, mean of 5 seeds, two steps of sampling:
  PSNR 16.93 dB, 3.8 dB above the input video and 0.1 above the model without its motion layers (16.82); temporal
  error 0.0584 against 0.0649. One step: 17.35 against 17.30 dB, 0.0540 against 0.0555. All tables, with the commands
  that made them: `docs/results.md`.
- **Limits**: it blurs what the input does not show, and gets it wrong. It knows white backgrounds, one object,
  level cameras, and nothing of the real world; it proves the code, not the method.
- **Licence**: Apache-2.0, weights and data."""
ASSETS = """# The second small model of fourdiffusion

A multi-view video diffusion model (4DM, "4Diffusion: Multi-view Video Diffusion Model for 4D Generation", NeurIPS
2024) of animated animals and monsters, {size} x {size} pixels, 8 frames, 4 views. It runs on two CPU cores, so that the
method can be tried, tested and taken apart without a GPU and a download. It shares the architecture and the code with
full size, and no weight with anybody's model.

- **Use**: `fourdiffusion fit video=...` and `generate` take it unless other weights are named. Say what the object is:
  `prompt='a dark grey dog'`.
- **Parts**: {parts}.
- **Data**: {num_clips} clips of {num_objects} animated assets, rendered with `fourdiffusion data render` and kept by
  `fourdiffusion data curate`; below, each with its author and license. Held out by source.
- **Recipe**: `scripts/build/make_second_model.sh`. It goes on from the first small model, which 1500 clips of
  synthetic creatures trained; the weights are moving averages, rounded to half precision.
- **Measures** and what failed: `docs/results.md`, `dev/LOG.md`.
- **Limits**: it blurs what the input does not show, and gets it wrong. It knows white backgrounds, one object, level
  cameras, low-polygon models, and nothing of the real world.
- **License**: Apache-2.0 for the weights; the assets keep theirs.

| object | author | license | source |
|---|---|---|---|
{objects}"""


def main() -> None:
    """Round the weights of a pipeline folder to float16 and save them with a card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("clips", type=Path, nargs="?", help="folder of the clips that it was trained on")
    parser.add_argument("--steps", type=int, help="of sampling, where the user names none; as in training if not given")
    options = parser.parse_args()
    export(options.source, options.target, options.clips, options.steps)


def export(source: Path, target: Path, clips: Path | None = None, num_steps: int | None = None) -> None:
    """Write the model of ``source`` to ``target``. UserError if ``clips`` holds none."""
    pipeline = load_pipeline(str(source))
    if num_steps is not None:
        pipeline.generation_config = replace(pipeline.generation_config, num_inference_steps=num_steps)
    parts = [
        f"{name} {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M parameters"
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    ]
    fields: dict[str, object] = {"parts": ", ".join(parts), "size": pipeline.generation_config.image_size}
    text = SYNTHETIC
    if clips is not None:
        text, fields = ASSETS, fields | objects_of(clips)
    pipeline.to(torch.float16)
    pipeline.save_whole(target)
    hashes = [f"- `{path.relative_to(target)}`: `{sha256(path)}`" for path in sorted(target.rglob("*.safetensors"))]
    card = HEAD + text.format(**fields) + TAIL.format(hashes="\n".join(hashes))
    (target / "README.md").write_text(card, encoding="utf-8")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


def objects_of(clips: Path) -> dict[str, object]:
    """Return the card's fields about the clips of a folder, one line for each object."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(clips.glob("*/transforms.json"))]
    if not records:
        raise UserError(f"{clips} holds no clips: give the folder that the model was trained on")
    objects = {each["object"]: each for each in records}
    lines = [
        f"| {name} | {each['author']} | {each['license']} | {each['source']} |"
        for name, each in sorted(objects.items())
    ]
    return {"num_clips": len(records), "num_objects": len(objects), "objects": "\n".join(lines)}


def sha256(path: Path) -> str:
    """In hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()

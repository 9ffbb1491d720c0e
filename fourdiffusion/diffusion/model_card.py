"""A folder of motion layers for model hubs: weights, sizes, and a model card."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.runs import run_record

CARD = """---
library_name: diffusers
license: other
license_name: see-training-data
tags: [fourdiffusion, motion-layers, multi-view, video, 4d]
---

# Motion layers of 4DM

{count} motion modules, {millions:.1f} M parameters (moving average of the weights), for a multi-view image diffusion
UNet with blocks of widths {widths}; up to {frames} frames. Method: [4Diffusion](https://arxiv.org/abs/2405.20674),
trained with `fourdiffusion train`.

```python
from fourdiffusion import FourDiffusionPipeline

pipeline = FourDiffusionPipeline.from_pretrained("{base}")  # the base model that they were trained on
pipeline.load_motion("THIS_FOLDER")
```

## Training

Their license follows that of the clips they were trained on; say here which these are.

```yaml
{settings}```
"""


def save_motion_folder(motion: MotionModules, folder: Path, run: Path) -> None:
    """Write ``config.json``, the weights and ``README.md``; ``folder`` is replaced after all of them are written.

    Args:
        motion: the layers.
        folder: to write.
        run: the training run, whose settings and commit the card names.
    """
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    motion.save_pretrained(partial)
    (partial / "README.md").write_text(card(motion, run_record(run)), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def card(motion: MotionModules, record: dict[str, Any]) -> str:
    """Return the model card: ``record`` is the content of the run's config.yaml."""
    settings = record["settings"]
    model, data = settings.pop("model"), settings.pop("data")
    said = {"commit": record.get("commit"), "model": {"path": model.get("path")}, "data": data}
    kept = {key: value for key, value in settings.items() if key not in ("output", "trackers", "cpu")}
    return CARD.format(
        count=len(motion.layers),
        millions=sum(parameter.numel() for parameter in motion.parameters()) / 1e6,
        widths=", ".join(str(width) for width in dict.fromkeys(motion.config.channels)),
        frames=motion.config.max_frames,
        base=Path(str(model.get("path"))).name,
        settings=yaml.safe_dump({**said, **kept}, sort_keys=False),
    )

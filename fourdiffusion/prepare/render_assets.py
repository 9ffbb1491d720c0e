"""Verb `data render`: multi-view clips of animated assets."""

from __future__ import annotations

from pathlib import Path

from fourdiffusion.datasets.rendering.run import LOG, render_batch
from fourdiffusion.datasets.rendering.settings import RenderAssetsConfig, validate


def render_assets(config: RenderAssetsConfig) -> None:
    """Render the missing clips; an error of an asset is logged and does not end the batch."""
    validate(config)
    summary = render_batch(config)
    print(f"{config.output}: {summary.clips} clips, {summary.rendered} of them rendered now")
    if summary.failures:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.failures.items())
        print(f"{sum(summary.failures.values())} failed: {reasons}; see {Path(config.output) / LOG}")

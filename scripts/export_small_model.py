"""Write a trained small model as it ships: half-precision safetensors in a diffusers folder.

python scripts/export_small_model.py runs/tiny_motion/model data/models/tiny
"""

import sys
from pathlib import Path

import torch

from fourdiffusion.diffusion.loading import load_pipeline


def main(source: Path, target: Path) -> None:
    """Round the weights of the pipeline folder ``source`` to float16 and save them as ``target``."""
    pipeline = load_pipeline(str(source))
    pipeline.to(torch.float16)
    pipeline.save_whole(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

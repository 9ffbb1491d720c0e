"""Contact sheet of the first test objects, none chosen: truth above sample, a few frames of each view.

python scripts/benchmarks/sample_sheets.py .cache/measure docs/samples.png [KEY=VALUE of `fourdiffusion generate` ...]
"""

import argparse
from pathlib import Path

import report
import torch
from held_out import first_clips, read_example, sample, sampling_settings
from tqdm import tqdm

from fourdiffusion import cameras
from fourdiffusion.device import resolve_device
from fourdiffusion.diffusion.loading import open_pipeline
from fourdiffusion.media.write import contact_sheet, write_image

COLUMNS = 3  # frames of a view: the first, the middle one, the last


def main() -> None:
    """One sample an object, with the settings' seed."""
    options = _options()
    settings = sampling_settings(options.clips, options.model, options.frames, options.views, options.words)
    folders = first_clips(options.clips, options.objects)
    pipeline = open_pipeline(settings.model, resolve_device(settings.device))
    frames = torch.linspace(0, settings.num_frames - 1, COLUMNS).round().long()
    rows, labels = [], []
    for number, folder in enumerate(tqdm(folders, desc="samples")):
        example = read_example(folder, settings)
        for videos in (example.truth, sample(pipeline, settings, example, settings.seed)):
            rows.append(videos[:, frames].flatten(0, 1))
        labels += [f"{number} truth", f"{number} sample"]
    azimuths = cameras.orthogonal_azimuths(settings.num_views).tolist()
    columns = [f"{azimuth:g}\N{DEGREE SIGN} f{int(frame)}" for azimuth in azimuths for frame in frames]
    write_image(options.output, contact_sheet(torch.stack(rows), labels, columns, min_side=64))
    print(f"written: {options.output}, seed {settings.seed}; objects: {', '.join(folder.name for folder in folders)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of test clips, rig=orbit")
    parser.add_argument("output", type=Path, help="a PNG")
    parser.add_argument("words", nargs="*", help="KEY=VALUE of fourdiffusion generate")
    parser.add_argument("--model", default="data/models/small", help="pipeline folder")
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--frames", type=int, default=8, help="of the clips")
    parser.add_argument("--views", type=int, default=4, help="that the model generates")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    report.run(main)

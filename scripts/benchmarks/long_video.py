"""Do longer videos than the model was trained on hold together where its groups of frames meet?

    python scripts/benchmarks/long_video.py CLIPS PICTURE.png [STEPS]

CLIPS: of ``data synth split=test rig=orbit num_views=4 num_frames=25``. Samples each clip's input view at 16 and at all
its frames, cut into groups in three ways: apart (neighbouring runs that never meet), windows and interleaved. A jump is
the mean absolute difference of neighbouring frames over that of the truth. Printed: the mean jump where a run of frames
ends, inside of the runs, and their ratio; PSNR against the truth. The picture shows the first clip from 90 degrees.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fourdiffusion import cameras
from fourdiffusion.cli import config
from fourdiffusion.datasets.clips import list_clips, read_clip
from fourdiffusion.diffusion.generation import generate_views, with_overrides
from fourdiffusion.diffusion.loading import load_pipeline
from fourdiffusion.diffusion.long_video import FrameGroups, interleaved, windows
from fourdiffusion.diffusion.schedulers import set_scheduler
from fourdiffusion.media.image import composite
from fourdiffusion.media.write import contact_sheet, write_image

LENGTH = 8  # frames that the model was trained with


def apart(num_frames: int, length: int) -> FrameGroups:
    """Runs of neighbouring frames that never meet."""
    return lambda _: list(torch.arange(num_frames).split(length))


WAYS = {"apart": apart, "windows": windows, "interleaved": interleaved}


def borders(groups: FrameGroups, steps: int) -> Tensor:
    """Frame numbers at which some run of neighbouring frames begins, the first frame left out."""
    runs = [group for step in range(steps) for group in groups(step) if bool((group.diff() == 1).all())]
    starts = torch.cat([run[[0]] for run in runs] + [run[[-1]] + 1 for run in runs]).unique()
    last = max(int(run[-1]) for run in runs)
    return starts[(starts > 0) & (starts <= last)]


def jumps(views: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring frames: [V, F, 3, H, W] -> [F - 1]."""
    return views.diff(dim=1).abs().mean(dim=(0, 2, 3, 4))


@torch.no_grad()
def main(folder: Path, picture: Path, steps: int) -> None:
    """Prints a Markdown table and writes the picture."""
    pipeline = load_pipeline(config.shipped("data/models/tiny"))
    set_scheduler(pipeline, "ddim", "trailing")
    clips = [read_clip(each) for each in list_clips(folder)]
    azimuths = cameras.orthogonal_azimuths(len(clips[0].c2w))
    print(f"{len(clips)} clips, {len(azimuths)} views, {steps} steps\n")
    print("| frames | way | jump at borders | jump inside | ratio | PSNR, dB |\n|---|---|---|---|---|---|")
    rows: list[Tensor] = []
    names: list[str] = []
    for num_frames in (2 * LENGTH, clips[0].rgba.shape[1]):
        for name, way in WAYS.items():
            groups, found, errors = way(num_frames, LENGTH), [], []
            for number, clip in enumerate(tqdm(clips, desc=f"{num_frames} {name}", leave=False)):
                truth = composite(clip.rgba[:, :num_frames].float() / 255)
                views = generate_views(
                    pipeline,
                    truth[0],
                    clip.caption,
                    c2w=clip.c2w,
                    settings=with_overrides(pipeline.generation_config, steps, 1.0, None),
                    generator=torch.Generator().manual_seed(number),
                    groups=groups,
                )
                found.append(jumps(views) / jumps(truth))
                errors.append(-10 * (views - truth)[1:].square().mean().log10())
                if number == 0 and num_frames > 2 * LENGTH:
                    rows, names = [*rows, views[1]], [*names, name]
            profile, ends = torch.stack(found).mean(0), borders(groups, steps) - 1
            at = profile[ends].mean()
            inside = profile[[i for i in range(num_frames - 1) if i not in ends]].mean()
            psnr = torch.stack(errors).mean()
            print(f"| {num_frames} | {name} | {at:.2f} | {inside:.2f} | {at / inside:.2f} | {psnr:.2f} |", flush=True)
    truth = composite(clips[0].rgba[1].float() / 255)
    write_image(picture, contact_sheet(torch.stack([truth, *rows]), ["truth", *names]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 2)

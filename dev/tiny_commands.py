"""A small and quick command of every verb, and the inputs that they need; for bad_commands.py and kills.py."""

import os
from pathlib import Path

from fourdiffusion.cli.verbs import VERBS

INPUTS = ("in", "model", "clips", "truth", "run", "trained", "captured", "gen", "release", "assets")
SIZES = (
    "channels=[32,32] attention_levels=[true,true] blocks_per_level=1 head_dim=16 context_dim=32 num_image_tokens=2 "
    "resampler_layers=1 resampler_heads=2 resampler_head_dim=16 norm_groups=8 motion_heads=2 max_frames=8 "
    "latent_channels=4 vae_channels=[8,8,16] vae_blocks_per_level=1 vae_norm_groups=4 vae_attention=false "
    "vocab_size=512 text_length=12 text_layers=1 text_heads=2 image_encoder_size=16 image_patch=8 image_dim=32 "
    "image_layers=2 image_heads=2 image_size=16"
)
MODEL = " ".join(f"model.{word}" for word in SIZES.split())
GRID = " ".join(
    f"scene.field.{grid}.{word}" for grid in ("space", "spacetime")
    for word in ("num_levels=2", "log2_hashmap_size=8", "base_resolution=4")
)  # fmt: skip
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {  # {name: (words that run and are quick, inputs)}
    "generate": ("generate video=in model.path=model output=out num_frames=4 device=cpu crop=frame", ("in", "model")),
    "fit": (
        "fit video=in model.path=model output=out num_frames=4 device=cpu crop=frame max_steps=2 "
        "trackers=[] log_every=1 "
        f"{GRID} scene.field.hidden_width=16 scene.renderer.num_samples=16 scene.renderer.occupancy_resolution=8 "
        "sds.resolutions=[16] sds.resolution_milestones=[0] sds.start_step=0 sds.every=1 loss.rgb_rays=64",
        ("in", "model"),
    ),
    "fit views": (
        "fit views=truth output=out device=cpu max_steps=2 num_rays=64 log_every=1 trackers=[] "
        f"{GRID} scene.field.hidden_width=16 scene.renderer.num_samples=16 scene.renderer.occupancy_resolution=8",
        ("truth",),
    ),
    "train": (
        "train stage=motion data.path=clips model.path=model output=out data.num_frames=4 max_steps=1 batch_size=2 "
        "validation_every=0 trackers=[] cpu=true",
        ("clips", "model"),
    ),
    "train vae": (
        "train stage=vae data.path=clips model.path=null output=out data.num_frames=4 max_steps=1 batch_size=2 "
        f"validation_every=0 trackers=[] cpu=true {MODEL}",
        ("clips",),
    ),
    "render": ("render scene=run output=out size=16 orbit_pictures=2 num_azimuths=2 device=cpu", ("run",)),
    "render still": ("render scene=run output=out.png path=still size=16 device=cpu", ("run",)),
    "export": ("export scene=run output=out.glb resolution=16 num_frames=2 device=cpu", ("run",)),
    "export images": ("export scene=run output=out format=images size=16 num_frames=2 device=cpu", ("run",)),
    "view": ("view scene=run html=true output=out.html num_frames=2 device=cpu", ("run",)),
    "evaluate": ("evaluate prediction=gen reference=truth output=out device=cpu", ("gen", "truth")),
    "evaluate scene": ("evaluate prediction=run reference=truth output=out device=cpu", ("run", "truth")),
    "convert": (f"convert imagedream=release/ipmv.pt output=out {MODEL}", ("release",)),
    "convert back": ("convert model.path=model output=out.safetensors", ("model",)),
    "data synth": ("data synth output=out num_clips=1 num_views=4 num_frames=2 size=16", ()),
    "data render": (
        "data render assets=assets output=out engine=opengl width=16 height=16 num_views=4 num_frames=2 "
        "supersampling=1 min_movement=0.001",
        ("assets",),
    ),
    "data curate": ("data curate clips=clips output=out", ("clips",)),
    "data pack": ("data pack clips=clips output=out", ("clips",)),
    "doctor": ("doctor model.path=model", ("model",)),
}
RESUMED = {  # these go on in the folder of a run
    "fit resumed": (COMMANDS["fit"][0].replace("output=out", "output=run").replace("max_steps=2", "max_steps=3"),
                    ("in", "model", "run")),
    "train resumed": (COMMANDS["train"][0]
                      .replace("output=out", "output=trained").replace("max_steps=1", "max_steps=3"),
                      ("clips", "model", "trained")),
    "fit views resumed": (COMMANDS["fit views"][0].replace("output=out", "output=captured")
                          .replace("max_steps=2", "max_steps=3"), ("truth", "captured")),
    "generate again": (COMMANDS["generate"][0].replace("output=out", "output=gen"), ("in", "model", "gen")),
}  # fmt: skip
NEVER_PASS = {  # one needs a package and a network, the other serves a page until it is stopped: only to be refused
    "data objaverse": ("data objaverse lists=[in/000.png] output=out", ("in",)),
    "app": ("app output=out", ()),
}
ALL = COMMANDS | RESUMED | NEVER_PASS


def command(name: str, *words: str) -> list[str]:
    """Return a command's words with some settings in place of its own."""
    keys = {word.partition("=")[0] for word in words}
    own = [word for word in ALL[name][0].split() if word.partition("=")[0] not in keys or "=" not in word]
    return [*own, *words]


def make_inputs(base: Path) -> None:
    """Make the inputs that are missing in a folder: frames, model, clips, truth, runs, release, assets."""
    import torch
    from animated_glb import swinging_box
    from PIL import Image
    from released import write_release
    from tiny_model import AZIMUTHS, picture, tiny_clip, tiny_config, write_clips, write_model  # noqa: F401

    from fourdiffusion import cameras
    from fourdiffusion.cli import main
    from fourdiffusion.datasets.clips import Clip, write_clip

    torch.set_num_threads(1)
    base.mkdir(parents=True, exist_ok=True)
    before = os.getcwd()
    os.chdir(base)
    try:
        if not Path("in").exists():
            Path("in").mkdir()
            rgba = tiny_clip(0).rgba[0]
            for index in range(4):
                Image.fromarray(rgba[index].movedim(0, -1).numpy()).resize((24, 24)).save(f"in/{index:03d}.png")
        if not Path("model").exists():
            write_model(Path("model"))
        if not Path("clips").exists():
            write_clips(Path("clips"))
        if not Path("truth").exists():
            from tiny_model import balls

            c2w = cameras.orbit(cameras.orthogonal_azimuths(4))
            times = torch.linspace(0, 1, 4)
            rgba = picture(c2w[:, None].expand(-1, 4, 4, 4), balls(0, times).expand(4, 4, 3, 3))
            pixels = (rgba * 255).round().to(torch.uint8)
            write_clip(Path("truth"), Clip("truth", pixels, c2w, cameras.FOVY_DEG, times, "balls", "cc0", "test"))
        if not Path("release").exists():
            Path("release").mkdir()
            write_release(Path("release/ipmv.pt"), tiny_config())
        if not Path("assets").exists():
            Path("assets").mkdir()
            swinging_box(Path("assets/box.glb"))
        for name, output in (("fit", "run"), ("train", "trained"), ("fit views", "captured"), ("generate", "gen")):
            if not Path(output).exists() and main(
                command(name, f"output={output}", "max_steps=2" if name != "generate" else "seed=0")
            ):
                raise SystemExit(f"{name} failed: the inputs cannot be made")
    finally:
        os.chdir(before)


def import_everything() -> None:
    """Import what the verbs import, so that a fork need not."""
    import importlib

    for verb in VERBS:
        importlib.import_module(verb.module)


def warm_up(base: Path) -> None:
    """Run a fit and a sampling here, so that the compiled kernels and what libraries load late are in every fork."""
    import tempfile

    from fourdiffusion.cli import main

    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name in ("in", "model"):
                os.symlink(base.resolve() / name, name)
            main(command("fit"))
        finally:
            os.chdir(before)

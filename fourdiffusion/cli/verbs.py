"""The verbs: a new one is one entry of VERBS, its settings dataclass and configs/<function>.yaml."""

from dataclasses import dataclass

SAMPLE = "data/sample/input.mp4"  # the video of `fourdiffusion demo`
SAMPLE_PROMPT = "a dark grey dog"


@dataclass(frozen=True)
class Verb:
    """A function of one settings dataclass (``settings`` is module:Class). configs/<function>.yaml is its root file.

    ``basic`` are the settings that people use: --help shows them, and --help all the others.
    """

    words: str
    module: str
    function: str
    settings: str
    summary: str
    examples: tuple[str, ...]
    basic: tuple[str, ...]
    makes_model: bool = False  # so that the network's sizes matter, which a loaded model brings along


VERBS = (
    Verb(
        "data synth",
        "fourdiffusion.prepare.synth",
        "synth",
        "fourdiffusion.prepare.settings:SynthConfig",
        "make clips of animated creatures with known geometry, seen from several cameras at once",
        ("fourdiffusion data synth output=cache/clips",),
        ("output", "num_clips", "split", "num_views", "num_frames", "size", "rig", "num_faulty", "num_workers"),
    ),
    Verb(
        "data render",
        "fourdiffusion.prepare.render_assets",
        "render_assets",
        "fourdiffusion.datasets.rendering.settings:RenderAssetsConfig",
        "render animated assets to clips of many views, with Blender or, for glTF, with OpenGL",
        (
            "fourdiffusion data render assets=assets output=cache/clips",
            "fourdiffusion data render assets=assets output=cache/clips engine=opengl width=128 height=128 num_views=8",
        ),
        (
            "assets",
            "output",
            "engine",
            "blender",
            "width",
            "height",
            "num_views",
            "num_random_views",
            "num_frames",
            "animations",
            "num_workers",
        ),
    ),
    Verb(
        "data objaverse",
        "fourdiffusion.prepare.objaverse",
        "objaverse",
        "fourdiffusion.datasets.curation.settings:ObjaverseConfig",
        "fetch objects of Objaverse by uid lists, without those of test sets, for data render",
        ("fourdiffusion data objaverse lists=[paper926] output=cache/objaverse",),
        ("lists", "output", "at_least", "captions", "allow_test_sets", "limit", "num_workers"),
    ),
    Verb(
        "data curate",
        "fourdiffusion.prepare.curate",
        "curate",
        "fourdiffusion.datasets.curation.settings:CurateConfig",
        "score clips, drop what moves too little, turns, leaves the picture or repeats, and decide on a page",
        (
            "fourdiffusion data curate clips=cache/clips output=cache/curated",
            "fourdiffusion data curate clips=cache/clips output=cache/curated page=true",
        ),
        ("clips", "output", "page", "port", "lists", "licenses", "allow_test_sets", "captions", "num_workers"),
    ),
    Verb(
        "data pack",
        "fourdiffusion.prepare.pack",
        "pack",
        "fourdiffusion.prepare.settings:PackConfig",
        "pack clips of any known layout into WebDataset shards, with cached latents and embeddings on request",
        (
            "fourdiffusion data pack clips=cache/clips manifest=cache/curated/manifest.parquet output=cache/shards",
            "fourdiffusion data pack clips=cache/clips output=cache/shards latents=true model.path=data/models/small",
        ),
        (
            "clips",
            "output",
            "manifest",
            "ids",
            "frames",
            "quality",
            "clips_per_shard",
            "num_readers",
            "latents",
            "model.path",
        ),
    ),
    Verb(
        "train",
        "fourdiffusion.train.loop",
        "train",
        "fourdiffusion.train.settings:TrainConfig",
        "train the multi-view video model, one stage after the other: vae, clip, base (images), motion (videos)",
        (
            "fourdiffusion train stage=motion data.path=cache/clips model.path=data/models/small",
            "fourdiffusion train stage=base data.path=cache/clips output=runs/base",
            "accelerate launch -m fourdiffusion train stage=motion data.path=cache/clips model.path=runs/base/model",
            "torchrun --nproc_per_node 2 -m fourdiffusion train stage=motion data.path=cache/clips",
        ),
        (
            "stage",
            "data.path",
            "output",
            "model.path",
            "max_steps",
            "batch_size",
            "learning_rate",
            "mixed_precision",
            "validation_every",
            "seed",
        ),
        makes_model=True,
    ),
    Verb(
        "convert",
        "fourdiffusion.convert",
        "convert",
        "fourdiffusion.settings:ConvertConfig",
        "make a model folder of released checkpoints, or a checkpoint of trained motion layers",
        (
            "fourdiffusion convert imagedream=sd-v2.1-base-4view-ipmv.pt motion=4dm.ckpt output=models/4dm",
            "fourdiffusion convert imagedream=sd-v2.1-base-4view-ipmv.pt output=models/imagedream dtype=bfloat16",
            "fourdiffusion convert model.path=runs/motion/model output=motion.ckpt",
            "fourdiffusion convert checkpoint=runs/motion/kept/best.safetensors output=motion",
        ),
        ("imagedream", "motion", "checkpoint", "output", "tokenizer", "dtype", "model.path"),
        makes_model=True,
    ),
    Verb(
        "generate",
        "fourdiffusion.generate",
        "generate",
        "fourdiffusion.settings:GenerateConfig",
        "turn a video into videos of the same motion seen from four sides",
        ("fourdiffusion generate video=clip.mp4",),
        (
            "video",
            "output",
            "prompt",
            "num_frames",
            "num_views",
            "elevation_deg",
            "alpha",
            "crop",
            "seed",
            "model.path",
            "model.num_inference_steps",
        ),
    ),
    Verb(
        "fit views",
        "fourdiffusion.fit_views.loop",
        "fit_views",
        "fourdiffusion.fit_views.settings:FitViewsConfig",
        "turn simultaneous videos from known cameras into a 4-D scene; needs no model",
        (
            "fourdiffusion fit views=cache/clips/Fox",
            "fourdiffusion fit views=videos azimuths_deg=[0,60,120,180,240] held_out=[2]",
        ),
        (
            "views",
            "output",
            "azimuths_deg",
            "elevation_deg",
            "fovy_deg",
            "num_frames",
            "held_out",
            "background",
            "max_steps",
            "seed",
            "device",
        ),
    ),
    Verb(
        "fit",
        "fourdiffusion.fit.loop",
        "fit",
        "fourdiffusion.fit.settings:FitConfig",
        "turn a video into a 4-D scene",
        ("fourdiffusion fit video=clip.mp4", "fourdiffusion fit video='frames/*.png'"),
        (
            "video",
            "output",
            "prompt",
            "num_frames",
            "alpha",
            "crop",
            "camera.file",
            "max_steps",
            "seed",
            "sds.source",
            "model.path",
            "device",
        ),
    ),
    Verb(
        "render",
        "fourdiffusion.render",
        "render",
        "fourdiffusion.settings:RenderConfig",
        "draw a fitted scene from any camera at any time",
        ("fourdiffusion render scene=runs/clip",),
        ("scene", "output", "size", "orbit_pictures", "num_azimuths", "elevation_deg", "device"),
    ),
    Verb(
        "export",
        "fourdiffusion.export",
        "export",
        "fourdiffusion.settings:ExportConfig",
        "write a fitted scene as animated GLB, USD, meshes, splats, an HTML page, images or a dataset",
        (
            "fourdiffusion export scene=runs/clip",
            "fourdiffusion export scene=runs/clip format=html output=clip.html",
        ),
        (
            "scene",
            "format",
            "output",
            "fps",
            "animation",
            "resolution",
            "iso_level",
            "texture_size",
            "scale",
            "author",
            "license",
            "device",
        ),
    ),
    Verb(
        "view",
        "fourdiffusion.view",
        "view",
        "fourdiffusion.settings:ViewConfig",
        "turn a scene and its time in the browser, also while it is being fitted",
        ("fourdiffusion view scene=runs/clip", "fourdiffusion view scene=runs/clip html=true output=clip.html"),
        ("scene", "beside", "port", "size", "html", "output", "device"),
    ),
    Verb(
        "app",
        "fourdiffusion.app",
        "app",
        "fourdiffusion.settings:AppConfig",
        "a page in the browser: drop a video, see the matte, fit, turn and download the result",
        ("fourdiffusion app",),
        ("output", "host", "port", "jobs"),
    ),
    Verb(
        "evaluate",
        "fourdiffusion.evaluate",
        "evaluate",
        "fourdiffusion.evaluate.settings:EvaluateConfig",
        "measure runs, or anybody's frames, against ground truth under a named protocol",
        (
            "fourdiffusion evaluate prediction=runs/clip reference=data/sample/truth",
            "fourdiffusion evaluate prediction=c4d/pred reference=c4d/gt protocol=consistent4d weights=cache/weights",
        ),
        ("prediction", "reference", "weights", "output", "device", "compare", "baselines", "page"),
    ),
    Verb(
        "doctor",
        "fourdiffusion.doctor",
        "doctor",
        "fourdiffusion.settings:DoctorConfig",
        "say what is installed, what is missing, and the line that installs it",
        ("fourdiffusion doctor", "fourdiffusion doctor json=true"),
        ("model.path", "json"),
    ),
)

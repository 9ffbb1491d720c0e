"""Nodes of ComfyUI over the Python API of fourdiffusion: load a model, video to views, fit a scene, export a GLB.

ComfyUI's IMAGE is [F, H, W, 3] and its MASK [F, H, W], float in [0, 1]. Imports are inside the functions, so that
ComfyUI starts as fast as without this pack.
"""

import hashlib
from pathlib import Path
from typing import Any

CATEGORY = "fourdiffusion"
MODEL, RUN = "FOURDIFFUSION_MODEL", "FOURDIFFUSION_RUN"  # types of ComfyUI's wires
SEEDS = {"min": 0, "max": 2**31 - 1}


def rgba_of(images: Any, mask: Any | None, invert_mask: bool) -> Any:
    """Return RGBA [F, 4, S, S] of an IMAGE and a MASK (white: object), padded to squares; without a mask opaque."""
    import torch
    import torch.nn.functional as functional

    rgb = images[..., :3].movedim(-1, 1).float().cpu()  # [F, 3, H, W]
    if mask is None:
        alpha = torch.ones_like(rgb[:, :1])
    else:
        mask = mask.float().cpu()
        if mask.shape[-2:] != rgb.shape[-2:]:
            raise ValueError(f"the mask is {list(mask.shape[-2:])} pixels, the images are {list(rgb.shape[-2:])}")
        alpha = (1 - mask if invert_mask else mask).expand(len(rgb), -1, -1)[:, None]
    height, width = rgb.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    pad = (left, side - width - left, top, side - height - top)
    if mask is None:  # nothing says where the object is: the margin takes the color of the edge
        return torch.cat([functional.pad(rgb, pad, mode="replicate"), functional.pad(alpha, pad, value=1.0)], dim=1)
    return torch.cat([functional.pad(rgb, pad), functional.pad(alpha, pad)], dim=1)


class LoadModel:
    """A model folder, as `fourdiffusion convert` writes it; empty: the small model that ships."""

    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "path": ("STRING", {"default": ""}),
                "dtype": (["float32", "bfloat16", "float16"], {"default": "float32"}),
            }
        }

    def load(self, path: str, dtype: str) -> tuple[Any]:
        import torch

        from fourdiffusion import FourDiffusionPipeline
        from fourdiffusion.cli.schema import shipped

        folder = path.strip() or str(shipped("data/models/small"))
        pipeline = FourDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return ({"pipeline": pipeline.to(device), "path": folder, "dtype": dtype},)


class VideoToViews:
    """A video of an object becomes videos of it from evenly spaced sides, the first from the input's."""

    RETURN_TYPES = ("IMAGE", "INT")
    RETURN_NAMES = ("views", "frames_per_view")  # views one after the other: [V * F, S, S, 3]
    FUNCTION = "generate"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (MODEL,),
                "images": ("IMAGE",),
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "num_views": ("INT", {"default": 4, "min": 1, "max": 16}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 999}),  # 0: the model's own
                "seed": ("INT", {"default": 0, **SEEDS}),
                "invert_mask": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def generate(
        self, model: dict[str, Any], images: Any, prompt: str, num_views: int, steps: int, seed: int,
        invert_mask: bool, mask: Any | None = None,
    ) -> tuple[Any, int]:  # fmt: skip
        import torch

        rgba = rgba_of(images, mask, invert_mask)
        on_white = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
        views = model["pipeline"](
            on_white, prompt, num_views=num_views, num_inference_steps=steps or None,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return views.flatten(0, 1).movedim(1, -1).contiguous(), views.shape[1]


class FitScene:
    """A video of an object becomes a 4-D scene: the command `fourdiffusion fit`, with any of its settings."""

    RETURN_TYPES = (RUN,)
    RETURN_NAMES = ("run",)
    FUNCTION = "fit"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (MODEL,),
                "images": ("IMAGE",),
                "prompt": ("STRING", {"default": ""}),
                "output": ("STRING", {"default": "fourdiffusion"}),  # each input gets a folder of its own in it
                "settings": ("STRING", {"default": "crop=object", "multiline": True}),  # KEY=VALUE, one a line
                "seed": ("INT", {"default": 0, **SEEDS}),
                "invert_mask": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def fit(
        self, model: dict[str, Any], images: Any, prompt: str, output: str, settings: str, seed: int,
        invert_mask: bool, mask: Any | None = None,
    ) -> tuple[str]:  # fmt: skip
        from fourdiffusion.cli.quick import composed
        from fourdiffusion.fit.loop import fit
        from fourdiffusion.media.write import write_image

        rgba = rgba_of(images, mask, invert_mask)
        words = [line.strip() for line in settings.splitlines() if line.strip()]
        key = hashlib.sha256(rgba.numpy().tobytes() + repr((prompt, words, seed, model["path"])).encode()).hexdigest()
        run = Path(output) / key[:12]
        frames = run.with_name(f"{run.name}_frames")
        for index, frame in enumerate(rgba):
            write_image(frames / f"{index:04d}.png", frame if mask is not None else frame[:3])
        own = [
            f"video={frames}", f"output={run}", f"prompt={' '.join(prompt.split())}", f"seed={seed}",
            f"num_frames={len(rgba)}", f"model.path={model['path']}", f"model.dtype={model['dtype']}",
        ]  # fmt: skip
        fit(composed([*own, *words]))
        return (str(run),)


class ExportGlb:
    """A fitted scene becomes one animated GLB file."""

    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("glb_path",)
    FUNCTION = "export"
    CATEGORY = CATEGORY
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "run": (RUN,),
                "fps": ("FLOAT", {"default": 8.0, "min": 0.1, "max": 120.0}),
                "resolution": ("INT", {"default": 96, "min": 8, "max": 512}),
            }
        }

    def export(self, run: str, fps: float, resolution: int) -> dict[str, Any]:
        from fourdiffusion.export import export
        from fourdiffusion.settings import ExportConfig

        path = str(Path(run) / "scene.glb")
        export(ExportConfig(run, "glb", path, fps=fps, resolution=resolution))
        return {"ui": {"text": [path]}, "result": (path,)}


NODE_CLASS_MAPPINGS = {
    "FourDiffusionLoadModel": LoadModel,
    "FourDiffusionVideoToViews": VideoToViews,
    "FourDiffusionFit": FitScene,
    "FourDiffusionExportGLB": ExportGlb,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FourDiffusionLoadModel": "Load 4Diffusion model",
    "FourDiffusionVideoToViews": "Video to views (4Diffusion)",
    "FourDiffusionFit": "Fit 4-D scene (4Diffusion)",
    "FourDiffusionExportGLB": "Export animated GLB (4Diffusion)",
}

"""Video in, 4D out: a multi-view video diffusion model and the dynamic scenes distilled from it.

Letters in shapes, everywhere in the package:
    B clips, F frames, V views, C channels, H W pixels, h w latent pixels, R rays, S samples a ray, N points.
Images are float RGB in [0, 1], channel first; files hold RGBA frames. Axis conventions: fourdiffusion.cameras.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourdiffusion.api import evaluate_prediction as evaluate_prediction
    from fourdiffusion.api import fit_scene as fit_scene
    from fourdiffusion.diffusion.generation import generate_views as generate_views
    from fourdiffusion.diffusion.motion import MotionModules as MotionModules
    from fourdiffusion.diffusion.multiview_unet import MultiviewUNet as MultiviewUNet
    from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline as FourDiffusionPipeline
    from fourdiffusion.media.read import load_video as load_video
    from fourdiffusion.scene.scene import Scene as Scene
    from fourdiffusion.scene.scene import load_scene as load_scene
    from fourdiffusion.scene.scene import render_views as render_views

__version__ = "0.1.0"

# The public API. Diffusers looks custom components of a pipeline up as attributes of their package. All load on first
# use, so that `import fourdiffusion` stays free of torch.
_COMPONENTS = {
    "FourDiffusionPipeline": "fourdiffusion.diffusion.pipeline",
    "MultiviewUNet": "fourdiffusion.diffusion.multiview_unet",
    "MotionModules": "fourdiffusion.diffusion.motion",
    # the public functions and types, see docs/api.md
    "Scene": "fourdiffusion.scene.scene",
    "evaluate_prediction": "fourdiffusion.api",
    "fit_scene": "fourdiffusion.api",
    "generate_views": "fourdiffusion.diffusion.generation",
    "load_scene": "fourdiffusion.scene.scene",
    "load_video": "fourdiffusion.media.read",
    "render_views": "fourdiffusion.scene.scene",
}


if not TYPE_CHECKING:  # type checkers see the imports above and reject other names

    def __getattr__(name: str) -> Any:
        if name not in _COMPONENTS:
            raise AttributeError(f"module 'fourdiffusion' has no attribute {name!r}")
        return getattr(importlib.import_module(_COMPONENTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_COMPONENTS})

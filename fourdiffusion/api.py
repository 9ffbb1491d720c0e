"""The verbs as Python functions: settings are keyword arguments over the config files of the command line.

Version 0.x: names and results may change with each minor version, see CHANGELOG.md. All are attributes of the package:
``fourdiffusion.fit_scene``.
"""

import json
from pathlib import Path
from typing import Any

from fourdiffusion.cli.config import from_values
from fourdiffusion.device import resolve_device
from fourdiffusion.evaluate.loop import evaluate
from fourdiffusion.evaluate.settings import EvaluateConfig
from fourdiffusion.fit.loop import fit
from fourdiffusion.fit.settings import FitConfig
from fourdiffusion.scene.scene import Scene, load_scene

__all__ = ["evaluate_prediction", "fit_scene"]


def fit_scene(video: str | Path, output: str | Path, **settings: Any) -> Scene:
    """Fit a scene to a video, as ``fourdiffusion fit`` does, and return it; called again, resume.

    Args:
        video: mp4, gif, webm, a folder or a glob of frames.
        output: the run folder.
        **settings: those of ``fourdiffusion fit --help all``. A section is a dict (``sds={"source": "off"}``), a config
            group takes the name of an option (``experiment="paper"``).

    Returns:
        The scene, on the device of the fit.

    Raises:
        ValueError: for an unknown setting, or a value of the wrong type or outside its range.
        UserError: for errors of the video, the model or the run folder.
    """
    config = from_values("fit", FitConfig, settings | {"video": video, "output": output})
    fit(config)
    return load_scene(Path(config.output), resolve_device(config.device))


def evaluate_prediction(prediction: str | Path, reference: str | Path, **settings: Any) -> dict[str, Any]:
    """Measure a prediction against a reference, as ``fourdiffusion evaluate`` does, and return metrics.json.

    Args:
        prediction: a run folder, a clip folder, or a folder of objects.
        reference: the ground truth: a clip folder, a folder of clips, or a folder of objects.
        **settings: those of ``fourdiffusion evaluate --help all``, as in `fit_scene`; ``protocol="consistent4d"``
            names a protocol.

    Raises:
        ValueError: for an unknown setting, or a value of the wrong type or outside its range.
        UserError: if the two cannot be compared.
    """
    values = settings | {"prediction": prediction, "reference": reference}
    config = from_values("evaluate", EvaluateConfig, values)
    evaluate(config)
    report = json.loads((Path(config.output or config.prediction) / "metrics.json").read_text(encoding="utf-8"))
    assert isinstance(report, dict)
    return report

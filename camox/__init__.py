"""camox: train camouflaged-object detection models with a sparse mixture of experts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camox.experiment import Experiment
    from camox.inference.prediction.predictor import predict
    from camox.inference.scoring.evaluation import evaluate
    from camox.models.camoxpert import CamoXpert
    from camox.training.trainer import Trainer

__version__ = "0.1.0"
__all__ = ["CamoXpert", "Experiment", "Trainer", "evaluate", "predict"]

_HOME = {
    "CamoXpert": "camox.models.camoxpert",
    "Experiment": "camox.experiment",
    "Trainer": "camox.training.trainer",
    "evaluate": "camox.inference.scoring.evaluation",
    "predict": "camox.inference.prediction.predictor",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `import camox` and the checkpoint scan must not pay 2 s for importing torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'camox' has no attribute {name!r}")

"""Suite `predict`: `camox predict` on a folder of photographs of mixed size against the bare network on as many images.

The network is the quickstart's, with all of its experts used alike. It is run on floats that are there already, with
all of torch's threads, one image at a time and eight; `predict` reads JPEGs and writes PNGs of their size. What counts
is the wall time that somebody waits: work that other cores do meanwhile is free.
"""

import tempfile
from pathlib import Path

import cv2
import torch
from torch import Tensor

from benchmarking.inference import TakenInTurn
from benchmarking.pairs import photograph
from benchmarking.report import Report, Rows, Target
from benchmarking.settings import Settings
from benchmarking.timing import Sample, Work, figures, interleaved, significant, spread, wall_ratio
from camox.experiment import Experiment
from camox.inference.loading.loaded_model import LoadedModel
from camox.inference.prediction.predictor import predict
from camox.models.camoxpert import CamoXpert
from camox.models.router import Router
from camox.tracking.console import Console

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "quickstart.toml"
SIZES = ((96, 128), (240, 320), (375, 500), (480, 640), (683, 1024))
"""(H, W) that the images have in turn."""
IMAGES = 100
LEAST_SHARE = 0.85
"""Of the bare network's images per second, in the batches that suit it best, that `predict` is asked to reach."""
ALONE, TOGETHER = "network", "network, batch 8"
_OPTIONS: dict[str, dict[str, object]] = {
    "predict": {},
    "predict --batch-size 1": {"batch_size": 1},
    "predict --overlay --binary --json --bits 16": {"overlay": True, "binary": True, "objects": True, "bits": 16},
}


def measure_prediction(settings: Settings, images: int = IMAGES) -> Report:
    """All in interleaved rounds."""
    model = _quickstart(settings.torch_device)
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder:
        files = _photographs(images, Path(folder))
        works: dict[str, Work] = {
            ALONE: _network(model, images, 1),
            TOGETHER: _network(model, images, 8),
            **{name: _predict(model, files, Path(folder) / "masks", options) for name, options in _OPTIONS.items()},
        }
        samples = interleaved(works, settings.rounds, settings.torch_device)
    rows: Rows = {name: _row(of, images) for name, of in samples.items()}
    # Of images per second, so that more is better, as it is asked for.
    shares = {
        f"{name} / {network}": wall_ratio(samples[network], samples[name])
        for name in _OPTIONS
        for network in (ALONE, TOGETHER)
    }
    share = min(shares[f"predict / {network}"]["median"] for network in (ALONE, TOGETHER))
    target = Target("time of predict / fastest network", significant(1 / LEAST_SHARE), significant(1 / share))
    return Report({"prediction": rows}, {"images per second": shares}, [target], settings.of_targets)


def _quickstart(device: torch.device) -> LoadedModel:
    experiment = Experiment.load(EXPERIMENT)
    network = CamoXpert.from_experiment(experiment).to(device).eval()
    for first, router in enumerate(network.routers.values()):
        assert isinstance(router, Router)
        router.register_forward_hook(TakenInTurn(len(network.expert_names), router.top_k, first, device))
    size = experiment.data.image_size
    return LoadedModel(network, device, size, "raw", "untrained", EXPERIMENT, 0, 0, run=None, experiment=experiment)


def _photographs(images: int, folder: Path) -> list[Path]:
    files = [folder / f"{number}.jpg" for number in range(images)]
    for number, file in enumerate(files):
        cv2.imwrite(str(file), photograph(number, *SIZES[number % len(SIZES)]), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return files


def _network(model: LoadedModel, images: int, batch: int) -> Work:
    floats: Tensor = torch.rand(images, 3, model.image_size, model.image_size, device=model.device)

    @torch.no_grad()
    def forward() -> None:
        for part in floats.split(batch):
            model.model(part)

    return forward


def _predict(model: LoadedModel, files: list[Path], out: Path, options: dict[str, object]) -> Work:
    console = Console(active=False)
    return lambda: predict(model, files, out, overwrite=True, console=console, **options)  # type: ignore[arg-type]


def _row(samples: list[Sample], images: int) -> dict[str, object]:
    return {
        **figures([sample.divided(images) for sample in samples]),
        "images/s": spread([images / sample.wall for sample in samples]),
    }

"""Suite `infer`: masks from images, in units of one matrix product timed in the same rounds; on one core by default.

Bare networks of several modes, in eval mode on floats that are there already, and beside them what stands around the
network when somebody uses it: `infer`, from bytes to probabilities, and `predict`, from files to files.

Untrained routers would send every image to one and the same pair, and the figure would be that pair's. Here routers
decide as ever, and another decision is put in the place of theirs: images take the pairs of experts in turn, so that
all experts are used alike. Work of batch 1 is one image for each pair, work of a larger batch as many batches.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn

from benchmarking.networks import build_network
from benchmarking.pairs import photograph
from benchmarking.report import Report, Rows
from benchmarking.settings import Settings
from benchmarking.timing import UNIT, Sample, Work, figures, interleaved, matrix_product, ratio, spread, wall_ratio
from camox.inference.forward import infer
from camox.inference.loading.loaded_model import LoadedModel
from camox.inference.prediction.predictor import predict
from camox.models.camoxpert import CamoXpert
from camox.models.router import Router, Routing
from camox.tracking.console import Console

COMPILED = "sparse_compiled"
NETWORKS = ("sparse", "dense", "static", "no_experts", "channels_last", COMPILED)
"""The variants whose bare networks see one image at a time."""
BATCHED = ("sparse", "dense", "static")
"""Those that see a whole batch as well."""
INFER, PREDICT = "sparse, infer", "sparse, predict"
PHOTOGRAPH = (683, 1024)
"""(H, W) of the files that `predict` reads."""


class TakenInTurn:
    """The decision that takes the place of a router's: image after image the next pair, another one at each scale."""

    def __init__(self, experts: int, top_k: int, first: int, device: torch.device):
        self.pairs = torch.arange(experts // top_k * top_k, device=device).view(-1, top_k)
        self.next = first

    def __call__(self, router: nn.Module, inputs: Any, routing: Routing) -> Routing:
        """A forward hook: gives `routing` with other experts chosen, and its own weights."""
        numbers = torch.arange(self.next, self.next + len(routing.selected), device=self.pairs.device)
        self.next = (self.next + len(numbers)) % len(self.pairs)
        return routing._replace(selected=self.pairs[numbers % len(self.pairs)])


def measure_inference(settings: Settings, with_compiled: bool = True) -> Report:
    """Everything in interleaved rounds."""
    names = [name for name in NETWORKS if name != COMPILED or with_compiled]
    networks = {name: eval_network(name, settings) for name in names}
    turns = len(networks["sparse"].expert_names) // networks["sparse"].config["top_k"]
    single = [_images(1, settings) for _ in range(turns)]
    batches = [_images(settings.batch, settings) for _ in range(turns)]
    works: dict[str, Work] = {name: _network(networks[name], single, settings) for name in names}
    images = dict.fromkeys(works, turns)
    for name in BATCHED:
        works[_batched(name, settings)] = _network(networks[name], batches, settings)
        images[_batched(name, settings)] = turns * settings.batch
    works[INFER] = _infer(networks["sparse"], single, settings)
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder:
        works[PREDICT] = _predict(networks["sparse"], turns, settings, Path(folder))
        images |= {INFER: turns, PREDICT: turns}
        works[UNIT] = matrix_product(settings.torch_device)
        samples = interleaved(works, settings.rounds, settings.torch_device)
    rows: Rows = {name: _row(samples[name], samples[UNIT], images[name]) for name in images}
    results = {"inference": rows, "unit": {UNIT: figures(samples[UNIT])}}
    return Report(results, _ratios(samples, names, settings), [], settings.of_targets)


def eval_network(name: str, settings: Settings) -> CamoXpert:
    """One of the variants in eval mode; what its routers decide is replaced where they choose among experts."""
    network = build_network(name, settings).eval()
    if network.mode == "sparse":
        for first, router in enumerate(network.routers.values()):
            assert isinstance(router, Router)
            hook = TakenInTurn(len(network.expert_names), router.top_k, first, settings.torch_device)
            router.register_forward_hook(hook)
    return network


def _images(batch: int, settings: Settings) -> Tensor:
    size = (batch, 3, settings.image_size, settings.image_size)
    return torch.randint(0, 256, size, dtype=torch.uint8, device=settings.torch_device)


def _network(network: CamoXpert, batches: Sequence[Tensor], settings: Settings) -> Work:
    floats = [batch.float() / 255 for batch in batches]

    @torch.no_grad()
    def forward() -> None:
        for batch in floats:
            with settings.autocast():
                network(batch)

    return forward


def _infer(network: CamoXpert, batches: Sequence[Tensor], settings: Settings) -> Work:
    """From bytes in host memory to probabilities there."""
    of_host = [batch.cpu() for batch in batches]

    def from_bytes() -> None:
        for batch in of_host:
            infer(network, batch, settings.torch_device, settings.autocast)[1].cpu()

    return from_bytes


def _predict(network: CamoXpert, images: int, settings: Settings, folder: Path) -> Work:
    """From JPEGs to PNGs of their size, in fp32 as `camox predict` does it. A work prints nothing."""
    files = []
    for number in range(images):
        files.append(folder / f"{number}.jpg")
        cv2.imwrite(str(files[-1]), photograph(number, *PHOTOGRAPH), [cv2.IMWRITE_JPEG_QUALITY, 90])
    model = LoadedModel(
        network, settings.torch_device, settings.image_size, "raw", "untrained", folder, 0, 0, run=None, experiment=None
    )
    console = Console(active=False)
    return lambda: predict(model, files, folder / "masks", overwrite=True, console=console)


def _batched(name: str, settings: Settings) -> str:
    return f"{name}, batch {settings.batch}"


def _row(samples: Sequence[Sample], unit: Sequence[Sample], images: int) -> dict[str, Any]:
    return {
        **figures([sample.divided(images) for sample in samples]),
        "units_per_image": ratio(samples, unit, 1 / images),
        "wall_units_per_image": wall_ratio(samples, unit, 1 / images),
        "images/s": spread([images / sample.wall for sample in samples]),
    }


def _ratios(samples: dict[str, list[Sample]], names: Sequence[str], settings: Settings) -> Rows:
    batched = {name: _batched(name, settings) for name in BATCHED}
    return {
        "time": {f"sparse / {name}": ratio(samples["sparse"], samples[name]) for name in names if name != "sparse"},
        "time around the network": {
            f"{name} / sparse": ratio(samples[name], samples["sparse"]) for name in (INFER, PREDICT)
        },
        "time per image": {
            f"{name} / {alone}": ratio(samples[name], samples[alone], 1 / settings.batch)
            for alone, name in batched.items()
        },
    }

"""Pictures that trackers show of a validation: some held-out images, and what routers choose for all of them."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import cv2
import numpy as np
from torch import Tensor

from camox.data.loading import EvalBatch
from camox.experiment import Experiment
from camox.inference.pictures import prediction_panel
from camox.inference.routing_pictures import draw_choices
from camox.measures.evaluator import Record
from camox.measures.routing import RoutedImages
from camox.models.camoxpert import CamoXpert, CamoXpertOutput
from camox.tracking.trackers import Picture

Pictures = dict[str, Picture]
"""By the names that trackers see."""

TILE = 224
"""Longer side of one tile of a panel, in pixels: five of them, and a column of panels fits on a screen."""


def shown_indices(experiment: Experiment, held_out: int, epoch: int) -> tuple[int, ...]:
    """Which of so many held-out images the validation after `epoch` epochs shows: none where nothing is due.

    They are spread evenly over the held-out ones and the same every time. Processes agree, as they must not on what
    only one of them knows: which trackers there are.
    """
    tracking, every = experiment.tracking, experiment.validation.every_epochs
    if not tracking.shows_pictures:
        return ()
    # Validations that fall between two multiples make up for the one that was passed over.
    passed = epoch // tracking.images_every_epochs > max(0, epoch - every) // tracking.images_every_epochs
    if not passed and epoch < experiment.epochs:
        return ()
    spread = np.linspace(0, held_out - 1, min(tracking.images, held_out)).round()
    return tuple(int(index) for index in spread)


@contextmanager
def harmless(troubles: list[str]) -> Iterator[None]:
    """What fails in the block, which makes or shows pictures, becomes an entry of `troubles`: whatever is wrong with a
    picture, the run and its scores are sound."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  OpenCV, drawing libraries and trackers raise unrelated types
        troubles.append(f"{type(error).__name__}: {' '.join(str(error).split())}")


def draw_panels(output: CamoXpertOutput, batch: EvalBatch, shown: Collection[int]) -> list[tuple[int, np.ndarray]]:
    """The images of a batch that are to be shown: each one's index and its panel, uint8 RGB."""
    rows = [row for row, index in enumerate(batch.indices.tolist()) if index in shown]
    return [(int(batch.indices[row]), _panel(output, batch, row)) for row in rows]


def _panel(output: CamoXpertOutput, batch: EvalBatch, row: int) -> np.ndarray:
    truth = batch.truths[row]
    height, width = truth.shape
    shrink = min(1.0, TILE / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    side = -(-batch.images.shape[-1] // 4)  # the boundary's map has the padding's pixels too
    return prediction_panel(
        # The network sees a square; people know the photograph as it was.
        cv2.resize(batch.images[row].permute(1, 2, 0).numpy(), size, interpolation=cv2.INTER_AREA),
        cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST),
        _host(output.logits[row, 0].float().sigmoid()),
        _host(output.uncertainty[row, 0]),
        TILE,
        boundary=_host(output.boundary[row, 0, :side, :side].float().sigmoid()),
    )


def _host(values: Tensor) -> np.ndarray:
    return values.float().numpy(force=True)


def captioned(panels: Iterable[tuple[int, np.ndarray]], records: Iterable[Record]) -> Pictures:
    """Panels under the names that trackers see, in the order of the dataset, with each image's name and score."""
    of_index = {record.index: record for record in records}
    return {
        f"predictions/{number:02d}_{of_index[index].name}": Picture(panel, _caption(of_index[index]))
        for number, (index, panel) in enumerate(sorted(panels, key=lambda entry: entry[0]), start=1)
    }


def _caption(record: Record) -> str:
    scalars = record.result.scalars
    if not record.result.has_object:
        return f"{record.name}: no object, {scalars['false_positive_area']:.1%} called one"
    return f"{record.name}: IoU {scalars['iou']:.3f}"


def with_routing(panels: Pictures, routed: Mapping[int, RoutedImages], network: CamoXpert) -> Pictures:
    """Panels, and beside them what routers choose for each kind of image, where anything is chosen; nothing without
    panels."""
    if not panels or not routed or network.mode == "static":
        return panels
    picture = draw_choices(routed, network.expert_names)
    return panels if picture is None else {**panels, "router/choices": Picture(picture, "Experts by kind of image")}

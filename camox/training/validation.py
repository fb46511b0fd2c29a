"""Held-out scores during training: every rank its own images, none twice, one summary for all."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from camox.data.loading import EvalBatch, EvalSet, eval_loader
from camox.data.transforms import resize_mask
from camox.errors import CamoxError
from camox.inference.scoring.evaluation import evaluate_model
from camox.losses.composite import SegmentationObjective
from camox.measures.evaluator import Evaluator
from camox.measures.routing import RoutedImages
from camox.measures.threshold import CHOSEN_BY, best_threshold
from camox.models.camoxpert import CamoXpert, CamoXpertOutput
from camox.tracking.console import Console
from camox.training.held_out_pictures import Pictures, captioned, draw_panels, harmless
from camox.training.processes import fail_together
from camox.training.routing import routed_images


class Validated(NamedTuple):
    """What a validation tells."""

    summary: dict[str, Any]
    """The evaluator's, with the mean loss per image under "loss", the "threshold" at which mean IoU is greatest, where
    any image has an object, and "selected_on_test" where the samples are test images that checkpoints are selected
    on."""

    routed: dict[int, RoutedImages]
    """Stride → what that scale's router decided for every image; empty where it was not asked for."""

    images: list[dict[str, float]]
    """The measures of every image that takes part in the means, always in the same order."""

    pictures: Pictures
    """Of the images that were to be shown, in the order of the dataset."""

    undrawn: str
    """Why some of them could not be drawn, on any rank; empty where nothing went wrong."""


class Validator:
    """Scores a network on held-out samples.

    Ranks take every n-th sample without padding, so no image counts twice, and results are gathered per image:
    the summary does not depend on the number of ranks or the batch size. `on_test` says that they are test images, and
    `console` shows how far it is.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        dataset: EvalSet,
        objective: SegmentationObjective,
        measures: tuple[str, ...],
        batch_size: int,
        workers: int,
        beat: Callable[[str], None] = lambda activity: None,
        heed: Callable[[], None] = lambda: None,
        on_test: bool = False,
        console: Console | None = None,
    ):
        self.accelerator = accelerator
        self.objective = objective
        self.measures = measures
        # Of these the summary tells no more than was asked for: the threshold is read from the curves, and pictures
        # tell their IoU.
        self._measured = tuple(dict.fromkeys((*measures, CHOSEN_BY, "iou")))
        self.beat = beat
        self.heed = heed
        self.on_test = on_test
        self.console = console or Console(active=False)
        self._images = len(dataset)
        # Batches that every process has: as often can all of them meet.
        self._meetings = -(-(len(dataset) // accelerator.num_processes) // batch_size)
        shard = range(accelerator.process_index, len(dataset), accelerator.num_processes)
        self._loader = eval_loader(dataset, shard, batch_size, workers, accelerator.device.type == "cuda")

    def score(
        self, network: CamoXpert, routing: bool = True, shown: Collection[int] = (), name: str = "raw"
    ) -> "Validated":
        """Scores, if `routing` is asked for what routers decided, and pictures of the images at `shown`; the same on
        every rank. `name` says whose weights these are.

        Raises:
            Interrupted: `heed` did, on all ranks.
            CamoxError: an image cannot be read, or the network gives NaN, on any rank.
        """
        evaluator = Evaluator("camox", self._measured)
        losses: list[tuple[int, float, int]] = []
        routed: list[dict[int, RoutedImages]] = []
        panels: list[tuple[int, np.ndarray]] = []
        troubles: list[str] = []
        failure = None
        meetings = iter(range(self._meetings))
        self.beat("validating")

        def observe(output: CamoXpertOutput, batch: EvalBatch) -> None:
            self.beat("validating")
            losses.append(self._loss(output, batch))
            with harmless(troubles):
                panels.extend(draw_panels(output, batch, shown))
            if routing:
                limit = network.config["logit_limit"]
                routed.append(
                    {
                        stride: routed_images(decided, limit, batch.indices, batch.groups)
                        for stride, decided in output.routing.items()
                    }
                )
            if next(meetings, None) is not None:
                self.heed()

        try:
            with self.console.counting(f"validating {name}", self._images) as done:
                evaluate_model(
                    network,
                    self._loader,
                    evaluator,
                    self.accelerator.device,
                    autocast=self.accelerator.autocast,
                    observe=observe,
                    done=lambda number: done(number * self.accelerator.num_processes),
                )
        except CamoxError as error:
            failure = error
            for _ in meetings:  # the others wait for this process at each
                self.heed()
        fail_together(failure)
        # One gather of plain per-image results; tensors would need equal counts on all ranks.
        everything = gather_object([(evaluator.results, losses, routed, panels, troubles)])
        whole = Evaluator("camox", self.measures)
        for results, *_ in everything:
            whole.extend(results)
        weighted = sorted(entry for _, of_rank, *_ in everything for entry in of_rank)
        images = sum(count for *_, count in weighted)
        summary = {**whole.summary(), "loss": sum(loss * count for _, loss, count in weighted) / images}
        if (threshold := best_threshold(whole.results)) is not None:
            summary["threshold"] = threshold
        if self.on_test:  # among the scores, so that wherever these go the label goes with them
            summary["selected_on_test"] = 1.0
        batches = [of_batch for _, _, of_rank, *_ in everything for of_batch in of_rank]
        strides = network.scales if routing else ()
        routed_by = {stride: RoutedImages.joined([of_batch[stride] for of_batch in batches]) for stride in strides}
        counted = [record.result.scalars for record in whole.results if record.result.counts]
        pictures: Pictures = {}
        troubles = [trouble for *_, of_rank in everything for trouble in of_rank]
        with harmless(troubles):
            pictures = captioned([panel for *_, of_rank, _ in everything for panel in of_rank], whole.results)
        return Validated(summary, routed_by, counted, pictures, troubles[0] if troubles else "")

    def _loss(self, output: CamoXpertOutput, batch: EvalBatch) -> tuple[int, float, int]:
        size = batch.images.shape[-1]
        masks = [resize_mask(truth, size) for truth in batch.truths]
        stacked = torch.from_numpy(np.stack(masks)[:, None]).to(output.logits.device)
        return int(batch.indices[0]), self.objective(output, stacked).total.item(), len(masks)

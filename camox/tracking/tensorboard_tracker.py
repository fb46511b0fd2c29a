"""TensorBoard: the numbers of metrics.jsonl, pictures and alerts, in files of the run's folder."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from camox.errors import ExperimentError
from camox.tracking.events import Severity
from camox.tracking.trackers import Picture, Tracker, checked


class TensorBoardTracker(Tracker):
    """Writes `tensorboard/` in a run's folder; `tensorboard --logdir RUN` shows it.

    A failure while training (a full disk) never stops it: `warn` is called once and nothing more is written.

    Args:
        folder: The run's folder.
        text: Shown as text under its name, such as the experiment.
        resume_step: The step a run goes on from: what was written for later ones is not shown any more.
        warn: Called with a sentence a person must read; Python's warnings by default.

    Raises:
        ExperimentError: TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        text: Mapping[str, str],
        resume_step: int | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ):
        self.folder = Path(folder) / "tensorboard"
        self._warn = warn
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ExperimentError(
                f"[tracking] tensorboard=true, but it cannot be imported ({error}).\n"
                "Install it with `pip install 'camox[tensorboard]'`, or set tracking.tensorboard=false."
            ) from error
        try:
            # A start is marked in any case: readers drop the steps after a mark only where they have seen one before.
            self._writer: Any = SummaryWriter(
                str(self.folder), purge_step=0 if resume_step is None else resume_step + 1
            )
        except OSError as error:
            raise ExperimentError(f"{self.folder}: cannot be written ({error}): choose another --output") from error
        for name, content in text.items():
            self._writer.add_text(name, content, resume_step or 0)

    @property
    def takes_pictures(self) -> bool:
        """Whether anything is written."""
        return self._writer is not None

    def log(self, values: Mapping[str, Any], *, step: int, epoch: int, phase: str) -> None:
        """Write the values of a step."""
        if self._writer is None:
            return
        with self._no_harm():
            for name, value in {"epoch": epoch, **checked(values)}.items():
                if value is not None:  # a mean over no image, which no curve can show
                    # In double precision, which the old way of writing scalars does not have.
                    self._writer.add_scalar(name, value, step, new_style=True, double_precision=True)

    def show(self, pictures: Mapping[str, Picture], *, step: int, epoch: int, phase: str) -> None:
        """Write pictures, and their captions as text."""
        if self._writer is None:
            return
        with self._no_harm():
            for name, one in pictures.items():
                self._writer.add_image(name, one.pixels, step, dataformats="HWC")
                self._writer.add_text(name, one.caption, step)

    def alert(self, kind: str, message: str, severity: Severity, *, step: int) -> None:
        """Write an event as text."""
        if self._writer is None:
            return
        with self._no_harm():
            self._writer.add_text(f"events/{kind}", f"{severity}: {message}", step)

    def finish(self) -> None:
        """Write out what is left; a second call does nothing."""
        if self._writer is None:
            return
        with self._no_harm():
            self._writer.close()
        self._writer = None

    @contextmanager
    def _no_harm(self) -> Iterator[None]:
        """What fails in the block ends the writing, not the training."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  a full disk, and whatever its writing thread died of
            self._writer = None
            self._warn(
                f"{self.folder}: cannot be written any more ({error}); training goes on without TensorBoard. Every "
                "number is still written to metrics.jsonl"
            )

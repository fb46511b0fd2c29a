"""Watchers of a run: each sees one thing, says when it is wrong, and proposes what to do. None touches the run.

Guards read what the host knows already: reports of steps, which arrive in bulk, and validations. All of it is the same
on every rank, so what they find is too.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from camox.checkpoints.store import is_better
from camox.errors import DataError

RISEN = 1.1
"""Factor of the loss at the best validation from which on it counts as risen: where a learned measure is halved, the
loss is far above it."""
Proposal = Literal["note", "lower_rate", "roll_back", "calm_routers"]


class StepReport(NamedTuple):
    """What is known of one attempted optimizer step, the same on all ranks."""

    step: int
    """Number of the step, counted from 1 over the whole run."""
    taken: bool
    loss: float
    norm: float
    """Of all gradients, before clipping."""
    finite: bool
    """Whether loss and norm are."""
    spike: bool
    """Whether it was skipped for being far above the last ones."""
    only_routers: bool
    """Whether of all gradients only the routers' were not finite."""
    terms: tuple[str, ...]
    """Names of the terms of the loss that were not finite on some rank."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    kind: str
    """Short name, as in events.jsonl."""
    message: str
    proposal: Proposal
    severity: Literal["info", "warning"] = "warning"
    details: Mapping[str, Any] = field(default_factory=dict)
    sound_until: int = 0
    """The last step at which nothing was wrong yet; a rollback goes no later."""


class BadSamples:
    """Samples that are not fit to train on: each is named once, and too many in one epoch end the run.

    Args:
        most: share of an epoch's samples that may be bad.
    """

    def __init__(self, most: float):
        self.most = most
        self._named: set[str] = set()

    def after_epoch(self, problems: Sequence[str], samples: int) -> list[Finding]:
        """What the messages of an epoch's bad samples, of all ranks, amount to; `samples` is the epoch's number.

        Raises:
            DataError: they are more than may be.
        """
        problems = list(dict.fromkeys(problems))  # what was rolled back met them twice
        if len(problems) > self.most * samples:
            more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise DataError(
                f"{problems[0]}{more}: {len(problems)} of {samples} samples of an epoch are bad, more than "
                f"stability.max_bad_samples = {self.most:g}; mend them (camox data check finds them all), then go on "
                "with --resume auto"
            )
        new = [problem for problem in problems if problem not in self._named]
        self._named.update(new)
        return [Finding("bad_sample", f"{problem}; training goes on without it", "note") for problem in new]

    def state_dict(self) -> dict[str, Any]:
        return {"named": sorted(self._named)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._named.update(state.get("named", ()))  # those named before a rollback stay named


class NonFiniteSteps:
    """Steps whose loss or gradient is not finite. They are skipped already; many in a row are no accident.

    Under fp16 single ones are routine: the loss scale grows until it finds its limit.

    Args:
        most: skipped steps in a row that are still accepted.
    """

    def __init__(self, most: int):
        self.most = most
        self._in_a_row = 0
        self._total = 0
        self._routers_in_a_row = 0

    def after_step(self, report: StepReport, scale: float | None) -> Finding | None:
        if report.finite:
            self._in_a_row = self._routers_in_a_row = 0
            return None
        self._in_a_row += 1
        self._total += 1
        self._routers_in_a_row = self._routers_in_a_row + 1 if report.only_routers else 0
        terms = [name for name in report.terms if name != "loss"]  # the sum of all
        what = f"{', '.join(terms)} of the loss was" if terms else "the gradient was"
        if report.terms and not terms:
            what = "the loss was"
        details = {"in_a_row": self._in_a_row, "total": self._total, "scale": scale, "terms": terms}
        sound = report.step - self._in_a_row
        if self._in_a_row > self.most:
            message = f"{self._in_a_row} steps in a row were skipped, the last at step {report.step}: {what} not finite"
            self._in_a_row = 0
            return Finding("skipped_steps", message, "roll_back", details=details, sound_until=sound)
        if self._routers_in_a_row == 3:
            message = f"only the routers' gradients were not finite, for 3 steps up to step {report.step}"
            return Finding("router_gradients", message, "calm_routers", details=details, sound_until=sound)
        if self._in_a_row & (self._in_a_row - 1):  # told at 1, 2, 4, 8 …
            return None
        routine = scale is not None and self._in_a_row == 1 and not report.terms
        message = f"step {report.step} was skipped: {what} not finite ({self._total} so far)"
        severity: Literal["info", "warning"] = "info" if routine else "warning"
        return Finding("skipped_step", message, "note", severity, details, sound)

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self._in_a_row, "total": self._total, "routers_in_a_row": self._routers_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A run that is rolled back has still skipped what it skipped.
        self._in_a_row, self._total = int(state["in_a_row"]), max(self._total, int(state["total"]))
        self._routers_in_a_row = int(state.get("routers_in_a_row", 0))

    @property
    def total(self) -> int:
        """Steps skipped in all."""
        return self._total


class LossScale:
    """A scale that falls and falls: one bad batch in every few steps drives it to nothing, 160 in a row at once.

    Args:
        most: share of the last 200 steps that may be skipped, once 100 steps were taken.
        lowest: the scale below which no gradient is finite any more.
    """

    def __init__(self, most: float, lowest: float):
        self.most = most
        self.lowest = lowest
        self._last: deque[bool] = deque(maxlen=200)
        self._taken = 0

    def after_step(self, report: StepReport, scale: float | None) -> Finding | None:
        if scale is None:
            return None
        self._taken += report.taken
        self._last.append(report.finite)
        skipped = self._last.count(False)
        details = {"scale": scale, "skipped": skipped, "of": len(self._last)}
        if scale < self.lowest:
            message = f"the fp16 loss scale fell to {scale:g}, below precision.min_scale = {self.lowest:g}"
        elif self._taken >= 100 and skipped > self.most * 200:
            message = f"{skipped} of the last {len(self._last)} steps overflowed under fp16, at loss scale {scale:g}"
        else:
            return None
        sound = report.step - len(self._last)
        self._last.clear()
        return Finding("loss_scale", message, "roll_back", details=details, sound_until=max(0, sound))

    def state_dict(self) -> dict[str, Any]:
        return {"last": list(self._last), "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last = deque(state["last"], maxlen=200)
        self._taken = state["taken"]


class Spikes:
    """Steps that were skipped because loss or norm were far above the last ones; where they go on, training is lost.

    Args:
        most: such steps in a row before the run is rolled back.
    """

    def __init__(self, most: int = 5):
        self.most = most
        self._in_a_row = 0

    def after_step(self, report: StepReport, scale: float | None) -> Finding | None:
        if not report.spike:
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        where = f"at step {report.step}: loss {report.loss:.3g}, gradient norm {report.norm:.3g}"
        details = {"in_a_row": self._in_a_row, "loss": report.loss, "norm": report.norm}
        # The first far ones were taken: with patience 3, two before the first that was skipped.
        sound = max(0, report.step - self._in_a_row - 10)
        if self._in_a_row >= self.most:
            self._in_a_row = 0
            message = f"loss or gradients stay far above what they were, {where}"
            return Finding("spike", message, "roll_back", details=details, sound_until=sound)
        if self._in_a_row > 1:
            return None
        return Finding("spike", f"skipped, far above the last steps, {where}", "note", details=details)

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._in_a_row = state["in_a_row"]


def _finite(value: float) -> float | None:
    """What JSON can hold."""
    return value if math.isfinite(value) else None


def _risen(before: float | None, now: float | None, factor: float = 1.0) -> bool:
    """Whether a loss has risen to `factor` times what it was, or may have: None is one that is not finite."""
    return before is None or now is None or now >= factor * before


class _Scored(NamedTuple):
    """A validation."""

    step: int
    loss: float | None
    """None where it is not finite."""
    training_loss: float | None
    """None where it is not finite, or there was no step."""
    images: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.images))

    def costs_more(self, earlier: "_Scored", factor: float = 1.0) -> bool:
        """Whether the loss is at least `factor` times the earlier one, and that of training no lower than it was.

        A loss that is not finite, then or now, cannot say that all is well: it does not keep a guard from firing.
        """
        return _risen(earlier.loss, self.loss, factor) and _risen(earlier.training_loss, self.training_loss)

    def losses(self, earlier: "_Scored") -> dict[str, float | None]:
        return {
            "loss": self.loss,
            "loss_before": earlier.loss,
            "training_loss": self.training_loss,
            "training_loss_before": earlier.training_loss,
        }


class Scores:
    """The monitored measure of the raw weights, validation by validation: its decline, and its explosion.

    A decline is three falls in a row that come to more than 0.01 and to more than two standard errors of the paired
    difference over images: three falls alone happen by chance once in 24 on a plateau. The second validation alone
    may already fall, by more than 0.05. An explosion is a fall below half of the best (of a measure that is better the
    lower it is: to more than twice the best).

    Neither counts unless the loss of the same images has risen, and that of training too. A model that has hardly begun
    to learn scores 0.2 and 0.07 by turns while its loss falls; and the running statistics of norms lag behind weights
    that change fast, so that for one validation all is bad while training goes well.

    Args:
        monitor: name of the measure.
        decline, explosion: whether to look for each.
    """

    def __init__(self, monitor: str, decline: bool, explosion: bool):
        self.monitor = monitor
        self.decline = decline
        self.explosion = explosion
        self._last: list[_Scored] = []
        self._best: _Scored | None = None
        self._sound = 0
        """Step of the last validation that was near the best: on a plateau the best itself may be long gone."""
        self._seen = 0
        self._since_lowered = 10**6

    def after_validation(self, step: int, images: Sequence[float], loss: float, training_loss: float) -> Finding | None:
        """What a validation after step `step` says.

        Args:
            images: the measure of every image, always in the same order; images without it are left out.
            loss: mean over the same images.
            training_loss: mean over the steps since the last validation.
        """
        if not images:
            return None
        self._seen += 1
        self._since_lowered += 1
        now = _Scored(step, _finite(loss), _finite(training_loss), list(images))
        self._last = [*self._last, now][-4:]
        finding = self._exploded(now) or self._declined()
        if self._best is None or is_better(now.mean, self._best.mean, self.monitor):
            self._best = now
        mean, best = now.mean, self._best.mean
        if mean <= 1.25 * best if is_better(0.0, 1.0, self.monitor) else mean >= 0.9 * best:
            self._sound = step
        return finding

    def _exploded(self, now: "_Scored") -> Finding | None:
        if not self.explosion or self._best is None:
            return None
        mean, best = now.mean, self._best.mean
        lower = is_better(0.0, 1.0, self.monitor)
        worse = mean > 2 * best + 0.02 if lower else best >= 0.1 and mean < best / 2
        if not (math.isnan(mean) or worse):
            return None
        message = f"{self.monitor} is {mean:.3f} after a best of {best:.3f} at step {self._best.step}"
        details = {"score": mean, "best": best} | now.losses(self._best)
        if worse and not now.costs_more(self._best, RISEN):
            return Finding("dip", f"{message}, but the losses are as before", "note", "info", details)
        return Finding("explosion", message, "roll_back", details=details, sound_until=self._sound)

    def _declined(self) -> Finding | None:
        if not self.decline:
            return None
        falls = [
            self._fall(earlier.images, later.images) for earlier, later in zip(self._last, self._last[1:], strict=False)
        ]
        second = self._seen == 2 and falls and falls[-1][0] > max(0.05, 2 * falls[-1][1])
        third = len(falls) == 3 and all(fall > 0 for fall, _ in falls)
        if third:
            whole, error = self._fall(self._last[0].images, self._last[-1].images)
            third = whole > max(0.01, 2 * error)
        first, last = self._last[0], self._last[-1]
        if not (second or third) or not last.costs_more(first):
            return None
        before, now = first.mean, last.mean
        over = "1 validation" if second else f"{len(falls)} validations"
        message = f"{self.monitor} fell from {before:.3f} to {now:.3f} in {over}, and the losses rose"
        details = {"from": before, "to": now, "validations": len(falls)} | last.losses(first)
        sound = first.step
        self._last = self._last[-1:]
        if self._since_lowered <= 10:
            return Finding("decline", f"{message}, though the rate was lowered", "roll_back", "warning", details, sound)
        self._since_lowered = 0
        return Finding("decline", message, "lower_rate", "warning", details, sound)

    def _fall(self, earlier: Sequence[float], later: Sequence[float]) -> tuple[float, float]:
        """How far the mean fell, and the standard error of that; both of paired images."""
        difference = np.subtract(earlier, later)
        if is_better(0.0, 1.0, self.monitor):
            difference = -difference
        error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
        return float(difference.mean()), float(error)

    def state_dict(self) -> dict[str, Any]:
        return {
            "last": [list(scored) for scored in self._last],
            "best": None if self._best is None else list(self._best),
            "sound": self._sound,
            "seen": self._seen,
            "since_lowered": self._since_lowered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last = [_Scored(*scored) for scored in state["last"]]
        self._best = None if state["best"] is None else _Scored(*state["best"])
        self._sound = state.get("sound", 0 if self._best is None else self._best.step)
        self._seen, self._since_lowered = state["seen"], state["since_lowered"]

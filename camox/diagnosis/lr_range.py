"""A learning-rate range test: the rate grows with every step until the loss explodes (Smith, 2017)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from camox.diagnosis.finding import Finding, Problem
from camox.diagnosis.subject import Subject

STEPS = 100
LOWEST, HIGHEST = 1e-7, 1.0
_SMOOTHING = 2.5
"""Standard deviation, in steps, of the window that losses are averaged with: batches differ."""
_SAFE = 3.0
"""How far below the rate that diverges a peak should stay: later in the run the loss is steeper."""


@dataclass(frozen=True)
class RangeTest:
    """The rates that were tried, the loss that each step met, and what follows from them."""

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    steepest: float
    """Rate at which the loss fell fastest."""
    diverges: float | None
    """Lowest rate from which on the loss lost half of what had been gained; None where it never did."""

    @property
    def suggested(self) -> float:
        """Peak rate to try: that of the steepest descent, but at most a third of the rate that diverges."""
        return self.steepest if self.diverges is None else min(self.steepest, self.diverges / _SAFE)


def run_range_test(subject: Subject, done: Callable[[], object] = lambda: None) -> RangeTest | None:
    """Trains a copy of the network on real batches, each step at a higher rate, and throws it away.

    Ends early once a loss is not finite or four times the best. The losses are those of batches before their step, so
    each is the effect of the rates before it.
    None where it ends at once. `done` is called after each step.
    """
    trial, batches = subject.trial(), subject.batches(subject.images)
    tried: list[float] = []
    losses: list[float] = []
    for rate in np.geomspace(LOWEST, HIGHEST, STEPS):
        loss = trial.take_step(next(batches), float(rate))
        done()
        if not math.isfinite(loss) or (losses and loss > 4 * min(losses)):
            break
        tried.append(float(rate))
        losses.append(loss)
    if len(tried) < 10:
        return None
    return judge(np.array(tried), np.array(losses), exploded=len(tried) < STEPS)


def judge(rates: np.ndarray, losses: np.ndarray, exploded: bool) -> RangeTest:
    """Finds the steepest descent and where the loss diverges, for n ≥ 2 increasing rates and their losses `[n]`.

    Args:
        exploded: the step after the last one given had a loss beyond measure.
    """
    smoothed = _smooth(losses)
    best = int(smoothed.argmin())
    slope = np.gradient(smoothed, np.log10(rates))
    steepest = int(slope[: best + 1].argmin())
    # Half of the gain lost; where hardly anything was gained, a twentieth of the loss.
    gain = max(smoothed[: best + 1].max() - smoothed[best], 0.1 * smoothed[best])
    lost = np.flatnonzero(smoothed[best:] > smoothed[best] + gain / 2)
    diverges = float(rates[best + lost[0]]) if len(lost) else float(rates[-1]) if exploded else None
    return RangeTest(rates, losses, smoothed, float(rates[steepest]), diverges)


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Gaussian average over neighbours on both sides: a running average would lag, and name too high a rate."""
    offsets = np.arange(len(losses))[:, None] - np.arange(len(losses))
    weights = np.exp(-0.5 * (offsets / _SMOOTHING) ** 2)
    return (weights @ losses) / weights.sum(axis=1)


def check_range(subject: Subject, test: RangeTest | None, plot: Path | None) -> Finding:
    """The experiment's peak rates against what the test found."""
    if test is None:
        remedy = "at such rates this is not their doing: look at the other checks first"
        problem = Problem("fail", f"the loss explodes within ten steps at rates from {LOWEST:g} on", remedy)
        return Finding("lr range", "no rate to suggest", (problem,))
    problems = []
    peaks = {phase.name: phase.lr for phase in subject.experiment.phases_resolved()}
    for name, rate in peaks.items():
        if test.diverges is not None and rate >= test.diverges:
            message = f"phase {name}: lr {rate:.2g} is no less than {test.diverges:.1g}, from which on the loss rises"
            problems.append(Problem("warn", message, f"try {test.suggested:.2g}"))
        elif test.diverges is not None and rate > test.diverges / _SAFE:
            message = (
                f"phase {name}: lr {rate:.2g} is more than a third of {test.diverges:.1g}, from which on the loss "
                "rises; later in the run it is steeper"
            )
            problems.append(Problem("warn", message, f"try {test.suggested:.2g}"))
    until = "does not diverge" if test.diverges is None else f"diverges from {test.diverges:.1g} on"
    summary = f"steepest at {test.steepest:.2g}, {until}; suggested peak {test.suggested:.2g}, the experiment has "
    summary += ", ".join(f"{rate:.2g}" for rate in dict.fromkeys(peaks.values()))
    return Finding(
        "lr range",
        summary,
        tuple(problems),
        (f"drawn in {plot}",) if plot else (),
        {
            "rates": test.rates.tolist(),
            "losses": test.losses.tolist(),
            "steepest": test.steepest,
            "diverges": test.diverges,
            "suggested": test.suggested,
        },
    )

"""Twenty steps on one batch: what cannot learn that by heart will not learn anything else."""

import math
from collections.abc import Callable
from statistics import mean

from camox.diagnosis.finding import Finding, Problem
from camox.diagnosis.settings import REFERENCE_LR
from camox.diagnosis.subject import Subject
from camox.training.optimization import group_of

STEPS = 20

LARGEST_RATIO = 0.9
"""Mean of the last three losses over the first, where learning nothing leaves 1. With eight seeds each it is 0.31 to
0.48 for the shipped quickstart, 0.45 to 0.54 for the 90 photographs of open_pairs, and 0.67 to 0.82 for four images of
32² in a network of width 8, the smallest that the tests train."""


def check_overfit(subject: Subject, done: Callable[[], object] = lambda: None) -> Finding:
    """The run's own step, repeated on one batch; afterwards every trained group of parameters must have moved.

    At the experiment's rate, but no less than the main recipe's: that a rate is low is for the check of the settings to
    say. The network and all it has learned are thrown away. `done` is called after each step.
    """
    trial, batch = subject.trial(), subject.batch()
    rate = max(subject.phase.lr, REFERENCE_LR)
    before = {name: p.detach().clone() for name, p in trial.network.named_parameters() if p.requires_grad}
    losses = []
    for _ in range(STEPS):
        losses.append(trial.take_step(batch, rate))
        done()
    moved: dict[str, float] = {}
    for name, parameter in trial.network.named_parameters():
        if name in before:
            change = float((parameter.detach() - before[name]).abs().max())
            moved[group_of(name)] = max(change, moved.get(group_of(name), 0.0))
    skipped = trial.skipped
    ratio = mean(losses[-3:]) / losses[0]
    problems = [*_not_learned(losses, ratio, rate, skipped)]
    still = [group for group, change in moved.items() if not change > 0]
    if still:
        remedy = "look at the check of gradients, and at optimizer.*_lr_mult"
        problems.append(Problem("fail", f"the weights of {', '.join(still)} have not changed", remedy))
    return Finding(
        "overfit",
        f"{STEPS} steps on {len(batch.images)} images at lr {rate:.2g}: loss {losses[0]:.3g} → {losses[-1]:.3g}",
        tuple(problems),
        (f"{skipped} steps skipped: their gradients were not finite",) if skipped else (),
        {"losses": losses, "ratio": ratio, "largest_change": moved, "skipped": skipped},
    )


def _not_learned(losses: list[float], ratio: float, rate: float, skipped: int) -> list[Problem]:
    if not all(math.isfinite(loss) for loss in losses) or ratio > 1:
        remedy = f"lower optimizer.lr or the phase's (here {rate:.2g}); look for the highest that works with --lr-range"
        return [Problem("fail", f"the loss of one repeated batch rises: {losses[0]:.3g} → {losses[-1]:.3g}", remedy)]
    if ratio > LARGEST_RATIO:
        message = f"the loss of one repeated batch hardly falls: to {ratio:.0%} of its start"
        remedy = "look at this batch's masks, at the check of gradients, and at optimizer.clip"
        if skipped > STEPS // 2:
            remedy = "most steps were skipped for gradients that are not finite: use precision.dtype=bf16 or fp32"
        return [Problem("fail", message, remedy)]
    return []

"""What is done about what guards find: acts on a ladder, with a budget. Decides; the trainer applies."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from camox.stability.guards import Finding
from camox.tracking.console import counted

NOISE_STEPS = 500
Rung = Literal["lower_rate", "longer_warmup", "no_deep_supervision"]


@dataclass(frozen=True)
class Adjustments:
    """Factors on what the experiment asks for, as recovery has changed them; all 1 and nothing else in a sound run."""

    rate: float = 1.0
    """On the learning rate."""
    router_rate: float = 1.0
    """On the routers', beside it."""
    router_clip: float = 1.0
    balance_coefficient: float = 1.0
    balance_warmup: float = 1.0
    bias_rate: float = 1.0
    noise_from: int | None = None
    """Step from which on routers choose with noise again, for 500 steps."""
    warmup_from: int = 0
    """Step at which the last rollback let the rate rise anew."""
    warmup_steps: int = 0
    """Over how many steps; 0 for no such rise."""
    deep_supervision: bool = True

    def rate_at(self, step: int) -> float:
        """The factor on the learning rate of step `step`, counted from 1."""
        if not self.warmup_steps:
            return self.rate
        return self.rate * min(1.0, max(0, step - self.warmup_from) / self.warmup_steps)

    def noise_at(self, step: int) -> float:
        """Least share of the routers' noise at a step, in [0, 1]."""
        return 0.0 if self.noise_from is None else max(0.0, 1 - max(0, step - self.noise_from) / NOISE_STEPS)


class Act(NamedTuple):
    """What to do."""

    kind: Literal["note", "adjust", "roll_back", "stop"]
    message: str
    """What is done, for people; empty for "note"."""


_COLLAPSE: tuple[tuple[str, dict[str, float]], ...] = (
    ("the balance bias moves four times as fast", {"bias_rate": 4.0}),
    (f"the routers choose with noise again for {NOISE_STEPS} steps", {}),
    ("the balance coefficient × 10", {"balance_coefficient": 10.0}),
)
_UNIFORM: tuple[tuple[str, dict[str, float]], ...] = (
    ("the routers' learning rate × 4", {"router_rate": 4.0}),
    ("the balance coefficient ÷ 10", {"balance_coefficient": 0.1}),
    ("the routers' learning rate × 4 once more", {"router_rate": 4.0}),
)
_ROUTER_GRADIENTS: tuple[tuple[str, dict[str, float]], ...] = (
    ("the balance coefficient ÷ 10", {"balance_coefficient": 0.1}),
    ("the balance warm-up × 2", {"balance_warmup": 2.0}),
    ("the routers' clipping limit ÷ 2", {"router_clip": 0.5}),
    ("the routers' learning rate × 0.1", {"router_rate": 0.1}),
)


MOST_LEFT_OUT = 0.2
"""Share of the samples that may be left out. Where more were in steps that were not finite, none is at fault alone."""


_REMEDIES = {
    "loss_scale": "precision.dtype = bf16 or fp32 has no loss scale",
    "skipped_steps": "the events of kind replay name the operation and the samples",
    "router_gradients": "the events of kind replay name the operation and the samples",
    "spike": "a lower optimizer.lr, or a longer schedule.warmup_epochs",
    "explosion": "a lower optimizer.lr, or fewer epochs at it",
    "decline": "a lower optimizer.lr, or fewer epochs at it",
    "validation": "a lower optimizer.lr, or precision.dtype = bf16 or fp32",
    "checkpoint": "a lower optimizer.lr, or precision.dtype = bf16 or fp32",
}


def remedy(kind: str) -> str:
    """What to try where recovery could not help, by the kind of the finding; empty where the finding itself says it."""
    if kind not in _REMEDIES:
        return ""
    return f"; to try, in a new run that experiment.init_from may start from a checkpoint: {_REMEDIES[kind]}"


class RollBack(Exception):  # noqa: N818  a request, not an error
    """A guard asks for an earlier state."""

    def __init__(self, finding: Finding):
        super().__init__(finding.message)
        self.finding = finding


class Recovery:
    """Turns findings into acts, remembers them, and says when the budget is spent.

    A rollback goes to the last verified checkpoint from before the trouble, with another order of the data, without
    the samples of the steps that were not finite, at a lower rate that rises anew. The ladder's rungs say what each
    rollback does beside that; the last one repeats.

    Args:
        max_rollbacks: the budget.
        rate_factor: on the learning rate, with each rollback.
        warmup_steps: over how many steps the rate rises after one.
        ladder: a rung for each rollback, the last one for all that follow; may be empty.
        balance: the kind of balance that routers are trained with: what it does not have cannot be turned.
    """

    def __init__(
        self, max_rollbacks: int, rate_factor: float, warmup_steps: int, ladder: tuple[Rung, ...], balance: str = "band"
    ):
        self.max_rollbacks = max_rollbacks
        self.rate_factor = rate_factor
        self.warmup_steps = warmup_steps
        self.ladder = ladder
        without = {"band": set[str](), "none": {"bias_rate", "balance_coefficient", "balance_warmup"}}
        self._missing = without.get(balance, {"bias_rate"})
        self.adjustments = Adjustments()
        self.rollbacks = 0
        self.acts = 0
        """All acts so far: of two states of one run, the one with more is the later."""
        self.left_out: frozenset[int] = frozenset()
        """Indices of samples that are trained on no more."""
        self._collapse_rungs = 0
        self._uniform_rungs = 0
        self._gradient_rungs = 0

    def decide(self, finding: Finding, step: int) -> Act:
        """What a finding at step `step` leads to. A rollback changes `adjustments` in `roll_back`, all else here."""
        match finding.proposal:
            case "lower_rate":
                self.acts += 1
                self.adjustments = replace(self.adjustments, rate=0.8 * self.adjustments.rate)
                return Act("adjust", f"the learning rate × 0.8, now {self.adjustments.rate:.3g} of the schedule's")
            case "calm_routers":
                if finding.kind == "router_collapse" and finding.details.get("uniform"):
                    rungs, number = _UNIFORM, self._uniform_rungs
                    self._uniform_rungs += 1
                elif finding.kind == "router_collapse":
                    rungs, number = _COLLAPSE, self._collapse_rungs
                    self._collapse_rungs += 1
                else:
                    rungs, number = _ROUTER_GRADIENTS, self._gradient_rungs
                    self._gradient_rungs += 1
                rungs = tuple(rung for rung in rungs if not self._missing.intersection(rung[1]))
                if number >= len(rungs):
                    return Act("note", "")
                self.acts += 1
                text, factors = rungs[number]
                changed: dict[str, Any] = {name: getattr(self.adjustments, name) * f for name, f in factors.items()}
                self.adjustments = replace(self.adjustments, **(changed or {"noise_from": step}))
                return Act("adjust", text)
            case "roll_back":
                if self.rollbacks >= self.max_rollbacks:
                    used = f"all {self.max_rollbacks} rollbacks of stability.policy are used up"
                    none = "stability.policy.max_rollbacks = 0 allows no rollback"
                    return Act("stop", used if self.max_rollbacks else none)
                return Act("roll_back", "")
        return Act("note", "")

    def roll_back(self, step: int, suspects: Collection[int], samples: int) -> str:
        """Takes a rollback at attempted step `step` into the books; gives what it changes, for people.

        Args:
            suspects: indices of the samples of the steps that were not finite.
            samples: how many there are to train on in all.
        """
        self.rollbacks += 1
        self.acts += 1
        left_out = self.left_out | frozenset(suspects)
        number = len(left_out) - len(self.left_out) if len(left_out) <= MOST_LEFT_OUT * samples else 0
        self.left_out = left_out if number else self.left_out
        rung = self.ladder[min(self.rollbacks, len(self.ladder)) - 1] if self.ladder else "lower_rate"
        now = self.adjustments
        warmup = self.warmup_steps * (4 if rung == "longer_warmup" else 1)
        if rung == "no_deep_supervision":
            now = replace(now, deep_supervision=False)
        self.adjustments = replace(now, rate=self.rate_factor * now.rate, warmup_from=step, warmup_steps=warmup)
        changes = [f"the learning rate × {self.rate_factor:g}, rising over {warmup} steps", "another order of the data"]
        if number:
            changes.append(f"{counted(number, 'suspect sample')} left out")
        if rung == "no_deep_supervision":
            changes.append("deep supervision off")
        return ", ".join(changes)

    def recall(self, books: dict[str, Any], step: int) -> None:
        """Takes over the books of a run that was killed and goes on after step `step`: what began at a later one, whose
        number comes a second time, begins there."""
        self.load_state_dict(books)
        now = self.adjustments
        noise = None if now.noise_from is None else min(now.noise_from, step)
        self.adjustments = replace(now, warmup_from=min(now.warmup_from, step), noise_from=noise)

    def state_dict(self) -> dict[str, Any]:
        return {
            "adjustments": asdict(self.adjustments),
            "rollbacks": self.rollbacks,
            "acts": self.acts,
            "left_out": sorted(self.left_out),
            "collapse_rungs": self._collapse_rungs,
            "uniform_rungs": self._uniform_rungs,
            "gradient_rungs": self._gradient_rungs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adjustments = Adjustments(**state["adjustments"])
        self.rollbacks, self.acts = state["rollbacks"], state["acts"]
        self.left_out = frozenset(state["left_out"])
        self._collapse_rungs, self._gradient_rungs = state["collapse_rungs"], state["gradient_rungs"]
        self._uniform_rungs = state.get("uniform_rungs", 0)

"""Run by `accelerate launch` in two processes: trains as camox/train.py does, with experts idle on each of them.

Arguments: "touched" or "untouched", whether idle experts stay connected to the loss as they are in camox, a folder,
then those of camox/train.py. Each process adds to `rank_N.jsonl` in the folder, for every step, a sum over the weights,
the number of idle experts and of frozen stages.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from camox.models.moe import MixtureOfExperts
from camox.train import main
from camox.training.step import TrainingStep


def part_idle_experts() -> None:
    """As in a mixture that only calls the experts it needs."""
    MixtureOfExperts._touch_idle = lambda mixture, counts: mixture.scale.new_zeros(())  # type: ignore[method-assign]


def report_steps(folder: Path) -> None:
    take, losses = TrainingStep.__call__, TrainingStep.losses
    file = folder / f"rank_{os.environ['RANK']}.jsonl"
    idle: list[int] = []

    def note_choices(step: TrainingStep, output: Any, *arguments: Any) -> dict[str, torch.Tensor]:
        chosen = [len(routing.selected.unique()) for routing in output.routing.values()]
        idle.append(sum(output.routing[stride].probabilities.shape[1] for stride in output.routing) - sum(chosen))
        return losses(step, output, *arguments)

    def take_and_report(step: TrainingStep, *arguments: Any) -> None:
        idle.clear()
        take(step, *arguments)
        weights = sum(parameter.double().sum().item() for parameter in step.network.parameters())
        row = {"weights": weights, "idle": sum(idle), "frozen": step.network.backbone.frozen_stages}
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")

    TrainingStep.__call__, TrainingStep.losses = take_and_report, note_choices  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    how, folder, *rest = sys.argv[1:]
    if how == "untouched":
        part_idle_experts()
    report_steps(Path(folder))
    sys.exit(main(rest))

"""Run by `accelerate launch` in two processes: trains a tiny experiment and compares the ranks after every step.

Arguments: experiment file, output folder. Rank 0 writes `report.json` into the output folder.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from camox.experiment import Experiment
from camox.training.step import TrainingStep
from camox.training.trainer import Trainer
from camox.training.validation import Validator


def main(experiment_file: str, output: str) -> None:
    torch.set_num_threads(1)
    steps: list[dict[str, Any]] = []
    idle: list[int] = []
    validated: list[list[float]] = []
    averages: list[float] = []
    scores: list[Any] = []
    take, choices, score = TrainingStep.__call__, TrainingStep._choices, Validator.score

    def count_idle(step: TrainingStep, output: Any) -> torch.Tensor:
        counts = choices(step, output)
        idle.append(int((counts == 0).sum()))
        return counts

    def take_and_compare(step: TrainingStep, shell: Any, window: Any, controls: Any) -> None:
        idle.clear()
        take(step, shell, window, controls)
        # Running statistics are each rank's own until the epoch's end.
        weights = [t.double().sum().item() for n, t in step.network.state_dict().items() if "running" not in n]
        indices = [index for batch in window for index in batch.indices.tolist()]
        ours = {"weights": weights, "indices": indices, "idle": list(idle)}
        assert step.average is not None
        averages.append(sum(p.double().abs().sum().item() for p in step.average.model.parameters()))
        # What the step watches must be the network's own tensors, not copies that a move left behind.
        live = {id(buffer) for buffer in step.network.buffers()}
        assert all(id(buffer) in live for buffer in step._norm_statistics)
        steps.append({"ranks": gather_object([ours]), "frozen": step.network.backbone.frozen_stages})

    def score_and_compare(validator: Validator, network: Any) -> Any:
        validated.append(gather_object([sum(t.double().sum().item() for t in network.state_dict().values())]))
        result = score(validator, network)
        scores.append(gather_object([result[0]]))
        return result

    TrainingStep.__call__, TrainingStep._choices = take_and_compare, count_idle  # type: ignore[assignment]
    Validator.score = score_and_compare  # type: ignore[method-assign]
    trainer = Trainer(Experiment.load(experiment_file, output=output))
    trainer.run()
    if trainer.accelerator.is_main_process:
        report = {"steps": steps, "validated": validated, "averages": averages, "scores": scores}
        report["wrapper"] = type(trainer.shell).__name__
        Path(output, "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Run by `accelerate launch` in two processes: trains tiny experiments and compares the ranks after every step.

Arguments: output folder, experiment files. Rank 0 writes `report.json`, by the experiments' names, into the folder.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from camox.experiment import Experiment
from camox.training.step import TrainingStep
from camox.training.trainer import Trainer
from camox.training.validation import Validator


def main(output: str, *experiment_files: str) -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = defaultdict(list)
    chosen: list[list[Any]] = []
    take, losses, score = TrainingStep.__call__, TrainingStep.losses, Validator.score

    def note_choices(step: TrainingStep, output: Any, *arguments: Any) -> dict[str, torch.Tensor]:
        chosen.append([routing.selected.tolist() for routing in output.routing.values()])
        return losses(step, output, *arguments)

    def take_and_compare(step: TrainingStep, shell: Any, window: Any, controls: Any) -> None:
        chosen.clear()
        take(step, shell, window, controls)
        # Running statistics are each rank's own until the epoch's end.
        weights = [t.double().sum().item() for n, t in step.network.state_dict().items() if "running" not in n]
        indices = [index for batch in window for index in batch.indices.tolist()]
        rates = [group["lr"] for group in step.optimizer.param_groups]
        ours = {"weights": weights, "indices": indices, "chosen": list(chosen), "rates": rates}
        assert step.average is not None
        report["averages"].append(sum(p.double().abs().sum().item() for p in step.average.model.parameters()))
        # What the step watches must be the network's own tensors, not copies that a move left behind.
        live = {id(buffer) for buffer in step.network.buffers()}
        assert all(id(buffer) in live for buffer in step._norm_statistics)
        report["steps"].append({"ranks": gather_object([ours]), "frozen": step.network.backbone.frozen_stages})

    def score_and_compare(validator: Validator, network: Any, **options: Any) -> Any:
        weights = sum(t.double().sum().item() for t in network.state_dict().values())
        report["validated"].append(gather_object([weights]))
        result = score(validator, network, **options)
        report["scores"].append(gather_object([result[0]]))
        return result

    TrainingStep.__call__, TrainingStep.losses = take_and_compare, note_choices  # type: ignore[assignment, method-assign]
    Validator.score = score_and_compare  # type: ignore[assignment, method-assign]
    reports = {}
    for file in experiment_files:
        report.clear()
        trainer = Trainer(Experiment.load(file, output=output))
        if file != experiment_files[-1]:
            trainer.accelerator.end_training = lambda: None  # it would part the processes
        trainer.run()
        reports[trainer.experiment.experiment.name] = {**report, "wrapper": type(trainer.shell).__name__}
    if trainer.accelerator.is_main_process:
        Path(output, "report.json").write_text(json.dumps(reports))


if __name__ == "__main__":
    main(*sys.argv[1:])

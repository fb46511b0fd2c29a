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


def main(experiment_file: str, output: str) -> None:
    torch.set_num_threads(1)
    steps: list[dict[str, Any]] = []
    take = TrainingStep.__call__

    def take_and_compare(step: TrainingStep, shell: Any, window: Any, controls: Any) -> None:
        take(step, shell, window, controls)
        state = step.network.state_dict()
        ours = {
            # Running statistics are each rank's own until DDP broadcasts them; weights and balance must agree.
            "weights": [t.double().sum().item() for n, t in state.items() if "running" not in n],
            "indices": [index for batch in window for index in batch.indices.tolist()],
            "idle": sum((p.grad is None) for n, p in step.network.named_parameters() if not n.startswith("backbone")),
        }
        steps.append({"ranks": gather_object([ours]), "frozen": step.network.backbone_frozen})

    TrainingStep.__call__ = take_and_compare  # type: ignore[method-assign]
    trainer = Trainer(Experiment.load(experiment_file, output=output))
    trainer.run()
    if trainer.accelerator.is_main_process:
        Path(output, "report.json").write_text(json.dumps({"steps": steps, "wrapper": type(trainer.shell).__name__}))


if __name__ == "__main__":
    main(*sys.argv[1:])

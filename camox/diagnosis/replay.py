"""`camox diagnose --replay`: a step that a run has kept, taken once more."""

from pathlib import Path

from camox.errors import CheckpointError
from camox.experiment import Experiment
from camox.tracking.console import Console
from camox.training.building import build_network, build_training_step, open_data
from camox.training.processes import build_accelerator
from camox.training.replay import REPLAYS, newest_kept, read_kept, replay
from camox.training.run_state import load_into


def replay_kept(path: Path, console: Console | None = None) -> int:
    """Takes the parts of all processes once more, in fp32, and prints what made the first NaN or Inf.

    Args:
        path: the folder of a kept step, or of a run: then its newest.

    Returns:
        0 where all values are finite, 1 where some are not.

    Raises:
        CamoxError: there is no such step, it is damaged, or its experiment or data are gone.
    """
    console = console or Console()
    folder = newest_kept(path)
    kept = read_kept(folder)
    run = folder.resolve().parent.parent
    if folder.resolve().parent.name != REPLAYS or not (run / "experiment.toml").exists():
        raise CheckpointError(f"{folder} lies in no run's folder: the run's experiment.toml is needed to replay it")
    experiment = Experiment.load(run / "experiment.toml")
    accelerator = build_accelerator(experiment)
    source, _ = open_data(experiment)
    network = build_network(experiment, accelerator.device, trained=False)
    load_into(network, kept.weights, f"{folder}/model.safetensors")
    network.freeze_backbone(kept.frozen_stages)
    network.train()
    step = build_training_step(experiment, accelerator, network)
    step.objective.weights = dict(kept.loss_weights)
    first = kept.of_ranks[0]
    samples = sum(len(batch) for attempted in kept.of_ranks for batch in attempted.batches)
    console.header(
        f"camox diagnose --replay {folder}",
        [
            ("step", f"{first.step}, in epoch {first.epoch + 1}"),
            ("weights", f"after step {kept.weights_after}"),
            ("samples", f"{samples} on {len(kept.of_ranks)} process{'es' * (len(kept.of_ranks) > 1)}"),
            ("device", f"{accelerator.device.type}, fp32"),
        ],
    )
    found = [replay(step, attempted, experiment, source) for attempted in kept.of_ranks]
    for rank, one in enumerate(found):
        console.notice(f"process {rank}: {one}" if len(found) > 1 else str(one))
    return int(any(one.culprit is not None or one.failure for one in found))

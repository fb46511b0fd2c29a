"""The experiment whose trainer and checkpoints are measured."""

from collections.abc import Sequence
from pathlib import Path

from benchmarking.settings import Settings
from camox.experiment import Experiment

LEARNING_RATE = 1e-5

_FILE = """\
[experiment]
name = "benchmark"

[data]
train = [{{ synthetic = "habitats", count = {samples}, size = 32 }}]
val = [{{ synthetic = "habitats", count = 1, size = 32 }}]
image_size = {image_size}
batch_size = {batch}
workers = 0

[model]
backbone = "{backbone}"
pretrained = false
width = {width}

[model.moe.router]
noise = 1.0  # without it, untrained routers send the whole batch to one and the same pair

[model.moe.balance]
warmup_epochs = 0

[optimizer]
lr = {rate}

[schedule]
name = "constant"
warmup_epochs = 0

[precision]
dtype = "{precision}"

[tracking]
log_every = {log_every}
wandb = "disabled"  # a service, not a part of the step
report = false

[[phases]]
name = "full"
epochs = 1
"""


def benchmark_experiment(
    settings: Settings, folder: Path, steps: int = 1, log_every: int = 1, overrides: Sequence[str] = ()
) -> Experiment:
    """One epoch of so many steps with the defaults of a run, but for a constant learning rate and balance coefficient.

    Its file and its run are in `folder`.

    Raises:
        ExperimentError: there is no such backbone, or the sizes do not fit.
    """
    file = folder / "benchmark.toml"
    file.write_text(
        _FILE.format(
            samples=steps * settings.batch,
            image_size=settings.image_size,
            batch=settings.batch,
            backbone=settings.backbone,
            width=settings.width,
            rate=LEARNING_RATE,
            precision=settings.precision,
            log_every=log_every,
        ),
        encoding="utf-8",
    )
    return Experiment.load(file, overrides, output=folder / "runs")

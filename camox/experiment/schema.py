"""Every key of an experiment file, its default and its meaning. `[model]` has a file of its own, network.py, and
`[data]` another, sources.py.

There is no key without effect: one whose feature does not exist is unknown here.
"""

from typing import Annotated, Literal

from pydantic import Field

from camox.experiment.table import Table

Measure = Literal[
    "iou", "dice", "s_measure", "f_weighted", "f_max", "f_mean", "f_adaptive",
    "e_max", "e_mean", "e_adaptive", "mae",
]  # fmt: skip
Beta = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


class Identity(Table):
    """Name, seed and place of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """Name of the run and of its folder: letters, digits, underscores, hyphens and, not in front, dots."""

    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of initial weights, data order, augmentation and dropout."""

    output: str = Field(default="runs", min_length=1)
    """Folder that holds the run's folder."""

    deterministic: bool = False
    """Ask for deterministic kernels, so that a run repeats bit by bit on the same machine. Costs speed on a
    GPU."""

    notes: str = ""
    """Free text, kept with the run."""

    tags: tuple[str, ...] = ()
    """Words to find the run by in the tracker."""

    init_from: str | None = Field(default=None, min_length=1)
    """Run or checkpoint to start from, with its better weights and nothing else of its state: for fine-tuning. The
    backbone's own weights are then not fetched."""

    max_hours: float | None = Field(default=None, gt=0)
    """Save and stop, with exit code 4, before the run has taken this long; `--resume auto` goes on. For machines that
    end a session at a fixed time."""


class Loss(Table):
    """Weight of each term. Weights are normalised to sum to one, so only their ratios matter."""

    structure: Weight = 1.0
    """Binary cross-entropy plus IoU of the final logits, both with more weight at boundaries and on thin parts."""

    structure_legacy: Weight = 0.0
    """The same with the cross-entropy that much published code uses by mistake, without weights; to repeat its
    results."""

    bce: Weight = 0.0
    """Plain binary cross-entropy of the final logits."""

    iou: Weight = 0.0
    """Soft IoU of the final logits."""

    dice: Weight = 0.0
    """Soft Dice of the final logits."""

    tversky: Weight = 0.0
    """Tversky loss of the final logits: false alarms weigh 0.3, missed pixels 0.7."""

    focal: Weight = 0.0
    """Focal loss of the final logits, with alpha 0.25 and gamma 2."""

    boundary: Weight = 0.5
    """Predicted boundary against the mask's."""

    uncertainty: Weight = 0.1
    """Predicted variance of the boundary against its actual error."""

    frequency: Weight = 0.0
    """Distance between the spectra of the predicted map and the mask."""

    search: Weight = 0.3
    """Search map at stride 32 against the mask."""

    foreground: Weight = 0.0
    """Coarse mask at stride 4, which tells the refinement where nothing was found, by a cross-entropy in which object
    and background weigh half each."""

    deep: Weight = 0.5
    """Coarse masks together: the three heads of deep supervision, or without it the one at stride 4."""

    refinement: Weight = 0.5
    """Refinement steps together; without any, the coarse mask at stride 4 once more."""


class Optimizer(Table):
    """How weights follow gradients."""

    name: Literal["adamw"] = "adamw"
    """The optimizer."""

    lr: float = Field(default=8e-4, gt=0)
    """Peak learning rate. Phases may set their own."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """Decoupled weight decay; norms, biases and routers have none."""

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the running means of gradients and squared gradients."""

    accumulate: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step. Phases may set their own."""

    backbone_lr_mult: float = Field(default=1.0, gt=0)
    """Multiplies the learning rate of the backbone. To freeze it, use a phase's `freeze`."""

    router_lr_mult: float = Field(default=0.1, gt=0)
    """Multiplies the learning rate of the routers. As fast as the rest, they leave experts behind before these have
    learned anything."""

    clip: float = Field(default=0.5, gt=0)
    """Greatest norm of the gradient of everything but the routers."""

    router_clip: float = Field(default=0.1, gt=0)
    """Greatest norm of the gradient of the routers."""

    fused: bool = True
    """One fused kernel for all parameters, which skips a step that is not finite by itself. Without it every step
    waits once for the device."""


class Schedule(Table):
    """How the learning rate moves over the run; a phase's `lr` sets its height."""

    name: Literal["cosine", "one_cycle", "multistep", "plateau", "constant"] = "cosine"
    """With "cosine" the rate falls from `lr` to `min_lr` along half a cosine, over all epochs after the warm-up.
    With "one_cycle" the warm-up too is half a cosine, from `lr` / 25.
    With "multistep" the rate is multiplied by `gamma` at each of `milestones`, with "plateau" whenever
    `checkpoints.monitor` stops improving. With "constant" it stays at `lr`."""

    warmup_epochs: float = Field(default=5.0, ge=0)
    """Epochs over which the learning rate rises at the start, linearly but for "one_cycle", for which 30 % of the run
    are usual."""

    min_lr: float = Field(default=1e-5, ge=0)
    """Learning rate at the end of "cosine" and "one_cycle", and the least that "multistep" and "plateau" go down to."""

    milestones: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Epochs after which "multistep" lowers the rate, counted from the start of the run."""

    gamma: float = Field(default=0.1, gt=0, lt=1)
    """Factor by which "multistep" and "plateau" lower the rate each time."""

    patience: int = Field(default=5, ge=1)
    """Validations in a row without a new best of `checkpoints.monitor`, after which "plateau" lowers the rate."""


class Phase(Table):
    """A part of the training with settings of its own; phases follow each other in the order of the file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the phase: letters, digits, underscore and hyphen."""

    epochs: int = Field(ge=1)
    """Passes over the training data."""

    freeze: tuple[Literal["backbone"], ...] = ()
    """Parts of the model that are not trained in this phase."""

    unfreeze: Literal["all", "progressive"] = "all"
    """With "all" what is not frozen is trained from the phase's first epoch. With "progressive" the deepest of the
    backbone's four stages is, and the next shallower one joins after every quarter of the phase's epochs; the last
    epoch trains all, however few there are."""

    batch_size: int | None = Field(default=None, ge=1)
    """In place of `data.batch_size`."""

    accumulate: int | None = Field(default=None, ge=1)
    """In place of `optimizer.accumulate`."""

    lr: float | None = Field(default=None, gt=0)
    """In place of `optimizer.lr`."""

    image_size: int | None = Field(default=None, ge=32)
    """In place of `data.image_size`, for training."""


class Precision(Table):
    """Number format of forward and backward passes. Weights and losses are always fp32."""

    dtype: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """With "auto" the launcher's `mixed_precision` if it sets one, else what the hardware does best."""

    init_scale: float = Field(default=1024.0, gt=0)
    """First scale of an fp16 loss."""

    growth_interval: int = Field(default=200, ge=1)
    """Steps without overflow after which the scale of an fp16 loss doubles."""

    min_scale: float = Field(default=1.0, gt=0)
    """A scale below this is a reason to roll back: the gradients are not finite at any scale."""


class Ema(Table):
    """Exponential moving average of the weights, kept and scored beside them."""

    enabled: bool = True
    """Whether to keep one."""

    decay: float = Field(default=0.999, ge=0, lt=1)
    """Share of the average that survives an optimizer step."""

    warmup: bool = True
    """Let the decay rise to its value from the first step on, so that a short run does not average noise."""


class Policy(Table):
    """What is done when a guard asks for a rollback to the last verified checkpoint."""

    max_rollbacks: int = Field(default=4, ge=0)
    """Rollbacks before the run stops with exit code 3; 0 for none."""

    rate_factor: float = Field(default=0.7, gt=0, le=1)
    """Factor on the learning rate with each rollback."""

    warmup_steps: int = Field(default=50, ge=0)
    """Steps over which the learning rate rises again after a rollback."""

    ladder: tuple[Literal["lower_rate", "longer_warmup", "no_deep_supervision"], ...] = (
        "lower_rate", "lower_rate", "longer_warmup", "no_deep_supervision",
    )  # fmt: skip
    """What each rollback does, beside another order of the data and leaving out the samples of steps that were not
    finite; the last rung repeats. All lower the rate; "longer_warmup" takes four times `warmup_steps`."""


class Stability(Table):
    """What is watched, and what is done about it."""

    bad_samples: bool = True
    """Go on without samples that cannot be read, or whose image is all of one colour, each named in an event; without
    it the first one ends the run."""

    max_bad_samples: float = Field(default=0.01, ge=0, lt=1)
    """Share of an epoch's samples that may be bad before the run stops."""

    nonfinite: bool = True
    """Skip steps whose loss or gradient is not finite, on all processes; without it they reach the weights."""

    max_skipped_steps: int = Field(default=20, ge=1)
    """Steps skipped in a row, for gradients that are not finite, after which the run is rolled back."""

    replays: int = Field(default=3, ge=0)
    """Steps that were not finite to keep, with their samples and weights, and to take once more in fp32, which names
    the module and the operation at fault; 0 for none."""

    loss_scale: bool = True
    """Roll back when under fp16 too many steps overflow, or the loss scale falls below `precision.min_scale`."""

    max_skip_rate: float = Field(default=0.02, gt=0, lt=1)
    """Share of the last 200 steps that may overflow, once 100 steps were taken."""

    spike: bool = True
    """Skip steps whose loss or gradient norm is far above the last ones, and roll back where it stays so."""

    spike_threshold: float = Field(default=8.0, gt=0)
    """Robust standard deviations above the running median that are far."""

    spike_patience: int = Field(default=3, ge=1)
    """Far steps in a row before one is skipped."""

    decline: bool = True
    """Lower the rate by a fifth when `checkpoints.monitor` falls three validations in a row by more than chance."""

    explosion: bool = True
    """Roll back when `checkpoints.monitor` falls below half of its best."""

    collapse: bool = True
    """Help routers that have collapsed: a faster bias, then noise, then more weight for the balance."""

    stall_seconds: float = Field(default=1800.0, ge=0)
    """Seconds without progress on any process after which the run is ended, with every thread's stack in `stacks.txt`,
    for `--resume auto` or an elastic launcher to go on; 0 waits for ever. More than the longest that an optimizer step
    (the first one with `model.compile`), a batch of validation or writing a checkpoint takes."""

    policy: Policy = Policy()
    """What is done when a guard asks for a rollback."""


class Checkpoints(Table):
    """What is saved and kept."""

    every_epochs: int = Field(default=5, ge=1)
    """Epochs between checkpoints; the last epoch always has one."""

    keep_last: int = Field(default=3, ge=1)
    """Newest checkpoints to keep."""

    keep_best: int = Field(default=1, ge=0)
    """Best checkpoints to keep besides."""

    keep_every: int = Field(default=0, ge=0)
    """Also keep the checkpoint after every n-th epoch; 0 for none."""

    asynchronous: bool = True
    """Write checkpoints in the background: training waits only for a copy in host memory."""

    monitor: Measure = "s_measure"
    """Measure that says which checkpoint is best; higher is better, except for "mae"."""


class Validation(Table):
    """How held-out data are scored."""

    every_epochs: int = Field(default=1, ge=1)
    """Epochs between validations; the last epoch always has one."""

    measures: tuple[Measure, ...] = Field(
        default=(
            "iou", "dice", "s_measure", "f_weighted", "f_max", "f_mean", "f_adaptive",
            "e_max", "e_mean", "e_adaptive", "mae",
        ),
        min_length=1,
    )  # fmt: skip
    """Measures to compute, each once; `checkpoints.monitor` is one of them."""

    select_on_test: bool = False
    """Allow `data.val` to name test images, which is refused without it: checkpoints are then selected on what they are
    scored on, and every result carries that label. For repeating results that were published so."""


class Tracking(Table):
    """Where numbers go besides the console and the run's folder."""

    log_every: int = Field(default=20, ge=1)
    """Optimizer steps between logged numbers."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Mode of Weights & Biases; "auto" is online where the user is logged in, else offline."""

    project: str = Field(default="camox", min_length=1)
    """Project in Weights & Biases."""

    entity: str | None = Field(default=None, min_length=1)
    """User or team in Weights & Biases; by default the user's own."""

    artifacts: Literal["none", "best", "all"] = "none"
    """Checkpoints that Weights & Biases keeps as artifacts: none, those that are the best so far, or all. Training
    waits while they are copied."""

    tensorboard: bool = False
    """Write the same numbers for TensorBoard too, to the run's `tensorboard` folder. Needs `pip install
    'camox[tensorboard]'`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from camox.errors import ExperimentError
from camox.experiment import Experiment
from camox.experiment.lint import FINAL_TERMS
from camox.losses import composite

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], None),
        (["schedule.warmup_epochs=2"], "warmup_epochs = 2.0 is no less than the run's 2 epochs"),
        (
            ["model.pretrained=false", 'phases.full.freeze=["backbone"]'],
            "random weights and is frozen in every phase",
        ),
        (["model.weights=b.safetensors", "model.pretrained=false", 'phases.full.freeze=["backbone"]'], None),
        (["ema.decay=0.9999", "ema.warmup=false"], "half-life of 6931 steps, but the run at most 24"),
        (["ema.decay=0.9999", "ema.warmup=true"], None),
        (["ema.decay=0.9999", "ema.warmup=false", "ema.enabled=false"], None),
        (["ema.decay=0.9999", "ema.warmup=false", 'data.train=[{layout="cod10k",path="x"}]'], None),
        (
            ['data.test=[{synthetic="habitats",count=4,weight=2}]'],
            "data.test[0].weight has no effect: every image is scored once",
        ),
        (['data.train=[{synthetic="habitats",count=400,weight=2}]'], None),
        (["schedule.name=constant", "schedule.min_lr=1e-6"], 'min_lr has no effect with name = "constant", only with'),
        (["schedule.name=constant", "schedule.min_lr=1e-5"], None),
        (["schedule.milestones=[1]"], 'milestones has no effect with name = "cosine", only with "multistep"'),
        (["schedule.gamma=0.5"], 'gamma has no effect with name = "cosine", only with "multistep", "plateau"'),
        (
            ["schedule.name=multistep", "schedule.milestones=[1]", "schedule.patience=2"],
            'patience has no effect with name = "multistep", only with "plateau"',
        ),
        (["schedule.name=multistep", "schedule.milestones=[1]", "schedule.gamma=0.5"], None),
        (
            ["schedule.name=multistep", "schedule.milestones=[1, 2, 3.5]"],
            "milestones has 2, 3.5, but the run ends after 2 epochs",
        ),
        (
            ["schedule.name=plateau", "phases.full.epochs=5", "schedule.patience=4"],
            "patience = 4 is too long for the run's 5 validations",
        ),
        (["schedule.name=plateau", "phases.full.epochs=5", "schedule.patience=3", "schedule.gamma=0.5"], None),
        (
            ["schedule.name=plateau", "phases.full.epochs=9", "schedule.patience=3", "validation.every_epochs=3"],
            "too long for the run's 3 validations",
        ),
        (["schedule.name=one_cycle"], None),
        (["phases.full.batch_size=1", "model.moe.balance.entropy=1e-3"], "entropy asks for indecision in each image"),
        (["phases.full.batch_size=1", "model.moe.balance.mutual_information=1e-3"], "is always 0 with batch_size = 1"),
        (["phases.full.batch_size=2", "model.moe.balance.entropy=1e-3"], None),
        (["phases.full.batch_size=64", "phases.full.accumulate=2"], "128 images, but there are only 90"),
    ],
)
def test_warnings(write: Write, minimal: str, overrides: list[str], expected: str | None):
    warnings = Experiment.load(write(minimal), overrides).warnings
    if expected is None:
        assert warnings == ()
    else:
        (warning,) = warnings
        assert expected in warning


# One key of each kind, and a value that is not its default.
EXAMPLES = {
    "model.moe.experts": '["semantic", "edge", "contrast", "frequency", "attention", "texture"]',
    "model.moe.top_k": "3",
    "model.moe.shared": "true",
    "model.moe.granularity": "2",
    "model.moe.dispatch": "masked",
    "model.moe.router.gate": "linear",
    "model.moe.router.temperature": "2",
    "model.moe.router.logit_limit": "5",
    "model.moe.router.logit_limit_mode": "clamp",
    "model.moe.router.prob_floor": "1e-6",
    "model.moe.router.noise": "0.5",
    "model.moe.router.noise_fraction": "0.5",
    "model.moe.balance.coefficient": "1e-2",
    "model.moe.balance.coefficient_after_warmup": "1e-2",
    "model.moe.balance.warmup_epochs": "1",
    "model.moe.balance.window_images": "64",
    "model.moe.balance.band": "[0.2, 3.0]",
    "model.moe.balance.bias_rate": "0.1",
    "model.moe.balance.z_loss": "1e-3",
    "model.moe.balance.entropy": "1e-3",
    "model.moe.balance.mutual_information": "1e-3",
    "optimizer.router_lr_mult": "2",
    "optimizer.router_clip": "0.2",
}
ROUTER = {key for key in EXAMPLES if "router" in key}
NOISE = {"model.moe.router.noise", "model.moe.router.noise_fraction"}
BALANCE = {key for key in EXAMPLES if "balance" in key}
SELECTION = {"model.moe.balance.band", "model.moe.balance.bias_rate"}
WINDOW = {"model.moe.balance.window_images"}
LOSS = {f"model.moe.balance.{key}" for key in ("coefficient", "coefficient_after_warmup", "warmup_epochs")}


@pytest.mark.parametrize(
    ("overrides", "without_effect"),
    [
        ([], set()),
        (["model.moe.mode=dense"], {"model.moe.top_k", "model.moe.dispatch"} | NOISE | SELECTION | WINDOW | LOSS),
        (["model.moe.mode=static"], {"model.moe.dispatch"} | ROUTER | BALANCE),
        (["model.moe.mode=random"], ROUTER | BALANCE),
        (["model.moe.scales=[]"], set(EXAMPLES)),
        (["model.moe.top_k=6"], NOISE | SELECTION | WINDOW | LOSS),
        (["model.moe.balance.kind=switch"], SELECTION | WINDOW),
        (["model.moe.balance.kind=importance"], SELECTION | WINDOW),
        (["model.moe.balance.kind=none"], SELECTION | WINDOW | LOSS),
        (
            ["model.moe.mode=dense", "model.moe.balance.kind=importance"],
            {"model.moe.top_k", "model.moe.dispatch"} | NOISE | SELECTION | WINDOW,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_keys_of_the_mixture_that_nothing_reads(write: Write, minimal: str, overrides: list[str], without_effect: set):
    """Each key by itself: it is remarked on, once, exactly if it changes nothing."""
    path = write(minimal)
    before = Experiment.load(path, overrides).warnings
    remarked = set()
    for key, value in EXAMPLES.items():
        if any(override.startswith(f"{key}=") for override in overrides):
            continue
        added = [text for text in Experiment.load(path, [*overrides, f"{key}={value}"]).warnings if text not in before]
        assert added == [] or (len(added) == 1 and added[0].startswith(f"{key} has no effect with ")), added
        remarked |= {key} if added else set()
    assert remarked == without_effect


def test_every_key_of_the_mixture_has_an_example(write: Write, minimal: str):
    moe = Experiment.load(write(minimal)).model.moe
    tables = {"model.moe": moe, "model.moe.router": moe.router, "model.moe.balance": moe.balance}
    keys = {f"{path}.{key}" for path, table in tables.items() for key in type(table).model_fields}
    decide = {f"model.moe.{key}" for key in ("mode", "scales", "balance.kind", "router", "balance")}
    assert keys - decide == {key for key in EXAMPLES if key.startswith("model.")}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["model.moe.mode=static", "model.moe.router.noise=0.5"],
            'model.moe.router.noise has no effect with model.moe.mode = "static", only with "sparse": '
            "remove it or choose that mode",
        ),
        (
            ["model.moe.scales=[]", "model.moe.mode=dense"],
            "model.moe.mode has no effect with model.moe.scales = []: remove it or name scales",
        ),
        (
            ["model.moe.scales=[]", "model.moe.balance.kind=none"],
            "model.moe.balance.kind has no effect with model.moe.scales = []: remove it or name scales",
        ),
        (
            ["model.moe.balance.kind=switch", "model.moe.balance.band=[0.2, 3.0]"],
            'model.moe.balance.band has no effect with model.moe.balance.kind = "switch", only with "band": '
            "remove it or choose another kind",
        ),
        (
            ["model.moe.mode=dense", "model.moe.balance.kind=switch"],
            'model.moe.balance.kind has no effect with model.moe.mode = "dense" and model.moe.balance.kind = "switch", '
            'only with "importance": remove it or choose that kind',
        ),
        (
            ["model.moe.top_k=6", "model.moe.balance.bias_rate=0.1"],
            "model.moe.balance.bias_rate has no effect with model.moe.top_k = 6, all experts: remove it or lower top_k",
        ),
    ],
)
def test_remark_on_a_key_without_effect(write: Write, minimal: str, overrides: list[str], expected: str):
    assert Experiment.load(write(minimal), overrides).warnings == (expected,)


def test_what_has_to_be_set_is_not_remarked_on(write: Write, minimal: str):
    """The default top_k = 2 would exceed a single expert; a floor makes the sum of probabilities vary."""
    path = write(minimal)
    overrides = ["model.moe.mode=dense", 'model.moe.experts=["edge"]', "model.moe.top_k=1"]
    assert Experiment.load(path, overrides).warnings == ()
    overrides = ["model.moe.mode=dense", "model.moe.router.prob_floor=1e-3", "model.moe.balance.coefficient=0.1"]
    assert Experiment.load(path, overrides).warnings == ()


def empty_regions(side: int, grid: int) -> int:
    """How many rows of a grid hold nothing of a map, as `split_regions` pads and cuts it."""
    padded = [row < side for row in range(-(-side // grid) * grid)]
    return sum(
        not any(padded[first : first + len(padded) // grid]) for first in range(0, len(padded), len(padded) // grid)
    )


@pytest.mark.parametrize(
    ("size", "stride"),
    [(32, 32), (64, 32), (96, 32), (97, 32), (96, 16), (256, 32), (352, 32), (352, 16), (416, 32), (416, 4)],
)
def test_a_grid_is_refused_exactly_where_regions_would_be_empty(write: Write, minimal: str, size: int, stride: int):
    path, side = write(minimal), -(-size // 32) * 32 // stride
    for grid in range(2, 17):
        overrides = [f"data.image_size={size}", f"model.moe.scales=[{stride}]", f"model.moe.granularity={grid}"]
        if not empty_regions(side, grid):
            assert Experiment.load(path, overrides).model.moe.granularity == grid
            continue
        with pytest.raises(ExperimentError, match=rf"granularity = {grid} .*{size}² .*stride {stride}: ") as refused:
            Experiment.load(path, overrides)
        fitting = [coarser for coarser in range(2, grid) if not empty_regions(side, coarser)]
        assert (f"take {fitting[-1]}, the largest" if fitting else 'take "image"') in str(refused.value)


def test_a_grid_has_to_fit_every_size_and_scale_in_use(write: Write, minimal: str):
    path, grid = write(minimal), ["data.image_size=128", "model.moe.granularity=4"]
    Experiment.load(path, grid)
    with pytest.raises(ExperimentError, match=r"96² pixels has only 3×3 cells, at stride 32: take 2"):
        Experiment.load(path, [*grid, "phases.full.image_size=96"])
    Experiment.load(path, [*grid, "phases.full.image_size=96", "model.moe.scales=[4, 8]"])
    # Also where every phase has a size of its own: validation takes that of the data.
    with pytest.raises(ExperimentError, match="64² pixels has only 2×2 cells"):
        Experiment.load(path, ["data.image_size=64", "phases.full.image_size=128", "model.moe.granularity=4"])
    Experiment.load(path, ["data.image_size=32", "model.moe.granularity=16", "model.moe.scales=[]"])


def test_constant_schedule_needs_no_lowest_rate(write: Write, minimal: str):
    experiment = Experiment.load(write(minimal), ["schedule.name=constant", "optimizer.lr=1e-6"])
    assert experiment.optimizer.lr == 1e-6


def test_unused_default_rate_may_be_below_the_lowest(write: Write, minimal: str):
    experiment = Experiment.load(write(minimal), ["phases.full.lr=1e-3", "optimizer.lr=1e-6"])
    assert experiment.phases_resolved()[0].lr == 1e-3


def test_one_cycle_needs_epochs_to_rise_in(write: Write, minimal: str):
    with pytest.raises(ExperimentError, match=r'warmup_epochs = 0 .*"one_cycle".*about 30 %'):
        Experiment.load(write(minimal), ["schedule.name=one_cycle", "schedule.warmup_epochs=0"])


def test_any_term_for_the_final_logits_trains_the_prediction(write: Write, minimal: str):
    assert set(FINAL_TERMS) == set(composite.FINAL_TERMS)
    for term in FINAL_TERMS:
        Experiment.load(write(minimal), ["loss.structure=0", f"loss.{term}=1"])


def test_every_term_of_the_loss_has_a_weight_in_the_file(write: Write, minimal: str):
    assert set(Experiment.load(write(minimal)).loss.plain()) == set(composite.TERMS)


@pytest.mark.parametrize(("overrides", "remarks"), [
    (["model.moe.balance.warmup_epochs=900"], 1),
    (["model.moe.balance.warmup_epochs=1"], 0),
    (["model.moe.balance.warmup_epochs=900", "model.moe.balance.coefficient=0"], 0),
])  # fmt: skip
def test_remark_on_a_balance_that_is_never_warm(write: Write, minimal: str, overrides: list[str], remarks: int):
    warnings = Experiment.load(write(minimal), overrides).warnings
    assert len(["never reaches its weight" in text for text in warnings]) == remarks

"""What routers decide, from the training step and the validation to logged values, verdicts and a resumed run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from camox.data.loading import EvalSet
from camox.data.sources import open_training_sources
from camox.losses.composite import SegmentationObjective
from camox.measures.routing import RoutedImages
from camox.models.camoxpert import CamoXpert
from camox.models.router import Router, Routing
from camox.training import routing as training_routing
from camox.training import validation
from camox.training.routing import PROBE_IMAGES, RoutingWatch, routed_images, routing_sums
from camox.training.trainer import Trainer
from camox.training.validation import Validator

LIMIT = 10.0
LATE = 10_000
KINDS = ("forest", "desert", "underwater")


def network(**arguments: Any) -> CamoXpert:
    torch.manual_seed(0)
    built = CamoXpert("resnet10t", width=8, scales=(8, 32), **arguments).eval()
    built.anneal_routing_noise(0.0)
    return built


def by_kind(seed: int = 0, images: int = 96, regions: int = 1) -> RoutedImages:
    """Each kind of image has a pair of experts of its own; a little else by the seed."""
    kinds = tuple(KINDS[number % 3] for number in range(images))
    logits = np.repeat(np.eye(3)[np.arange(images) % 3], 2, axis=1)[:, None] * 2
    logits = logits + np.random.default_rng(seed).normal(0, 0.5, (images, regions, 6))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    selected = np.argsort(-probabilities, axis=-1)[..., :2]
    return RoutedImages(np.arange(images), kinds, probabilities, selected, np.zeros((images, regions), bool))


def one_pair(images: int = 96) -> RoutedImages:
    healthy = by_kind(images=images)
    selected = np.broadcast_to(np.array([0, 1]), healthy.selected.shape)
    return RoutedImages(healthy.indices, healthy.kinds, healthy.probabilities, selected, healthy.saturated)


@pytest.mark.parametrize("grid", [1, 3])
@pytest.mark.parametrize("arguments", [{}, {"prob_floor": 0.166}, {"logit_limit_mode": "clamp"}, {"gate": "linear"}])
def test_sums_on_the_device_are_those_of_the_images(grid, arguments):
    """Training sums tensors, evaluation keeps images: both must say the same."""
    torch.manual_seed(1)
    with torch.no_grad():
        routing = Router(4, 6, 2, **arguments).eval()(torch.randn(5 * grid**2, 4, 3, 3), torch.zeros(6))
    limit = routing.raw_logits.abs().amax(dim=1).median().item()
    assert (routing.probabilities.sum(dim=1) > 1.001).any() == ("prob_floor" in arguments)
    images = routed_images(routing, limit, torch.arange(5), ["forest"] * 5)
    sums = routing_sums(routing, limit)
    assert images.selected.shape == (5, grid**2, 2)
    np.testing.assert_allclose(images.probabilities.sum(axis=-1), 1, rtol=1e-6)
    assert 0 < sums["saturated"].item() < 5 * grid**2
    for name, value in images.sums().items():
        np.testing.assert_allclose(sums[name].numpy(), value, rtol=1e-5, err_msg=name)


def test_a_decision_is_saturated_where_one_logit_reaches_the_limit():
    raw = torch.tensor([[9.9, -9.9, 0.0], [0.0, -10.0, 1.0], [30.0, 0.0, 0.0]])
    routing = Routing(raw, raw.softmax(1), raw.topk(2).indices, torch.full((3, 2), 0.5))
    assert routing_sums(routing, LIMIT)["saturated"].item() == 2


def test_regions_stay_with_their_image():
    built = network(granularity=2)
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = built(images).routing[8], built(images[1:2]).routing[8]
    routed = routed_images(together, LIMIT, torch.tensor([7, 8, 9]), list(KINDS))
    assert routed.selected.shape == (3, 4, 2)
    np.testing.assert_array_equal(routed.selected[1], alone.selected.numpy())


def test_values_of_a_healthy_router():
    values, collapses = RoutingWatch(network()).evaluate({8: by_kind(), 32: one_pair()}, LATE)
    assert collapses == []
    assert values["val/router/stride_8/kind_information"] == pytest.approx(np.log(3), abs=0.25)
    assert values["val/router/stride_32/kind_information"] == pytest.approx(0, abs=1e-9)
    assert values["val/router/stride_32/dead"] == 4
    assert values["val/router/collapsed"] == 0
    assert not any("churn" in name for name in values)  # nothing yet to compare with


def test_the_kinds_of_images_count_also_where_regions_are_routed():
    values, _ = RoutingWatch(network(granularity=2)).evaluate({8: by_kind(regions=4)}, LATE)
    assert values["val/router/stride_8/kind_information"] == pytest.approx(np.log(3), abs=0.25)


def test_images_without_a_kind_are_left_out_of_what_kinds_tell():
    whole = by_kind()
    mixed = RoutedImages(
        np.arange(192),
        (*whole.kinds, *[""] * 96),
        *(np.concatenate([of_kinds, of_others]) for of_kinds, of_others in [
            (whole.probabilities, one_pair().probabilities),
            (whole.selected, one_pair().selected),
            (whole.saturated, one_pair().saturated),
        ]),
    )  # fmt: skip
    name = "val/router/stride_8/kind_information"
    watch = RoutingWatch(network())
    assert watch.evaluate({8: mixed}, LATE)[0][name] == watch.evaluate({8: whole}, LATE)[0][name]
    single = RoutedImages(whole.indices, ("forest",) * 96, whole.probabilities, whole.selected, whole.saturated)
    assert name not in watch.evaluate({8: single}, LATE)[0]


def test_churn_is_what_changed_on_the_probe_since_the_last_evaluation():
    watch = RoutingWatch(network())
    images = 10 * PROBE_IMAGES
    watch.evaluate({8: one_pair(images)}, LATE)
    assert watch.evaluate({8: one_pair(images)}, LATE)[0]["val/router/stride_8/churn"] == 0
    # A third of the images has the pair of experts 0 and 1 anyway.
    churn = watch.evaluate({8: by_kind(images=images)}, LATE)[0]["val/router/stride_8/churn"]
    assert churn == pytest.approx(2 / 3, abs=0.1)
    assert watch.evaluate({8: by_kind(images=images)}, LATE)[0]["val/router/stride_8/churn"] == 0


def test_the_verdict_comes_with_the_second_evaluation_and_says_what_to_look_at():
    watch = RoutingWatch(network())
    values, collapses = watch.evaluate({8: by_kind(), 32: one_pair()}, LATE)
    assert (values["val/router/collapsed"], collapses) == (0, [])
    values, collapses = watch.evaluate({8: by_kind(), 32: one_pair()}, LATE)
    assert values["val/router/collapsed"] == 1
    [collapse] = collapses
    assert "stride 32" in collapse.message
    assert "one pair of experts takes 100.0% of the decisions (limit 90%)" in collapse.message
    assert "val/router/stride_32/" in collapse.message
    assert "model.moe.balance.bias_rate" in collapse.message
    assert set(collapse.details["reasons"]) == {"dead", "one_pair", "few_experts"}
    values, collapses = watch.evaluate({8: by_kind(), 32: one_pair()}, LATE)
    assert (values["val/router/collapsed"], collapses) == (1, [])  # told already


def test_a_router_that_still_explores_is_measured_and_not_judged():
    built = network(noise=1.0)
    watch = RoutingWatch(built)
    built.anneal_routing_noise(0.5)
    for _ in range(3):
        values, collapses = watch.evaluate({8: one_pair()}, LATE)
        assert collapses == []
        assert "val/router/collapsed" not in values
    built.anneal_routing_noise(0.0)
    assert watch.evaluate({8: one_pair()}, LATE)[1] == []  # the first evaluation that counts
    assert len(watch.evaluate({8: one_pair()}, LATE)[1]) == 1


@pytest.mark.parametrize(("step", "noise_share"), [(499, 0.0), (10_000, 0.1)])
def test_early_in_a_run_only_a_router_that_was_sound_is_judged(step, noise_share):
    """One that has learned nothing yet treats all images alike: that is no collapse."""
    built = network(noise=0.0)
    with torch.no_grad():
        routing = built(torch.rand(96, 3, 32, 32)).routing
    untrained = {
        stride: routed_images(of_scale, LIMIT, torch.arange(96), [""] * 96) for stride, of_scale in routing.items()
    }
    built.anneal_routing_noise(noise_share)
    watch = RoutingWatch(built)
    assert [watch.evaluate(untrained, step)[1] for _ in range(3)] == [[], [], []]
    watch.evaluate({8: by_kind(), 32: untrained[32]}, step)
    assert [len(watch.evaluate(untrained, step)[1]) for _ in range(2)] == [0, 1]  # stride 8 was sound
    built.anneal_routing_noise(0.0)
    assert [len(watch.evaluate(untrained, LATE)[1]) for _ in range(2)] == [0, 2]  # stride 32 as well, and 8 once more


@pytest.mark.parametrize("mode", ["dense", "static", "random"])
def test_controls_have_no_verdict_and_only_measures_that_mean_something(mode):
    built = network(mode=mode)
    with torch.no_grad():
        routing = built(torch.rand(40, 3, 32, 32)).routing
    kinds = [KINDS[number % 3] for number in range(40)]
    routed = {stride: routed_images(decided, LIMIT, torch.arange(40), kinds) for stride, decided in routing.items()}
    watch = RoutingWatch(built)
    for _ in range(3):
        values, collapses = watch.evaluate(routed, LATE)
        assert collapses == []
    names = {name.removeprefix("val/router/stride_8/") for name in values if "stride_8" in name}
    from_choices = {"dead", "starved", "max_violation", "cv", "entropy", "pair_share", "kind_information"}
    from_choices |= {f"{what}/{expert}" for what in ("usage", "cost") for expert in built.expert_names}
    from_router = {"marginal_entropy", "conditional_entropy", "mutual_information", "saturation"}
    assert names == {"dense": from_router, "static": set(), "random": from_choices}[mode]
    assert "val/router/collapsed" not in values


def test_a_network_without_experts_has_nothing_to_measure():
    assert RoutingWatch(CamoXpert("resnet10t", width=8, scales=())).evaluate({}, LATE) == ({}, [])


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_saved_watch_goes_on_as_if_never_interrupted(at):
    history = [{8: of_8, 32: one_pair()} for of_8 in (by_kind(0), by_kind(1), one_pair(), one_pair(), by_kind(2))]
    whole, first, second = (RoutingWatch(network()) for _ in range(3))
    expected = [whole.evaluate(routed, LATE) for routed in history]
    before = [first.evaluate(routed, LATE) for routed in history[:at]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + [second.evaluate(routed, LATE) for routed in history[at:]] == expected
    assert any(collapses for _, collapses in expected)


def test_validation_gives_every_image_once_whatever_the_number_of_ranks(monkeypatch):
    source = open_training_sources([{"synthetic": "habitats", "count": 12, "size": 32}], [], 0.5, 0)[1]
    built = network()

    def score(ranks: int) -> tuple[dict[str, Any], dict[int, RoutedImages]]:
        """As the last rank sees it; what the others gave to the gather is kept from their own turn."""
        given: list[Any] = []
        result = None
        for rank in range(ranks):
            accelerator = SimpleNamespace(
                process_index=rank,
                num_processes=ranks,
                device=torch.device("cpu"),
                autocast=Accelerator(cpu=True).autocast,
            )
            monkeypatch.setattr(validation, "gather_object", lambda objects: given.extend(objects) or given)
            objective = SegmentationObjective({"structure": 1.0})
            result = Validator(accelerator, EvalSet(source, 32), objective, ("iou",), 3, 0).score(built)[:2]
        assert result is not None
        return result

    (alone, routed_alone), (both, routed_both) = score(1), score(2)
    assert alone["iou"] == both["iou"]
    for stride in (8, 32):
        ours, theirs = routed_alone[stride], routed_both[stride]
        assert ours.indices.tolist() == theirs.indices.tolist() == list(range(len(source)))
        assert list(ours.kinds) == list(theirs.kinds) == list(source.groups)
        np.testing.assert_array_equal(ours.selected, theirs.selected)


def test_validation_without_routing_gives_the_same_scores():
    source = open_training_sources([{"synthetic": "habitats", "count": 12, "size": 32}], [], 0.5, 0)[1]
    objective = SegmentationObjective({"structure": 1.0})
    validator = Validator(Accelerator(cpu=True), EvalSet(source, 32), objective, ("iou", "mae"), 3, 0)
    built = network()
    summary, routed, images, *_ = validator.score(built)
    assert np.mean([image["iou"] for image in images]) == pytest.approx(summary["iou"])
    assert list(routed) == [8, 32]
    assert validator.score(built, routing=False) == (summary, {}, images, {}, "")


# Routers that do not learn: nothing moves them from their start, where they treat all images alike.
IDLE_ROUTERS = (
    'data.train=[{synthetic="habitats",count=44,size=32}]',
    "data.val_fraction=0.9",
    "model.moe.scales=[8]",
    "model.moe.router.noise=0",
    "optimizer.router_lr_mult=1e-9",
    "phases.full.epochs=2",
    "ema.enabled=false",
)


def train(experiment: Any, resume: str | None = None) -> Path:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    Trainer(experiment, resume, Accelerator(cpu=True)).run()
    return experiment.run_folder


def collapse_events(run: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "router_collapse"]


def values(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{n: v for n, v in row.items() if n.startswith("val/router")} for row in rows if "val/iou" in row]


@pytest.mark.slow
def test_a_run_whose_router_learns_nothing_warns_once_also_when_resumed(tiny_experiment, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(training_routing, "LEARNING_STEPS", 0)
    whole = train(tiny_experiment(*IDLE_ROUTERS, output=tmp_path / "whole"))
    [event] = collapse_events(whole)
    assert event["epoch"] == 2
    assert event["severity"] == "warning"
    assert "uninformed" in event["details"]["reasons"]
    assert "the router at stride 8 has collapsed" in capfd.readouterr().err.replace("\n", " ")
    assert [of_epoch["val/router/collapsed"] for of_epoch in values(whole)] == [0, 1, 1]
    assert ["val/router/stride_8/churn" in of_epoch for of_epoch in values(whole)] == [False, True, True]

    experiment = tiny_experiment(*IDLE_ROUTERS, output=tmp_path / "parts")
    validate = Trainer._validate

    def interrupt(trainer: Trainer) -> Any:
        if trainer.at.epoch == 2:
            raise KeyboardInterrupt
        return validate(trainer)

    monkeypatch.setattr(Trainer, "_validate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(experiment)
    assert collapse_events(experiment.run_folder) == []
    monkeypatch.setattr(Trainer, "_validate", validate)
    parts = train(experiment, resume="auto")
    assert values(parts) == values(whole)
    assert [event["epoch"] for event in collapse_events(parts)] == [2]

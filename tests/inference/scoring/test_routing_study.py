"""What a routing is worth, on cases whose answer is known."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from camox.checkpoints.store import write_checkpoint
from camox.data.habitats import Habitats
from camox.data.loading import EvalSet, eval_loader
from camox.errors import DataError
from camox.experiment import Experiment
from camox.inference.scoring import routing_study
from camox.inference.scoring.routing_study import (
    donors_of_other_kinds,
    donors_of_same_kind,
    exchanged,
    predict_routed,
    randomised,
    routing_by_kind,
    study_run,
)
from camox.measures.evaluator import Evaluator, ImageResult, Record
from camox.models.camoxpert import CamoXpert
from camox.models.router import Routing
from camox.training.trainer import Trainer

EXPERTS = ("texture", "edge", "contrast", "frequency")


def routing(selected, experts=4):
    """Of one scale: `selected` [n, r, k], with logits, probabilities and weights that tell the images apart."""
    selected = torch.as_tensor(selected)
    images, regions, top_k = selected.shape
    number = torch.arange(images, dtype=torch.float32)[:, None, None]
    logits, weights = number.expand(images, regions, experts), number.expand(images, regions, top_k)
    return Routing(logits, logits / 100, selected, weights / 100)


# ---- whose routing an image is given


@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=40), st.integers(0, 5))
def test_every_image_is_given_the_routing_of_another_kind_and_each_is_given_once(kinds, seed):
    if 2 * max(kinds.count(kind) for kind in kinds) > len(kinds):
        with pytest.raises(DataError, match="more than half"):
            donors_of_other_kinds(kinds, np.random.default_rng(seed))
        return
    donors = donors_of_other_kinds(kinds, np.random.default_rng(seed))
    assert sorted(donors) == list(range(len(kinds)))
    assert all(kinds[donor] != kind for donor, kind in zip(donors, kinds, strict=True))


def test_all_other_kinds_give():
    kinds = list("abcde") * 40
    donors = donors_of_other_kinds(kinds, np.random.default_rng(0))
    for kind in "abcde":
        given_by = {kinds[donor] for image, donor in enumerate(donors) if kinds[image] == kind}
        assert given_by == set("abcde") - {kind}


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(0, 5))
def test_the_control_gives_the_routing_of_another_image_of_the_same_kind(kinds, seed):
    donors = donors_of_same_kind(kinds, np.random.default_rng(seed))
    assert sorted(donors) == list(range(len(kinds)))
    for image, donor in enumerate(donors):
        assert kinds[donor] == kinds[image]
        assert donor != image or kinds.count(kinds[image]) == 1


def test_exchanged_routing_takes_choices_and_weights_with_all_regions():
    own = {8: routing([[[0, 1], [1, 2]], [[2, 3], [3, 0]], [[1, 3], [0, 2]]])}
    other = exchanged(own, np.array([2, 0, 1]))[8]
    assert other.selected.tolist() == [[[1, 3], [0, 2]], [[0, 1], [1, 2]], [[2, 3], [3, 0]]]
    assert other.weights[:, 0, 0].tolist() == pytest.approx([0.02, 0.0, 0.01])


def test_random_experts_are_all_alike_and_keep_the_weights():
    own = {4: routing(torch.zeros(600, 2, 2, dtype=torch.int64))}
    drawn = randomised(own, seed=0)[4]
    assert drawn.selected.shape == (600, 2, 2)
    assert (drawn.selected[..., 0] != drawn.selected[..., 1]).all()
    assert torch.equal(drawn.weights, own[4].weights)
    counts = torch.bincount(drawn.selected.flatten(), minlength=4)
    assert (counts - 600).abs().max() < 100  # five standard deviations


# ---- what choices tell of the kind


def test_choices_that_give_the_kind_away():
    kinds = ["forest"] * 50 + ["rock"] * 50
    trained = {4: routing([[[0, 1]]] * 50 + [[[2, 0]]] * 50)}
    untrained = {4: routing([[[0, 1]]] * 100)}
    found = routing_by_kind(trained, untrained, kinds, EXPERTS)
    scale = found["scales"]["4"]
    assert found["experts"] == list(EXPERTS)
    assert scale["usage"] == pytest.approx([0.5, 0.25, 0.25, 0.0])
    assert scale["usage_by_kind"] == {
        "forest": pytest.approx([0.5, 0.5, 0.0, 0.0]),
        "rock": pytest.approx([0.5, 0.0, 0.5, 0.0]),
    }
    assert scale["dead"] == 1
    assert scale["effective_experts"] == pytest.approx(2**1.5)
    assert scale["pair_share"] == pytest.approx(0.5)
    assert scale["information"] == pytest.approx(np.log(2) / 2)  # one of the two choices says it all
    assert scale["untrained"] == {"information": pytest.approx(0, abs=1e-12), "chance": pytest.approx(0, abs=1e-12)}
    assert scale["information_gained"] == pytest.approx(np.log(2) / 2 - scale["chance"])
    assert 0 < scale["chance"] < 0.05


def test_what_was_there_before_training_is_not_gained():
    kinds = ["forest"] * 20 + ["rock"] * 20
    same = {4: routing([[[0]]] * 20 + [[[1]]] * 20, experts=2)}
    scale = routing_by_kind(same, same, kinds, EXPERTS[:2])["scales"]["4"]
    assert scale["information"] == pytest.approx(np.log(2))
    assert scale["information_gained"] == 0
    assert scale["pair_share"] is None


def test_the_most_frequent_pair_is_counted_over_regions():
    pairs = {4: routing([[[0, 1], [2, 3]], [[1, 0], [3, 0]]])}
    scale = routing_by_kind(pairs, pairs, ["forest", "rock"], EXPERTS)["scales"]["4"]
    assert scale["pair_share"] == pytest.approx(0.5)


def test_an_expert_with_less_than_a_twentieth_of_an_equal_share_is_dead():
    mostly = {4: routing([[[0]]] * 200 + [[[1]]] * 3 + [[[2]]] * 2)}  # of 205 choices 51 to each would be equal
    scale = routing_by_kind(mostly, mostly, ["forest", "rock"] * 102 + ["rock"], EXPERTS)["scales"]["4"]
    assert scale["dead"] == 2  # the third and the fourth; the second has 0.0585 of an equal share


def test_regions_of_an_image_share_its_kind():
    kinds = ["forest", "rock"]
    regions = {4: routing([[[0], [1]], [[1], [1]]], experts=2)}
    scale = routing_by_kind(regions, regions, kinds, EXPERTS[:2])["scales"]["4"]
    assert scale["usage_by_kind"] == {"forest": [0.5, 0.5], "rock": [0.0, 1.0]}


# ---- what other choices cost


def record(index, group, iou, counts=True):
    return Record(index, str(index), group, ImageResult({"iou": iou} if counts else {}, {}, counts, counts))


def test_cost_is_the_mean_paired_difference_over_images_with_an_object():
    own, other = Evaluator("camox", ("iou",)), Evaluator("camox", ("iou",))
    own.extend([record(0, "a", 0.9), record(1, "a", 0.8), record(2, "b", 0.4), record(3, "b", 0.0, counts=False)])
    other.extend([record(0, "a", 0.6), record(1, "a", 0.7), record(2, "b", 0.6), record(3, "b", 0.0, counts=False)])
    assert routing_study._cost(own, other) == {
        "iou": pytest.approx(1.9 / 3),
        "cost": pytest.approx(0.2 / 3),
        "standard_error": pytest.approx(np.std([0.3, 0.1, -0.2], ddof=1) / 3**0.5),
        "images": 3,
        "cost_by_kind": {"a": pytest.approx(0.2), "b": pytest.approx(-0.2)},
    }


@pytest.fixture
def batches():
    dataset = EvalSet(Habitats(10, size=64, empty=0.0, tiny=0.0), 64)
    return [list(eval_loader(dataset, range(10), size, 0, False)) for size in (4, 3)]


@pytest.mark.parametrize("granularity", ["image", 2])
def test_routing_that_is_given_back_changes_nothing_in_whatever_batches(batches, granularity):
    torch.manual_seed(0)
    model = CamoXpert("resnet10t", width=8, granularity=granularity)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".scale" in name or ".gate." in name:  # experts that matter, choices that differ
                parameter.normal_()
    own, routed = predict_routed(model, batches[0], "cpu")
    assert {tuple(of_scale.selected.shape) for of_scale in routed.values()} == {
        (10, 1 if granularity == "image" else 4, 2)
    }
    again, routed_again = predict_routed(model, batches[1], "cpu", routed)
    assert routing_study._cost(own, again)["cost"] == pytest.approx(0, abs=1e-4)
    for stride, of_scale in routed.items():
        assert torch.equal(of_scale.selected, routed_again[stride].selected)
    # And the routing that is given is the one that is used.
    other, _ = predict_routed(model, batches[0], "cpu", randomised(routed, seed=1))
    assert [r.result.scalars["mae"] for r in other.results] != [r.result.scalars["mae"] for r in own.results]


def test_untrained_network_is_the_one_that_training_starts_from(tiny_experiment):
    experiment = tiny_experiment()
    trainer = Trainer(experiment, accelerator=Accelerator(cpu=True))
    torch.manual_seed(99)
    trainer._build()
    start, untrained = trainer.network.state_dict(), routing_study._untrained(experiment).state_dict()
    assert start.keys() == untrained.keys()
    assert all(torch.equal(value, untrained[name]) for name, value in start.items())


TEST_DATA = 'data.test=[{ synthetic = "habitats", count = 15, size = 64, seed = 7, empty = 0.0 }]'


def test_study_of_a_run(run_folder, override):
    override(TEST_DATA)
    study = study_run(run_folder)
    assert study["weights"].startswith("EMA weights")
    assert study["test"]["count"] == 15
    assert study["parameters"] == sum(p.numel() for p in CamoXpert("resnet10t", width=8).parameters())
    assert set(study["routing"]["scales"]) == {"4", "8", "16", "32"}
    assert set(study["counterfactual"]) == {"other_kind", "same_kind", "random"}
    for result in study["counterfactual"].values():
        assert result["iou"] == pytest.approx(study["test"]["iou"] - result["cost"])


def test_a_router_that_takes_all_experts_chooses_nothing(run_folder, override):
    override(TEST_DATA, "model.moe.top_k=2", 'model.moe.experts=["texture", "edge"]')
    experiment = Experiment.load(run_folder / "experiment.toml")
    model = CamoXpert.from_experiment(experiment)
    tensors = {"model": model.state_dict(), "ema": model.state_dict()}
    of_experiment = {"config": model.config, "experiment_fingerprint": experiment.fingerprint()}
    write_checkpoint(run_folder, "epoch_0001", tensors, state={}, measures={}, step=1, epoch=1, **of_experiment)
    study = study_run(run_folder)
    assert study["routing"] is None
    assert study["counterfactual"]["other_kind"]["images"] > 0


def test_study_needs_test_data_of_two_kinds(run_folder, override):
    with pytest.raises(DataError, match=r"add data\.test"):
        study_run(run_folder)
    override(TEST_DATA.replace("seed = 7", 'seed = 7, kinds = ["rock"]'))
    with pytest.raises(DataError, match="all of one kind"):
        study_run(run_folder)

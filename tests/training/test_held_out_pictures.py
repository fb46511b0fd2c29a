"""Which held-out images are shown and when, and that showing them changes nothing and costs no forward pass."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from camox.data.loading import EvalBatch, EvalSet
from camox.data.sources import open_training_sources
from camox.experiment.schema import Tracking, Validation
from camox.losses.composite import SegmentationObjective
from camox.measures.evaluator import ImageResult, Record
from camox.training import validation
from camox.training.held_out_pictures import TILE, captioned, draw_panels, shown_indices, with_routing
from camox.training.reporting import Reporter
from camox.training.run_state import Position
from camox.training.trainer import Trainer
from camox.training.validation import Validated, Validator
from tests.training.test_routing import network

SHOWN = (0, 2, 5)


def plan(images: int = 4, pictures_every: int = 5, validate_every: int = 1, epochs: int = 12, **tracking: Any) -> Any:
    tracking = {"wandb": "offline", "images": images, "images_every_epochs": pictures_every} | tracking
    return SimpleNamespace(
        epochs=epochs, validation=Validation(every_epochs=validate_every), tracking=Tracking(**tracking)
    )


def epochs_with_pictures(experiment: Any) -> list[int]:
    every, last = experiment.validation.every_epochs, experiment.epochs
    validated = [epoch for epoch in range(1, last + 1) if epoch % every == 0 or epoch == last]
    return [epoch for epoch in validated if shown_indices(experiment, 10, epoch)]


@pytest.mark.parametrize(
    ("pictures_every", "validate_every", "expected"),
    [(5, 1, [5, 10, 12]), (1, 1, list(range(1, 13))), (5, 2, [6, 10, 12]), (5, 7, [7, 12]), (20, 1, [12])],
)
def test_pictures_come_every_few_epochs_and_with_the_last(pictures_every, validate_every, expected):
    experiment = plan(pictures_every=pictures_every, validate_every=validate_every)
    assert epochs_with_pictures(experiment) == expected


@given(st.integers(1, 40), st.integers(1, 300))
def test_the_same_images_are_shown_each_time_spread_from_the_first_to_the_last(images, held_out):
    experiment = plan(images, pictures_every=1)
    shown = shown_indices(experiment, held_out, 1)
    assert shown == shown_indices(experiment, held_out, 12)
    assert len(set(shown)) == len(shown) == min(images, held_out)
    gaps = np.diff(shown)
    assert shown[0] == 0
    if len(shown) > 1:
        assert shown[-1] == held_out - 1
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("settings", [{"images": 0}, {"wandb": "disabled"}])
def test_nothing_is_drawn_that_nobody_takes(settings):
    assert epochs_with_pictures(plan(**settings)) == []
    assert epochs_with_pictures(plan(wandb="disabled", tensorboard=True)) == [5, 10, 12]


# ---- taken from the validation


@pytest.fixture(scope="module")
def held_out() -> Any:
    return open_training_sources([{"synthetic": "habitats", "count": 12, "size": 40, "empty": 0.0}], [], 0.5, 0)[1]


@pytest.fixture
def score(held_out, monkeypatch):
    """Scores as the last of several ranks sees it; what the others gave to the gather is kept from their own turn."""

    def score(built: Any, ranks: int = 1, shown: tuple[int, ...] = ()) -> Validated:
        given: list[Any] = []
        result = None
        for rank in range(ranks):
            accelerator: Any = SimpleNamespace(
                process_index=rank,
                num_processes=ranks,
                device=torch.device("cpu"),
                autocast=Accelerator(cpu=True).autocast,
            )
            monkeypatch.setattr(validation, "gather_object", lambda objects: given.extend(objects) or given)
            objective = SegmentationObjective({"structure": 1.0})
            validator = Validator(accelerator, EvalSet(held_out, 48), objective, ("s_measure", "mae"), 2, 0)
            result = validator.score(built, shown=shown)
        assert result is not None
        return result

    return score


def test_showing_changes_no_score_and_takes_no_forward_pass(score):
    built, passes = network(), []
    built.register_forward_hook(lambda *_: passes.append(1))
    plain = score(built)
    without = len(passes)
    shown = score(built, shown=SHOWN)
    assert len(passes) == 2 * without
    assert shown[:1] == plain[:1]
    assert shown.images == plain.images
    assert plain.pictures == {}
    assert len(shown.pictures) == len(SHOWN)


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_together_show_what_one_shows(score, ranks):
    built = network()
    alone, together = score(built, shown=SHOWN).pictures, score(built, ranks, SHOWN).pictures
    assert list(together) == list(alone)
    for name, picture in alone.items():
        assert together[name].caption == picture.caption
        # The rest of the batch is another one, and sums over it another order.
        assert np.abs(together[name].pixels.astype(int) - picture.pixels).max() <= 2


def test_a_panel_is_of_its_own_image_and_its_caption_tells_name_and_score(score, held_out):
    pictures = score(network(), shown=SHOWN).pictures
    assert list(pictures) == [
        f"predictions/{number:02d}_{held_out.names[index]}" for number, index in enumerate(SHOWN, start=1)
    ]
    for picture, index in zip(pictures.values(), SHOWN, strict=True):
        assert picture.caption.startswith(f"{held_out.names[index]}: IoU 0.")
        truth = picture.pixels[-TILE:, TILE + 4 : 2 * TILE + 4, 0] > 127
        assert abs(truth.mean() - held_out[index].mask.mean()) < 0.01
        assert picture.pixels.shape[1] == 5 * TILE + 4 * 4


def test_a_photograph_has_its_own_shape_and_nothing_that_was_padded_is_shown():
    """An image of 40² is padded to 64²; what the network says of the padding must not be seen."""
    boundary = torch.full((2, 1, 16, 16), 20.0)
    boundary[:, :, :10, :10] = -20.0
    output: Any = SimpleNamespace(
        logits=torch.full((2, 1, 40, 40), -20.0), uncertainty=torch.zeros(2, 1, 40, 40), boundary=boundary
    )
    truths = [np.zeros((30, 90), np.uint8), np.zeros((3000, 2000), np.uint8)]
    images = torch.full((2, 3, 40, 40), 200, dtype=torch.uint8)
    batch = EvalBatch(images, truths, ["wide", "large"], ["", ""], torch.tensor([7, 3]), [])
    (first, wide), (second, large) = draw_panels(output, batch, [3, 7, 9])
    assert (first, second) == (7, 3)
    caption = 18
    for panel, (height, width) in ((wide, (round(TILE / 3), TILE)), (large, (TILE, round(TILE / 1.5)))):
        assert panel.shape[0] == caption + height
        assert (panel[caption:, :width] == 200).all()
        assert (panel[caption:, -width:] == 0).all()


def test_an_image_without_an_object_has_no_iou_to_tell():
    empty = Record(4, "bare", "", ImageResult({"false_positive_area": 0.0125}, {}, has_object=False, counts=False))
    (picture,) = captioned([(4, np.zeros((2, 2, 3), np.uint8))], [empty]).values()
    assert picture.caption == "bare: no object, 1.2% called one"


@pytest.mark.parametrize(("mode", "drawn"), [("sparse", True), ("dense", True), ("random", True), ("static", False)])
def test_what_routers_choose_is_shown_beside_the_panels(score, mode, drawn):
    built = network(mode=mode)
    scored = score(built, shown=SHOWN)
    pictures = with_routing(scored.pictures, scored.routed, built)
    assert ("router/choices" in pictures) == drawn
    assert set(scored.pictures) <= set(pictures)
    assert with_routing({}, scored.routed, built) == {}


def test_pictures_are_drawn_only_for_a_tracker_that_takes_them(capsys):
    scores: dict[str, dict[str, Any]] = {"val": {"iou": 0.5, "groups": {}, "empty": {"count": 0}}}
    phase: Any = SimpleNamespace(name="full", epochs=1, start=0, end=1)
    reporter, drawn = Reporter([phase], active=False), []
    reporter.validated(scores, {}, Position(step=2, epoch=1), lambda: drawn.append(1) or {})
    assert drawn == []


# ---- whatever is wrong with a picture, the run is sound


def fail(*arguments: Any, **named: Any) -> Any:
    raise RuntimeError("no such colour")


def test_a_panel_that_cannot_be_drawn_takes_no_score_with_it_on_any_rank(score, monkeypatch):
    built = network()
    plain = score(built)
    monkeypatch.setattr("camox.training.held_out_pictures.prediction_panel", fail)
    for ranks in (1, 2):
        shown = score(built, ranks, SHOWN)
        assert shown.summary["mae"] == pytest.approx(plain.summary["mae"])
        assert shown.pictures == {}
        assert shown.undrawn == "RuntimeError: no such colour"


@pytest.mark.parametrize(
    "broken",
    [
        "camox.training.held_out_pictures.prediction_panel",
        pytest.param("camox.training.validation.captioned", marks=pytest.mark.slow),
        pytest.param("camox.training.held_out_pictures.draw_choices", marks=pytest.mark.slow),
        "camox.tracking.trackers.Trackers.show",
    ],
)
def test_a_run_whose_pictures_fail_says_so_once_and_finishes(tiny_experiment, monkeypatch, capsys, broken):
    monkeypatch.setattr(broken, fail)
    experiment = tiny_experiment("tracking.tensorboard=true", "tracking.images=2", "tracking.images_every_epochs=1")
    Trainer(experiment).run()
    run = experiment.run_folder
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    said = [line for line in lines if line["severity"] != "info"]
    assert [line["kind"] for line in said] == ["tracking"]
    assert "no such colour" in said[0]["message"]
    assert "no more pictures" in said[0]["message"]
    assert " ".join(capsys.readouterr().err.split()).count("no more pictures") == 1

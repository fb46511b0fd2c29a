"""Which weights count as the better ones."""

import pytest

from camox.training.run_state import better_weights

NAN = float("nan")


@pytest.mark.parametrize(
    ("raw", "ema", "monitor", "expected"),
    [
        (0.5, 0.6, "iou", ("ema", 0.6)),
        (0.6, 0.5, "iou", ("raw", 0.6)),
        (0.02, 0.05, "mae", ("raw", 0.02)),
        (NAN, 0.1, "iou", ("ema", 0.1)),
        (0.1, NAN, "iou", ("raw", 0.1)),
        (NAN, NAN, "iou", ("raw", None)),
        (None, None, "iou", ("raw", None)),
    ],
)
def test_the_better_score_wins_and_nan_never_does(raw, ema, monitor, expected):
    assert better_weights({"val": {monitor: raw}, "val_ema": {monitor: ema}}, monitor) == expected


def test_without_an_average_or_a_validation():
    assert better_weights({"val": {"iou": 0.3}}, "iou") == ("raw", 0.3)
    assert better_weights({}, "iou") == ("raw", None)

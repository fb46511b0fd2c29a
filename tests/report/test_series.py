import math

from hypothesis import given
from hypothesis import strategies as st

from camox.report.series import rounded, thinned


@given(st.lists(st.floats(allow_infinity=False), max_size=400), st.integers(4, 50))
def test_few_points_show_the_ends_and_every_peak(values, most):
    steps = list(range(0, 3 * len(values), 3))
    kept, shown = thinned(steps, values, most)
    assert len(kept) <= max(most, min(len(values), most))
    assert kept == sorted(set(kept))
    assert set(kept) <= set(steps)
    assert [rounded(values[step // 3]) for step in kept] == shown
    finite = [value for value in values if math.isfinite(value)]
    if values:
        assert (kept[0], kept[-1]) == (steps[0], steps[-1])
    if finite:
        drawn = [value for value in shown if value is not None]
        assert (min(drawn), max(drawn)) == (rounded(min(finite)), rounded(max(finite)))


def test_a_single_peak_is_never_thinned_away():
    values = [0.0] * 5000
    values[3217] = 9.0
    steps, kept = thinned(list(range(5000)), values, 100)
    assert len(steps) <= 100
    assert kept[steps.index(3217)] == 9.0

"""Suite `scaling`: what is made of turns, and the whole suite at its smallest."""

import json

import pytest

from benchmark import main
from benchmarking import scaling
from benchmarking.timing import Sample


def test_a_turn_takes_as_long_as_its_slowest_process_and_the_time_of_all(monkeypatch):
    class Process:
        def __init__(self, answer):
            self.stdin = self.stdout = self
            self.answer, self.told = answer, ""

        def write(self, text):
            self.told += text

        def flush(self):
            pass

        def readline(self):
            return self.answer

        def wait(self):
            return 7

    group = [Process(f'{{"process": {p}, "wall": {w}, "parameters": 9}}\n') for p, w in ((1, 5), (2, 4))]
    assert scaling._turn(group, {"steps": 4}) == (Sample(3, 5, None), 9)
    assert [process.told for process in group] == ['{"steps": 4}\n'] * 2
    with pytest.raises(RuntimeError, match="ended with code 7"):
        scaling._turn([Process("")], {})


def test_images_per_second_are_those_of_all_processes():
    row = scaling._row(scaling.TWO, [Sample(9, 2, None), Sample(9, 4, None), Sample(9, 8, None)], batch=16)
    assert row["images_per_second"] == {"median": 4, "least": 2, "most": 8}
    assert "images_per_second" not in scaling._row(scaling.EXCHANGE, [Sample(9, 2, None)], batch=16)


def test_the_exchange_is_what_steps_with_it_take_longer():
    samples = {scaling.TWO: [Sample(0, 4, None)], scaling.APART: [Sample(0, 3, None)]}
    assert scaling._share(samples)["median"] == 0.25


def test_images_that_two_processes_cannot_share_are_one_message(capsys):
    assert main(["scaling", "--batch", "3"]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "give an even number" in error


@pytest.mark.slow
@pytest.mark.distributed
def test_the_whole_suite(tmp_path):
    file = tmp_path / "scaling.json"
    sizes = ["--backbone", "resnet10t", "--width", "8", "--image-size", "64", "--batch", "2", "--rounds", "1"]
    assert main(["scaling", *sizes, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    for title in ("quickstart", "resnet10t, 64²"):
        steps = found["results"][title]
        assert all(row["wall_seconds"]["median"] > 0 for row in steps.values())
        gradients = found["results"]["gradients"][title]
        assert gradients["exchanged_bytes"] == pytest.approx(4e6 * gradients["parameters_millions"])
        one, two = (steps[name]["wall_seconds"]["median"] for name in (scaling.ONE, scaling.TWO))
        measured = found["ratios"]["wall time"][f"{title}: two processes / one process"]["median"]
        assert measured == pytest.approx(two / one, rel=1e-3)
    assert len(found["targets"]) == 2

"""What the benchmark counts, against what can be counted by hand, and both suites of networks at toy size."""

import dataclasses
import io
import json
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmark import SUITES, main
from benchmarking import counters, cuda, loop, report, step, timing
from benchmarking.counters import count_calls, multiply_adds, parameter_count
from benchmarking.moe import Mixtures
from benchmarking.networks import VARIANTS, build_network
from benchmarking.report import Report, Target, quotient
from benchmarking.settings import Settings
from benchmarking.timing import Sample, added_up, interleaved, ratio, spread
from camox.models.costs import expert_costs

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark.py"
CPU = torch.device("cpu")
TOY = Settings(backbone="resnet10t", image_size=64, batch=2, width=8, rounds=1)


# ---- counters


def test_multiply_adds_of_a_convolution_and_a_linear_layer():
    convolution, linear = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(7, 11)
    assert multiply_adds(lambda: convolution(torch.zeros(2, 3, 4, 6))) == 2 * (4 * 6) * (3 * 5 * 9)
    assert multiply_adds(lambda: linear(torch.zeros(2, 7))) == 2 * 7 * 11


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 4)
    assert parameter_count(nn.Sequential(layer, layer)) == 3 * 4 + 4


@pytest.mark.parametrize(
    ("read", "copies"),
    [
        (lambda x: x + 1, 0),
        (lambda x: x[torch.tensor([2, 0])], 0),
        (lambda x: torch.where(x > 1, x, 0), 0),
        (lambda x: nn.functional.one_hot(x, 4), 0),
        (lambda x: x.repeat_interleave(2), 0),
        (lambda x: x.cpu(), 0),
        (lambda x: x[0].item(), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: float(x[0]) + float(x[1]), 2),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu().tolist(), 1),
        (lambda x: x.to("cpu", non_blocking=True).numpy(), 1),
        (lambda x: [int(value) for value in x], 3),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x.masked_select(x > 1), 1),
        (lambda x: x.unique(), 1),
        (lambda x: x.bincount(), 1),
        (lambda x: x.repeat_interleave(x), 1),
        (lambda x: x.repeat_interleave(x, output_size=6), 0),
    ],
)
def test_host_copies_on_a_cpu(read, copies):
    x = torch.tensor([1, 2, 3])
    with count_calls(CPU) as calls:
        read(x)
    assert calls.host_copies == copies


def test_one_hot_that_has_to_look_for_its_size_reads():
    with count_calls(CPU) as calls:
        nn.functional.one_hot(torch.tensor([1, 2, 3]))
    assert calls.host_copies > 0


def test_operators_below_autograd():
    x = torch.ones(3, requires_grad=True)
    with count_calls(CPU) as calls:
        (x * 2).sum()
    assert calls.operators == 2


# ---- networks


def test_the_loop_over_images_gives_what_the_sorted_dispatch_gives():
    images = torch.rand(3, 3, 64, 64)
    outputs = []
    for name in ("sparse", "per_image_loop"):
        network = build_network(name, TOY)
        torch.manual_seed(5)  # the routing's noise
        outputs.append(network(images))
    ours, rival = outputs
    assert len({tuple(pair) for routing in ours.routing.values() for pair in routing.selected.tolist()}) > 1
    torch.testing.assert_close(ours.logits, rival.logits, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(output.logits.sum(), output.routing[4].weights)[0] for output in outputs]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["sparse", "masked", "dense", "static", "per_image_loop"])  # random looks at pixels
def test_mixtures_alone_give_what_they_give_in_the_network(name):
    network = build_network(name, TOY)
    before: dict[str, torch.Tensor] = {}
    after: dict[str, torch.Tensor] = {}
    for stride, mixture in network.mixtures.items():

        def watch(module, inputs, output, stride=stride):
            before[stride], after[stride] = inputs[0], output

        mixture.register_forward_hook(watch)
    features: list[torch.Tensor] = []
    network.backbone.register_forward_hook(lambda module, inputs, output: features.extend(output))
    torch.manual_seed(5)
    network(torch.rand(2, 3, 64, 64))
    expected = list(after.values())
    torch.manual_seed(5)
    torch.rand(2, 3, 64, 64)  # moves the generator to where routing began
    found = Mixtures(network)(features, list(before.values()))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_variants_start_from_the_same_backbone():
    states = [build_network(name, TOY).backbone.state_dict() for name in ("sparse", "static", "no_experts")]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in states[0])
    assert set(VARIANTS) >= {"sparse", "dense", "static", "random", "no_experts", "per_image_loop"}


# ---- timing and report


def test_rounds_are_interleaved_rotated_and_seeded_alike():
    seen = []
    works = {name: (lambda name=name: seen.append((name, torch.rand(()).item()))) for name in "ABC"}
    samples = interleaved(works, 4, CPU)
    met, timed = seen[:9], seen[9:]
    assert "".join(name for name, _ in seen) == 3 * "ABC" + "ABC" + "BCA" + "CAB" + "ABC"
    drawn = [{value for _, value in timed[start : start + 3]} for start in range(0, 12, 3)]
    assert all(len(values) == 1 for values in drawn)
    assert len(set.union(*drawn)) == 3
    assert set.union(*drawn) == {value for _, value in met}  # nothing is timed that was not run before
    assert {name: len(found) for name, found in samples.items()} == {"A": 4, "B": 4, "C": 4}


def test_calls_one_after_another_add_up():
    assert added_up([Sample(1, 2, None), Sample(3, 4, None)]) == Sample(4, 6, None)
    assert added_up([Sample(1, 2, 5.0), Sample(3, 4, 6.0)]) == Sample(4, 6, 11.0)


def test_ratios_are_taken_round_by_round():
    # The second round was slow for both: the ratio of medians would be 0.3.
    ours = [Sample(1, 9, None), Sample(30, 9, None), Sample(3, 9, None)]
    theirs = [Sample(2, 1, None), Sample(60, 1, None), Sample(10, 1, None)]
    assert ratio(ours, theirs) == {"median": 0.5, "least": 0.3, "most": 0.5}
    assert ratio(ours, theirs, 0.25)["median"] == 0.125
    assert spread([1.0, 4.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 4.0}


def test_a_gpu_is_timed_by_its_own_clock():
    ours, theirs = [Sample(100, 100, 1.0)], [Sample(1, 1, 2.0)]
    assert ratio(ours, theirs)["median"] == 0.5


@pytest.mark.parametrize(("judged", "met"), [(True, [True, False]), (False, [None, None])])
def test_targets_say_whether_they_are_met_where_they_are_judged(judged, met):
    rows = {"sparse": {"bytes": 3}, "dense": {"bytes": 4}}
    targets = [Target("a", 0.75, quotient(rows, "bytes", "sparse", "dense")), Target("b", 1, 1.01)]
    assert [target["met"] for target in Report({}, {}, targets, judged).plain()["targets"]] == met


def test_targets_are_stated_for_the_default_settings_on_a_cpu():
    assert Settings().of_targets
    others = {"device": "cuda", "backbone": "resnet10t", "image_size": 384, "batch": 8, "width": 64, "rounds": 3}
    assert not any(Settings(**{key: value}).of_targets for key, value in (others | {"precision": "bf16"}).items())


def wide_document():
    """One table of each kind, with as many columns as there are anywhere, and no figure twice."""
    numbers = iter(range(100, 1000))
    names = ("sparse", "per_image_loop", "res2net50_26w_4s")
    figures = [*report._HEADINGS, "stride 4", "stride 8", "stride 16", "stride 32"]
    rows = {name: {figure: float(next(numbers)) for figure in figures} for name in names}
    for row in rows.values():
        row |= {"saved_bytes": next(numbers) * 1_000_000, "peak_bytes": next(numbers) * 1_000_000}
    spreads = {f"sparse / {name}": dict.fromkeys(("median", "least", "most"), 0.0) for name in names[1:]}
    for spread_of_pair in spreads.values():
        spread_of_pair.update((key, float(next(numbers))) for key in spread_of_pair)
    targets = [Target("step time, sparse / no_experts", next(numbers), next(numbers)), Target("GMAC", 14, 13.5)]
    return Report({"backbones alone": rows}, {"step time": spreads}, targets, judged=True).plain()


def shown(document, width):
    """The lines on a screen of this width."""
    stream = io.StringIO()
    report.show(document, Console(file=stream, width=width))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_figure_is_lost_on_a_narrow_screen(width):
    document = wide_document()
    lines = shown(document, width)
    assert max(map(len, lines)) <= width
    found = Counter(word for line in lines for word in line.split())
    for name, row in document["results"]["backbones alone"].items():
        of_row = [word for line in lines if line.split()[:1] == [name] for word in line.split()[1:]]
        figures = [value * (1e-6 if figure.endswith("_bytes") else 1) for figure, value in row.items()]
        assert of_row == [f"{figure:.3g}" for figure in figures]  # in order, each beside its row's name
    for pair in document["ratios"]["step time"].values():
        assert all(found[f"{value:.3g}"] == 1 for value in pair.values())
    for target in document["targets"]:
        assert all(found[f"{target[key]:.3g}"] == 1 for key in ("at_most", "measured"))
    assert (found["yes"], found["no"]) == (1, 1)
    assert sum(line.split()[:2] == ["backbones", "alone"] for line in lines) >= (1 if width == 200 else 2)


def test_a_table_that_fits_is_one(results):
    document = json.loads(results.read_text())
    assert sum("sparse" in line for line in shown(document, 200)) == 2  # its row and its ratio


@pytest.mark.parametrize("suite", ["step", "moe"])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_measured_results_are_shown_whole(suite, width):
    document = json.loads((SCRIPT.parents[1] / "benchmarks" / "results" / f"{suite}.json").read_text())
    found = Counter(word for line in shown(document, width) for word in line.split())
    asked = Counter(cell for section in report._tables(document) for line in section.lines[1:] for cell in line[1:])
    assert all(found[cell] >= times for cell, times in asked.items() if cell and cell[0].isdigit())


# ---- what needs a GPU, with torch.cuda played by hand


@pytest.fixture
def sync_modes(monkeypatch):
    """The modes that were set, in order."""
    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


MESSAGE = "called a synchronizing CUDA operation"


def test_waits_are_counted_per_step_and_the_mode_is_put_back(sync_modes):
    def step():
        if sync_modes:
            warnings.warn(MESSAGE, stacklevel=1)
            warnings.warn("something else", stacklevel=1)
            warnings.warn(MESSAGE, stacklevel=1)

    assert cuda.waits(step) == 2
    assert cuda.waits(lambda: None) == 0
    assert sync_modes == ["warn", "default", "warn", "default"]


def test_the_first_wait_is_reported_and_other_errors_are_raised(sync_modes):
    def waiting():
        if sync_modes and sync_modes[-1] == "error":
            raise RuntimeError(MESSAGE)

    assert cuda.first_wait(lambda: None) is None
    assert cuda.first_wait(waiting) == MESSAGE
    assert sync_modes == ["error", "default"] * 2

    def broken():
        if sync_modes[-1] == "error":
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cuda.first_wait(broken)
    assert sync_modes[-1] == "default"


# ---- the command


def measure(suite: str, file: Path, monkeypatch) -> dict:
    """What the suite writes at toy size, with one routing per count instead of several."""
    monkeypatch.setattr(counters, "DRAWS", 1)
    for module in (timing, loop):
        monkeypatch.setattr(module, "ROUTINGS", 1)
    monkeypatch.setattr(step, "BACKBONES", {"resnet10t": "some network"})
    sizes = {"--backbone": "resnet10t", "--width": 8, "--image-size": 64, "--batch": 2, "--rounds": 1}
    assert main([suite, "--json", str(file), *(str(word) for pair in sizes.items() for word in pair)]) == 0
    return json.loads(file.read_text())


@pytest.mark.slow
def test_step_measures_every_variant(tmp_path, monkeypatch, capsys):
    found = measure("step", tmp_path / "step.json", monkeypatch)
    assert found["command"].startswith(f"python tools/benchmark.py step --json {tmp_path}")
    assert {"processor", "cores", "system", "threads"} <= found["machine"].keys()
    assert found["versions"].keys() == {"python", "torch", "timm", "camox"}
    assert found["settings"]["image_size"] == 64
    head = ["git", "-C", str(SCRIPT.parent), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
    assert found["git_commit"] == (commit or None)

    networks = found["results"]["networks"]
    assert list(networks) == ["sparse", "dense", "static", "random", "no_experts", "per_image_loop"]
    for row in networks.values():
        assert row["process_seconds"]["median"] > 0
        assert row["wall_seconds"]["median"] > 0
        assert row["units_per_image"]["median"] > 0
    copies = {name: row["host_copies_per_forward"] for name, row in networks.items()}
    # 2 images, 2 choices, 4 scales
    assert copies == {"sparse": 1, "dense": 0, "static": 0, "random": 1, "no_experts": 0, "per_image_loop": 16}
    for figure in ("gmac_per_image", "saved_bytes", "operators_per_forward"):
        without, sparse, dense = (networks[name][figure] for name in ("no_experts", "sparse", "dense"))
        assert without < sparse < dense, figure
    millions = {name: row["parameters_millions"] for name, row in networks.items()}
    assert millions["no_experts"] < millions["static"] < millions["random"] < millions["sparse"] == millions["dense"]
    assert networks["per_image_loop"]["gmac_per_image"] == pytest.approx(networks["sparse"]["gmac_per_image"], rel=1e-3)

    others = {name for name in networks if name != "sparse"} | {"resnet10t"}
    assert set(found["ratios"]["step time"]) == {f"sparse / {name}" for name in others}
    assert found["results"]["backbones alone"]["resnet10t"]["units_per_image"]["median"] > 0
    assert found["ratios"]["saved bytes"]["sparse / dense"] < 1
    trainer, bare = (found["results"]["loops"][name]["process_seconds"]["median"] for name in ("trainer", "bare"))
    assert found["ratios"]["loop time"]["trainer / bare"]["median"] == pytest.approx(trainer / bare, rel=1e-3)
    measured = {target["what"]: target["measured"] for target in found["targets"]}
    assert len(measured) == 9
    assert measured["sparse, host copies per forward"] == 1
    assert {target["met"] for target in found["targets"]} == {None}  # stated for other settings
    assert "sparse / per_image_loop" in capsys.readouterr().out


def test_moe_measures_mixtures_and_every_expert(tmp_path, monkeypatch):
    found = measure("moe", tmp_path / "results" / "moe.json", monkeypatch)
    mixtures, experts = found["results"]["mixtures"], found["results"]["experts"]
    copies = {name: row["host_copies_per_forward"] for name, row in mixtures.items()}
    assert copies == {"sparse": 1, "masked": 0, "dense": 0, "static": 0, "random": 1, "per_image_loop": 16}
    assert {"texture", "edge", "contrast", "frequency", "attention", "semantic"} <= experts.keys()
    assert all(row["gmac_per_image"] > 0 and row["host_copies_per_forward"] == 0 for row in experts.values())
    for name, row in experts.items():
        at_scales = [row[f"stride {stride}"] for stride in (4, 8, 16, 32)]
        assert sum(at_scales) == pytest.approx(row["process_seconds"]["median"], rel=1e-3), name  # one round
        pixels = sum((64 // stride) ** 2 for stride in (4, 8, 16, 32))
        assert row["gmac_per_image"] == pytest.approx(expert_costs([name], 8)[name] * pixels / 1e9, rel=0.3)
    assert mixtures["sparse"]["gmac_per_image"] < mixtures["masked"]["gmac_per_image"]
    assert set(found["ratios"]) == {"time", "operators", "expert time", "expert GMAC"}
    assert len(found["targets"]) == 3


@pytest.fixture
def results(tmp_path):
    """A results file with one row, one ratio and one target."""
    rows = {"sparse": {"process_seconds": spread([1.0, 2.0, 6.0]), "saved_bytes": 3_000_000}}
    found = Report({"networks": rows}, {"step time": {"sparse / dense": 0.5}}, [Target("GMAC", 14, 15.0)], judged=True)
    document = {
        "command": "python tools/benchmark.py step",
        "machine": {"processor": "a processor", "threads": 2},
        "versions": {"torch": "2.15"},
        "settings": {"backbone": "resnet10t", "image_size": 64, "batch": 2, "precision": "fp32", "rounds": 3},
        **found.plain(),
    }
    file = tmp_path / "results.json"
    file.write_text(json.dumps(document))
    return file


def test_results_become_tables_of_a_page_and_nothing_else_of_it_changes(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- step -->\nold\n<!-- /step -->\nafter\n")
    assert main(["step", "--from", str(results), "--markdown", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- step -->\nresnet10t, 64², batch 2")
    assert text.endswith("<!-- /step -->\nafter\n")
    assert "| sparse | 2 | 3 |" in text  # the median of the seconds, megabytes
    assert "| GMAC | 14 | 15 | no |" in text
    assert "old" not in text


def test_results_of_another_suite_replace_no_tables(results, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- moe -->\nold\n<!-- /moe -->\n")
    assert main(["moe", "--from", str(results), "--markdown", str(page)]) == 2
    assert "holds results of step, not of moe" in capsys.readouterr().err
    assert "old" in page.read_text()


def test_a_page_without_a_place_for_the_tables_is_left_alone(results, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("no markers\n")
    assert main(["step", "--from", str(results), "--markdown", str(page)]) == 2
    assert "put the lines <!-- step --> and <!-- /step -->" in capsys.readouterr().err
    assert page.read_text() == "no markers\n"


def test_every_suite_is_on_the_page_and_in_the_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    page, text = (SCRIPT.parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8"), capsys.readouterr().out
    for suite in SUITES:
        assert f"| `{suite}` |" in page
        assert f"`{suite}`" in text


def test_page_and_help_agree_which_suites_are_judged_by_wall_time(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    page = (SCRIPT.parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for text in (page, capsys.readouterr().out):
        (named,) = re.findall(r"by wall time:\s+suites ([^.]*?), and", text)
        assert set(re.findall(r"`(\w+)`", named)) == {"checkpoint", "inspect", "scaling", "startup"}


def test_help_names_the_defaults(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Settings):
        assert re.search(rf"--{field.name.replace('_', '-')} [^(]*\(default: {field.default}\)", text), field.name


OTHERS = {
    "[]": "holds no results",
    "3": "holds no results",
    "": "cannot be read as results",
    "{}": "holds no results of tools/benchmark.py",
    '{"command": ["step"]}': "holds no results of tools/benchmark.py",
    '{"command": "python tools/benchmark.py step"}': "cannot be read as results of step",
    '{"command": "python tools/benchmark.py step", "results": [], "ratios": {}, "targets": []}': "cannot be read as",
}


@pytest.mark.parametrize("content", OTHERS)
def test_what_holds_no_results_is_one_message(content, tmp_path, capsys):
    file, page = tmp_path / "results.json", tmp_path / "page.md"
    file.write_text(content)
    page.write_text("<!-- step -->\nold\n<!-- /step -->\n")
    for options in ([], ["--markdown", str(page)]):
        assert main(["step", "--from", str(file), *options]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"error: {file}: {OTHERS[content]}")
        assert captured.err.count("\n") == 1
    assert "old" in page.read_text()


def test_results_of_an_ablation_are_none_of_a_benchmark(capsys):
    file = SCRIPT.parents[1] / "benchmarks" / "results" / "ablation.json"
    assert main(["step", "--from", str(file)]) == 2
    assert "holds no results of tools/benchmark.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--device", "cuda"], "--device cuda: torch finds no CUDA device"),
        (["inspect", "--device", "cuda"], "suite inspect reads files"),
        (["step", "--precision", "fp16"], "--precision fp16 needs --device cuda"),
        (["step", "--markdown", "page.md"], "--markdown needs --from FILE"),
        (["step", "--batch", "0"], "argument --batch: '0' is not a whole number of 1 or more"),
        (["step", "--batch", "x"], "argument --batch: 'x' is not a whole number of 1 or more"),
        (["step", "--threads", "1.5"], "argument --threads: '1.5' is not a whole number of 1 or more"),
        (["step", "--rounds", "-1"], "argument --rounds: '-1' is not a whole number of 1 or more"),
    ],
)
def test_what_this_machine_cannot_measure_is_refused(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "inspect" in arguments)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "precision"),
    [
        (["options", "--device", "cuda"], "fp16"),
        (["options", "--device", "cuda", "--precision", "fp32"], "fp32"),
        (["options"], "fp32"),
        (["step", "--device", "cuda"], "fp32"),
    ],
)
def test_options_on_a_gpu_are_measured_in_the_recipes_precision(arguments, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(SUITES, arguments[0], lambda settings: Report({}, {}, [], True))
    monkeypatch.setattr(cuda, "card", lambda device: {})
    monkeypatch.setattr(cuda, "versions", dict)
    file = tmp_path / "new.json"
    assert main([*arguments, "--json", str(file)]) == 0
    assert json.loads(file.read_text())["settings"]["precision"] == precision


@pytest.mark.slow
def test_the_script_works_from_any_folder_and_a_wrong_backbone_is_one_message(tmp_path):
    command = [sys.executable, SCRIPT, "moe", "--backbone", "resnet10"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith('error: model.backbone = "resnet10" is not known')
    assert finished.stderr.count("\n") == 1

"""What the page holds, by its text and its figures."""

import csv
import json
import math
import re

import pytest

from camox.report.gallery import Examined
from camox.report.page import render
from camox.report.run import read_run
from tests.report.conftest import TEST_IMAGES, event, figures_of

NONE = Examined(trouble="No predictions.")


def page_of(*folders):
    return render([read_run(folder) for folder in folders], [NONE] * len(folders))


@pytest.fixture(scope="module")
def finished(trained):
    return (trained / "report.html").read_text()


def test_a_finished_run_has_a_page_that_answers(finished):
    assert "Finished" in finished
    assert "frozen: from step 1 (epoch 1)" in finished
    assert "full: from step 3 (epoch 2)" in finished
    assert "Selected on: held-out 34% of the training data, seed 3" in finished
    assert "Which image is worst?" in finished
    assert "Did a router collapse?" in finished
    assert f"The model was run on all {TEST_IMAGES} images." in finished


def test_the_plots_show_what_was_logged(finished, trained):
    figures = figures_of(finished)
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    drawn = figures["loss"]["data"][0]
    assert drawn["x"] == list(losses)
    assert drawn["y"] == pytest.approx(list(losses.values()), rel=1e-4)
    assert {"timeline_0", "terms", "val_iou", "lr", "norms", "router_norm", "skips", "images", "wait"} <= figures.keys()
    assert {f"usage_{stride}" for stride in (4, 8, 16, 32)} <= figures.keys()
    assert {f"groups_0_{stride}" for stride in (4, 8, 16, 32)} <= figures.keys()
    assert [line["name"] for line in figures["val_iou"]["data"]] == ["raw weights", "EMA weights"]


def test_every_curve_has_the_boundary_of_the_phases(finished):
    for key, figure in figures_of(finished).items():
        if not key.startswith("groups_"):
            lines = [shape for shape in figure["layout"]["shapes"] if shape["type"] == "line"]
            assert [line["x0"] for line in lines] == [2], key


def test_clipping_limits_are_those_of_the_experiment(write_run):
    rows = [{"step": 1, "epoch": 0, "phase": "full", "grad_norm/total": 1.0, "grad_norm/router": 0.1}]
    figures = figures_of(page_of(write_run("optimizer.clip=0.3", "optimizer.router_clip=0.07", rows=rows)))
    assert figures["norms"]["data"][-1]["y"] == [0.3, 0.3]
    assert figures["router_norm"]["data"][-1]["y"] == [0.07, 0.07]


def _with_routers(step):
    measures = {"pair_share": 0.4, "entropy": 1.2, "mutual_information": 0.1, "usage/texture": 0.5, "usage/edge": 0.5}
    values = {f"val/router/stride_4/{name}": value for name, value in measures.items()}
    return {"step": step, "epoch": 0, "phase": "full", "val/count": 64, "val/iou": 0.5, **values}


def test_limits_of_collapse_are_those_of_the_run(write_run, monkeypatch):
    monkeypatch.setattr("camox.measures.collapse.INFORMATION_BELOW", 0.0625)
    monkeypatch.setattr("camox.measures.collapse.PAIR_SHARE_ABOVE", 0.75)
    two = page_of(write_run(rows=[_with_routers(10)], name="two"))
    four = ["model.moe.experts=['texture', 'edge', 'contrast', 'semantic']", "model.moe.top_k=3"]
    one = page_of(write_run(*four, rows=[_with_routers(10)], name="one"))
    lines = [
        {key: of["data"][1]["y"][0] for key in ("pair_share", "entropy", "mutual_information")
         if len((of := figures_of(page)[f"router_{key}"])["data"]) > 1}
        for page in (two, one)
    ]  # fmt: skip
    assert lines[0] == {"pair_share": 0.75, "entropy": pytest.approx(math.log(3)), "mutual_information": 0.0625}
    assert lines[1] == {"entropy": pytest.approx(math.log(2)), "mutual_information": 0.0625}
    assert "one pair with more than 75 % of" in two
    assert "fewer than 3 experts in effect" in two
    assert "less than 0.0625 nat" in two
    assert "one pair with more than" not in one
    assert "fewer than 2 experts in effect" in one


def test_where_no_router_selects_there_is_no_limit_of_collapse(write_run):
    figures = figures_of(page_of(write_run("model.moe.mode=dense", rows=[_with_routers(10)])))
    assert len(figures["router_mutual_information"]["data"]) == 1


def test_shares_of_a_group_sum_to_one(finished):
    for stride in (4, 8, 16, 32):
        shares = figures_of(finished)[f"groups_0_{stride}"]["data"][0]["z"]
        assert [sum(column) for column in zip(*shares, strict=True)] == pytest.approx([1] * len(shares[0]), abs=1e-3)


def test_nothing_is_asked_of_the_network(finished):
    own = finished.replace(_script(finished), "")
    assert not re.findall(r"""(?:src|href|action)=["']?(?!#|data:)[^"'\s>]+""", own)
    assert "url(" not in own
    assert "default-src 'none'" in own


def test_texts_of_files_are_escaped(write_run):
    bad = "</script><img src=x onerror=alert(1)>"
    rows = [{"step": 1, "epoch": 0, "phase": bad, "train/loss": 1.0, f"train/loss/{bad}": 1.0}]
    folder = write_run(rows=rows, events=[event(bad, 1, message=bad)])
    (folder / "environment.json").write_text(json.dumps({bad: bad}))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "measures.json").write_text(json.dumps({"datasets": {bad: {"iou": 0.5}}}))
    page = page_of(folder)
    assert "<img src=x" not in page
    assert "<" not in page.partition('id="figures">')[2].partition("</script>")[0]
    # Plotly reads some HTML in names: they are escaped once more for it.
    assert figures_of(page)["terms"]["data"][0]["name"].startswith("&lt;/script&gt;")


@pytest.mark.parametrize(("dataset", "is_known"), [("COD10K", True), ("habitats", False)])
def test_published_numbers_stand_beside_those_of_known_sets(write_run, dataset, is_known):
    folder = write_run()
    (folder / "evaluation").mkdir()
    summary = {"count": 20, "s_measure": 0.81234, "mae": 0.04, "intervals": {"s_measure": [0.8, 0.83]}}
    (folder / "evaluation" / "measures.json").write_text(json.dumps({"datasets": {dataset: summary}}))
    page = page_of(folder)
    assert "0.812  [0.800, 0.830]" in page
    assert ("SINet-V2" in page) == is_known
    assert ("Protocols differ" in page) == is_known
    assert ("means over 2026 images, those of the runs over 20" in page) == is_known
    assert ("Nothing is published on these images" in page) != is_known


def test_several_runs_have_a_colour_each_and_a_table_of_what_differs(write_run):
    rows = [{"step": 1, "epoch": 0, "phase": "full", "train/loss/structure": 1.0, "train/loss/boundary": 2.0}]
    first = write_run("experiment.name=first", rows=rows, name="a", exit_code=0)
    second = write_run("experiment.name=second", "optimizer.lr=5e-4", "phases.full.lr=1e-4", rows=rows, name="b")
    page = page_of(first, second)
    figures = figures_of(page)
    assert [line["name"] for line in figures["terms_0"]["data"]] == ["first", "second"]
    assert len({line["line"]["color"] for line in figures["terms_0"]["data"]}) == 2
    assert len({line["line"]["dash"] for line in figures["terms_0"]["data"]}) == 2
    assert figures["terms_1"]["data"][0]["y"] == [2.0]
    table = page.partition("What differs in the experiments")[2].partition("</tbody>")[0].partition("<tbody>")[2]
    words = re.sub(r"<[^>]+>", " ", table).split()
    assert words == ["optimizer.lr", "0.001", "0.0005", "phases.full.lr", "–", "0.0001"]


def test_where_the_last_validation_shows_a_sign_the_table_of_several_runs_says_so(write_run):
    sign = {**_with_routers(10), "val/router/stride_4/pair_share": 0.99}
    page = page_of(write_run(rows=[sign], name="a"), write_run(rows=[_with_routers(10)], name="b"))
    row = page.partition(">did a router collapse?</th>")[2].partition("</tr>")[0]
    assert "no, but there is a sign of it at stride 4<" in row


def test_runs_of_one_name_are_told_apart_by_their_folders(write_run):
    folders = [write_run(name=name) for name in ("a", "b")]
    page = page_of(*folders)
    assert all(f'<span class="name">{folder}</span>' in page for folder in folders)


def test_an_event_stands_at_its_step(write_run):
    events = [event("start"), event("spike", 70, epoch=3, severity="warning"), event("end", 90, epoch=4)]
    rows = [{"step": 90, "epoch": 3, "phase": "full", "train/loss": 1.0}]
    marks = figures_of(page_of(write_run(rows=rows, events=events)))["timeline_0"]["data"]
    placed = {kind: step for trace in marks for kind, step in zip(trace["y"], trace["x"], strict=True)}
    assert placed == {"Start": 0, "Loss spike": 70, "End": 90}


def test_events_are_told_in_words_beside_the_name_that_the_file_has(write_run):
    events = [event("frozen", message="4 of 4 stages"), event("dip", 70, severity="warning"), event("new_kind", 80)]
    page = page_of(write_run(events=events))
    rows = re.findall(r'<td class="kind">(.*?)</td>', page)
    assert rows == [
        "● Frozen backbone stages<code>frozen</code>", "▲ One poor validation<code>dip</code>",
        "● new kind<code>new_kind</code>",
    ]  # fmt: skip
    assert "1 warning: One poor validation" in page


def _links(page):
    return re.findall(r'<a href="#(.*?)">', page.partition('<nav id="toc"')[2].partition("</nav>")[0])


@pytest.mark.parametrize("number", [1, 3])
def test_the_contents_lead_to_every_section_in_their_order(write_run, number):
    rows = [{"step": 1, "epoch": 0, "phase": "full", "train/loss": 1.0, "val/iou": 0.5}]
    page = page_of(*(write_run(f"experiment.name=run{n}", rows=rows, name=f"run{n}") for n in range(number)))
    assert _links(page) == re.findall(r'<section id="(.*?)"', page)
    assert len(_links(page)) >= 6


def test_of_several_runs_each_is_folded_with_all_that_is_its_own(write_run):
    rows = [{"step": 1, "epoch": 0, "phase": "full", "train/loss": 1.0, "lr/head": 0.1, "val/iou": 0.5}]
    names = ("first", "second", "third")
    page = page_of(*(write_run(f"experiment.name={name}", rows=rows, name=name, exit_code=3) for name in names))
    folds = page.partition('<section id="runs">')[2].partition("</section>")[0].split('<details class="fold"')[1:]
    assert len(folds) == 3
    for name, fold in zip(names, folds, strict=True):
        assert not fold.partition(">")[0].endswith("open")
        assert f'<span class="name">{name}</span>' in fold
        assert "Stopped by a guard" in fold.partition("</summary>")[0]
        assert all(what in fold for what in ("Did a router collapse?", "timeline_", "experiment.toml", "Environment"))
    sections = dict(re.findall(r'<section id="([\w-]+)">\s*<details class="fold part"( open)?>', page))
    assert sections["loss"] == sections["measures-on-held-out-data"] == " open"
    assert sections["optimisation"] == ""


def test_every_table_scrolls_in_a_box_of_its_own(finished):
    body = finished.partition("<main>")[2]
    assert body.count("<table") == len(re.findall(r'<div class="scroll(?: tall)?" tabindex="0"><table', body)) > 4


def test_the_worst_image_is_named_also_where_no_model_was_run(run_folder):
    with (run_folder / "evaluation" / "per_image.csv").open() as file:
        scored = [(float(row["iou"]), row["name"]) for row in csv.DictReader(file) if row["iou"]]
    score, name = min(scored)
    assert f"{name}, IoU {score:.3f}, of the run&#39;s own evaluation" in page_of(run_folder)


def test_the_worst_image_is_shown_in_the_first_screen(finished):
    facts = finished.partition('<dl class="facts">')[2].partition("</dl>")[0]
    assert re.findall(r'alt="(\w+) of the worst image"', facts) == ["image", "truth", "prediction"]


def test_a_few_peaks_are_drawn_on_a_logarithmic_axis(write_run):
    rows = [{"step": n, "epoch": 0, "phase": "full", "train/loss": 1e5 if n == 40 else 1.0} for n in range(1, 80)]
    assert figures_of(page_of(write_run(rows=rows)))["loss"]["layout"]["yaxis"]["type"] == "log"


def _script(page):
    """Plotly's own text names addresses that it does not ask for here."""
    return max(re.findall(r"<script>(.*?)</script>", page, re.DOTALL), key=len)

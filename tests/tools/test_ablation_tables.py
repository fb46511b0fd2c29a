"""What an ablation's results become: means and differences, tables, a page's block, figures."""

import cv2
import pytest

from ablation_figures import draw_figures
from ablation_summary import spread, summarise
from ablation_tables import markdown_tables
from camox.errors import DataError
from pages import fill_block, read_block, replace_block

# ---- arithmetic


def made_up(name, seed, iou, seconds=None, gained=()):
    """A run of these numbers."""
    scales = {
        str(4 * 2**position): {
            "usage": [0.5, 0.3, 0.2],
            "usage_by_kind": {"forest": [0.75, 0.25, 0.0], "rock": [0.25, 0.35, 0.4]},
            "dead": position,
            "effective_experts": 2.8,
            "pair_share": 0.5,
            "information": value + 0.3,
            "chance": 0.1,
            "untrained": {"information": 0.25, "chance": 0.05},
            "information_gained": value,
        }
        for position, value in enumerate(gained)
    }
    resources = {"cpu_seconds": seconds, "wall_seconds": seconds, "peak_memory_bytes": 2**30}
    cost = {"iou": iou - 0.05, "cost": 0.05, "standard_error": 0.0125, "images": 9, "cost_by_kind": {}}
    return {
        "name": name,
        "seed": seed,
        "resources": None if seconds is None else resources,
        "parameters": 5_000_000,
        "test": {
            "iou": iou,
            "s_measure": iou + 0.1,
            "mae": 0.05,
            "groups": {"forest": {"iou": iou}, "rock": {"iou": iou}},
        },
        "routing": {"experts": ["texture", "edge", "contrast"], "scales": scales} if gained else None,
        "counterfactual": {"other_kind": cost, "same_kind": cost, "random": cost} if gained else None,
    }


RUNS = [
    made_up("sparse", 42, 0.70, 100.0, gained=(0.1, 0.2)),
    made_up("static", 42, 0.60, 80.0),
    made_up("sparse", 1, 0.80, 120.0, gained=(0.3, -0.1)),
    made_up("static", 1, 0.75),
    made_up("sparse", 2, 0.90, 110.0, gained=(0.2, 0.2)),
]


@pytest.fixture
def study():
    return {
        "command": "python tools/ablation.py e.toml --json results/study.json",
        "settings": {"experiment": "e.toml", "image_size": 96, "steps": 800, "images": 1600},
        "machine": {"processor": "P", "cores": 2},
        "versions": {"torch": "2"},
        "runs": RUNS,
        "summary": summarise(RUNS),
    }


def test_summary_has_mean_and_spread_of_each_row():
    rows = summarise(RUNS)["rows"]
    assert rows["sparse"]["iou"] == {
        "mean": pytest.approx(0.8),
        "deviation": pytest.approx(0.1),
        "minimum": 0.7,
        "maximum": 0.9,
        "runs": 3,
    }
    assert rows["sparse"]["dead"]["maximum"] == 1
    assert rows["sparse"]["largest_information_gained"]["mean"] == pytest.approx((0.2 + 0.3 + 0.2) / 3)
    assert rows["sparse"]["other_kind_cost"]["mean"] == pytest.approx(0.05)


def test_what_a_run_lacks_is_left_out():
    rows = summarise(RUNS)["rows"]
    assert rows["static"]["cpu_seconds"]["runs"] == 1
    assert "dead" not in rows["static"]
    assert "other_kind_cost" not in rows["static"]


def test_differences_are_paired_by_seed():
    summary = summarise(RUNS)
    difference = summary["differences"]["static"]["iou"]
    assert summary["reference"] == "sparse"
    assert difference["by_seed"] == {"42": pytest.approx(0.1), "1": pytest.approx(0.05)}
    assert difference["mean"] == pytest.approx(0.075)
    assert difference["deviation"] == pytest.approx(0.05 / 2**0.5)


def test_one_run_has_no_deviation():
    assert spread([0.5]) == {"mean": 0.5, "deviation": None, "minimum": 0.5, "maximum": 0.5, "runs": 1}


# ---- tables and figures


def cells(tables, first, second=None):
    """The cells of the lines that begin with these."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.splitlines() if "|" in line]
    return [line for line in lines if line[0] == first and (second is None or line[1] == second)]


def test_tables_hold_the_numbers(study):
    tables = markdown_tables(study)
    measures, by_kind = cells(tables, "static")
    assert measures == [
        "static", "0.6750 ± 0.1061", "0.7750 ± 0.1061", "0.0500", "+0.0750 ± 0.0354", "+0.1000, +0.0500", "80",
        "1.00", "5.00", "–",
    ]  # fmt: skip
    assert by_kind == ["static", "0.6750 ± 0.1061", "0.6750 ± 0.1061"]
    assert cells(tables, "sparse")[0][-1] == "1"
    assert cells(tables, "sparse")[2][1] == "+0.0500 (0.0125)"
    assert cells(tables, "sparse", "8") == [
        ["sparse", "8", "0.3000 ± 0.1732", "0.2000", "+0.1000 ± 0.1732", "1", "2.80", "50%"]
    ]
    assert cells(tables, "forest")[0][1] == "texture 75%, edge 25%"
    assert cells(tables, "rock")[0][1] == "contrast 40%, edge 35%"
    assert "seeds 42, 1, 2" in tables


def of_habitats(name, seed, experts, **scales):
    """A run that uses experts so: stride → kind → shares, with "all" for all kinds."""
    run = made_up(name, seed, 0.7, gained=(0.1,))
    (filled,) = run["routing"]["scales"].values()
    run["routing"] = {
        "experts": experts,
        "scales": {
            stride.removeprefix("stride_"): {**filled, "usage": usage.pop("all"), "usage_by_kind": usage}
            for stride, usage in scales.items()
        },
    }
    return run


def test_expected_experts_are_favoured_where_a_habitat_takes_them_more_often_than_all_do(study):
    experts = ["texture", "contrast", "frequency", "edge"]
    runs = [
        of_habitats(
            "sparse",
            seed,
            experts,
            stride_8={
                "all": [0.25, 0.25, 0.25, 0.25],
                "forest": [0.5, 0.1, 0.1, 0.3 + by],  # texture and edge: 0.8 of 0.5
                "desert": [0.1, 0.2, 0.3, 0.4],  # texture and contrast: 0.3 of 0.5
                "rock": [0.0, 0.0, 0.5, 0.5],
            },
            stride_16={
                "all": [0.1, 0.2, 0.3, 0.4],
                "forest": [0.1, 0.2, 0.3, 0.4],
                "desert": [0.0, 0.5, 0.0, 0.5],
                "rock": [0.1, 0.2, 0.3, 0.4],
            },
        )
        for seed, by in ((1, 0.0), (2, 0.1))
    ]
    no_texture = {
        "all": [0.2, 0.3, 0.5],
        "underwater": [0.1, 0.7, 0.2],
        "forest": [0.2, 0.3, 0.5],
        "desert": [0.2, 0.3, 0.5],
    }
    runs.append(of_habitats("few", 1, ["edge", "contrast", "frequency"], stride_16=no_texture))
    tables = markdown_tables({**study, "runs": runs, "summary": summarise(runs)})
    assert "(positive = favoured)" in tables
    assert cells(tables, "", "habitat") == [["", "habitat", "expected experts", "stride 8", "stride 16"]]
    assert cells(tables, "sparse", "forest")[0][2:] == ["edge + texture", "+0.3500 ± 0.0707", "+0.0000"]
    assert cells(tables, "sparse", "desert")[0][2:] == ["texture + contrast", "−0.2000", "+0.2000"]
    assert cells(tables, "few", "underwater")[0][2:] == ["frequency + edge", "–", "−0.4000"]
    for row, kind in [("sparse", "underwater"), ("sparse", "rock"), ("few", "forest"), ("few", "desert")]:
        assert cells(tables, row, kind) == []


def test_without_the_habitats_or_their_experts_nothing_is_said_of_what_was_expected(study):
    runs = [of_habitats("sparse", 1, ["a", "b"], stride_8={"all": [0.5, 0.5], "forest": [1.0, 0.0]})]
    assert "favoured" not in markdown_tables({**study, "runs": runs, "summary": summarise(runs)})


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            "tools/ablation.py experiments/e.toml --json a/b.json",
            "tools/ablation.py experiments/e.toml --json a/b.json",
        ),
        ("x /home/me/e.toml --output /tmp/study/runs --json ../a.json", "x e.toml --output runs --json ../a.json"),
        ("x --output=/tmp/runs 'data.train=[\"/data/COD\"]'", "x --output=runs 'data.train=[\"COD\"]'"),
        ("x data.train=hf://some/data --output /tmp/runs/", "x data.train=hf://some/data --output runs/"),
    ],
)
def test_tables_name_their_command_without_places_of_this_machine(study, command, shown):
    tables = markdown_tables({**study, "command": command})
    assert f"Made by `{shown}`." in tables


def test_tables_name_the_experiment_without_places_of_this_machine(study):
    settings = {**study["settings"], "experiment": "/home/me/e.toml"}
    assert markdown_tables({**study, "settings": settings}) == markdown_tables(study)


def test_tables_of_one_seed_without_routing(study):
    runs = [run for run in RUNS if run["seed"] == 1 and run["name"] == "static"]
    tables = markdown_tables({**study, "runs": runs, "summary": summarise(runs)})
    assert cells(tables, "static")[0][1] == "0.7500"
    assert "habitat uses most" not in tables


def test_block_of_a_page_is_replaced_each_time():
    page = "Before.\n\n<!-- ablation -->\nold\n<!-- /ablation -->\n\nAfter.\n"
    new = replace_block(page, "ablation", "new", "page.md")
    assert new == "Before.\n\n<!-- ablation -->\nnew\n<!-- /ablation -->\n\nAfter.\n"
    assert replace_block(new, "ablation", "new", "page.md") == new


@pytest.mark.parametrize("text", ["", "one line", "a table\n\nand another"])
def test_a_block_is_read_as_it_was_filled(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text("<!-- other -->\n1\n<!-- /other -->\n<!-- ablation -->\n<!-- /ablation -->\n2\n")
    assert read_block(page, "ablation") == ""
    fill_block(page, "ablation", text)
    assert read_block(page, "ablation") == text
    assert read_block(page, "other") == "1"


@pytest.mark.parametrize(
    "page",
    ["", "<!-- ablation -->", "<!-- /ablation --><!-- ablation -->", "<!-- ablation --><!-- /ablation -->" * 2],
)
def test_page_without_a_place_for_the_tables(page):
    with pytest.raises(DataError, match=r"page\.md: has no place"):
        replace_block(page, "ablation", "new", "page.md")


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_page_that_cannot_be_read(tmp_path, content):
    page = tmp_path / "page.md"
    if content is not None:
        page.write_bytes(content)
    with pytest.raises(DataError, match=r"page\.md: the tables cannot be put into it"):
        fill_block(page, "ablation", "new")


def test_figures_are_pictures(study, tmp_path):
    paths = draw_figures(study, tmp_path / "figures")
    assert [path.name for path in paths] == ["ablation.png", "experts_by_habitat.png"]
    for path in paths:
        picture = cv2.imread(str(path))
        assert picture is not None
        assert min(picture.shape[:2]) > 200
        assert picture[0, 0].tolist() == [255, 255, 255]
        assert picture.std() > 10


def test_without_routing_there_is_one_figure(study, tmp_path):
    runs = [run for run in RUNS if run["name"] == "static"]
    assert [path.name for path in draw_figures({**study, "runs": runs}, tmp_path)] == ["ablation.png"]

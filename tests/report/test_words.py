"""What is said of a run: its routers, phases and events."""

import re
from pathlib import Path

import pytest

from camox.report.events import MEANINGS, event_rows
from camox.report.phases import spans_of
from camox.report.routers import judge_routers
from camox.report.run import read_run
from tests.report.conftest import event

CAMOX = Path(__file__).resolve().parents[2] / "camox"
EXPERTS = ("texture", "edge", "contrast", "frequency", "attention", "semantic")
EVEN = [1 / 6] * 6
PAIR = [0.5, 0.5, 0, 0, 0, 0]


def validation(step, collapsed, images=64, **usage):
    """A row with the routers' numbers; `usage` by stride, as s4=…"""
    values = {"step": step, "epoch": step // 10 - 1, "phase": "full", "val/count": images, "val/iou": 0.5}
    values["val/router/collapsed"] = collapsed
    for stride, shares in usage.items():
        prefix = f"val/router/stride_{stride[1:]}/"
        entropy, pair = (1.7918, 0.1) if shares == EVEN else (0.6931, 1.0)
        values |= {f"{prefix}usage/{name}": share for name, share in zip(EXPERTS, shares, strict=True)}
        values |= {f"{prefix}entropy": entropy, f"{prefix}pair_share": pair, f"{prefix}mutual_information": 0.1}
        values |= {f"{prefix}saturation": 0.0, f"{prefix}load_balance": 1.0}
    return values


def judged(write_run, *rows, events=(), overrides=()):
    return judge_routers(read_run(write_run(*overrides, rows=list(rows), events=list(events))))


def test_sound_routers_have_not_collapsed(write_run):
    verdict = judged(write_run, validation(10, 0, s4=EVEN, s8=EVEN), validation(20, 0, s4=EVEN, s8=EVEN))
    assert verdict.answer == "no"
    assert [scale.state for scale in verdict.scales] == ["sound", "sound"]
    assert verdict.scales[0].numbers["effective_experts"] == pytest.approx(6, abs=0.01)
    assert verdict.scales[0].numbers["least_share"] == pytest.approx(1)


def test_a_scale_with_signs_in_two_validations_that_the_run_counts_has_collapsed(write_run):
    verdict = judged(write_run, validation(10, 0, s4=PAIR, s8=EVEN), validation(20, 1, s4=PAIR, s8=EVEN))
    assert verdict.answer == "yes"
    assert "stride 4" in verdict.sentence
    assert [scale.state for scale in verdict.scales] == ["collapsed", "sound"]
    assert any("one pair" in sign for sign in verdict.scales[0].signs)


def test_signs_that_the_run_does_not_count_are_no_collapse(write_run):
    """Early, before routers have learned, all show signs."""
    verdict = judged(write_run, validation(10, 0, s4=PAIR), validation(20, 0, s4=PAIR))
    assert (verdict.answer, verdict.scales[0].state) == ("no", "one sign")
    assert "sign" in verdict.sentence


def test_of_scales_with_signs_those_that_were_told_of_are_counted(write_run):
    told = event("router_collapse", 20, details={"stride": 8})
    rows = validation(10, 0, s4=PAIR, s8=PAIR), validation(20, 1, s4=PAIR, s8=PAIR)
    verdict = judged(write_run, *rows, events=[told])
    assert [scale.state for scale in verdict.scales] == ["one sign", "collapsed"]
    assert verdict.scales[1].told_at == (20,)


def test_a_scale_that_was_told_of_and_shows_no_sign_has_recovered(write_run):
    told = event("router_collapse", 10, details={"stride": 4})
    verdict = judged(write_run, validation(10, 1, s4=PAIR), validation(20, 0, s4=EVEN), events=[told])
    assert (verdict.answer, verdict.scales[0].state) == ("recovered", "recovered")


def test_few_images_say_nothing(write_run):
    verdict = judged(write_run, validation(10, 0, images=8, s4=PAIR))
    assert verdict.answer == "unknown"
    assert "8 held-out images" in verdict.sentence


@pytest.mark.parametrize("override", ["model.moe.mode=static", "model.moe.mode=dense", "model.moe.scales=[]"])
def test_without_a_router_that_selects_there_is_no_collapse(write_run, override):
    assert judged(write_run, overrides=[override]).answer == "no"


def test_without_a_validation_nothing_is_known(write_run):
    assert judged(write_run).answer == "unknown"


def row(step, epoch, phase):
    return {"step": step, "epoch": epoch, "phase": phase, "train/loss": 1.0}


def test_phases_begin_after_the_last_step_before_and_may_come_back(write_run):
    rows = [row(5, 0, "frozen"), row(10, 0, "frozen"), row(15, 1, "full"), row(20, 1, "frozen"), row(30, 1, "full")]
    spans = spans_of(read_run(write_run(rows=rows)))
    assert [(span.name, span.after, span.until) for span in spans] == [
        ("frozen", 0, 10), ("full", 10, 15), ("frozen", 15, 20), ("full", 20, 30),
    ]  # fmt: skip
    assert [span.epoch for span in spans] == [1, 2, 2, 2]


def test_a_phase_has_the_time_of_an_event_at_its_begin_or_one_between_two(write_run):
    rows = [row(10, 0, "a"), row(20, 1, "b"), row(30, 2, "c")]
    events = [event("start", 0, time=1000.0), event("frozen", 10, time=1100.0), event("end", 30, time=1300.0)]
    spans = spans_of(read_run(write_run(rows=rows, events=events)))
    assert [span.began for span in spans] == [
        "1970-01-01 00:16:40 UTC", "1970-01-01 00:18:20 UTC", "about 1970-01-01 00:20:00 UTC",
    ]  # fmt: skip


def test_every_kind_of_event_has_a_meaning():
    said = re.compile(r"""(?:Finding\(|_event\(|\.event\(|append\()\s*"([a-z_]+)",|kind, message = "([a-z_]+)\"""")
    parts = ("training", "stability")
    kinds = {
        kind
        for part in parts
        for file in (CAMOX / part).rglob("*.py")
        for found in said.finditer(file.read_text(encoding="utf-8"))
        for kind in found.groups()
        if kind
    }
    assert len(kinds) > 15
    assert kinds <= MEANINGS.keys()


def test_no_kind_of_event_is_called_by_its_internal_name_alone():
    titles = [meaning.title for meaning in MEANINGS.values()]
    assert len(set(titles)) == len(titles)
    assert not [title for title in titles if "_" in title or not title[:1].isalnum() or len(title) > 28]


def test_many_events_of_one_kind_are_folded(write_run):
    skipped = [event("skipped_step", step, severity="warning") for step in range(1, 51)]
    rows = event_rows(read_run(write_run(events=[event("start"), *skipped, event("end", 60)])).events)
    assert len(rows) == 2 + 7
    assert "44 more events of this kind, steps 4 to 47" in str(rows[4]["message"])
    assert all(row["meaning"] for row in rows)

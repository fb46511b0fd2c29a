import json
import math

from camox.tracking.events import EventLog


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_event_has_the_contract_keys(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.append("skipped_step", "loss is not finite", step=7, epoch=1, severity="warning", rank=2, details={"a": 1})
    log.close()
    (event,) = events(tmp_path / "events.jsonl")
    assert event.pop("time") > 0
    assert event == {
        "step": 7,
        "epoch": 1,
        "rank": 2,
        "kind": "skipped_step",
        "severity": "warning",
        "message": "loss is not finite",
        "details": {"a": 1},
    }


def test_resume_keeps_all_events(tmp_path):
    for step in (50, 20):
        log = EventLog(tmp_path / "events.jsonl")
        log.append("resumed", "went on", step=step, epoch=0)
        log.close()
    assert [event["step"] for event in events(tmp_path / "events.jsonl")] == [50, 20]


def test_non_finite_details_are_spelled_out(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.append("x", "y", step=0, epoch=0, details={"terms": [math.nan, math.inf, -math.inf, 1.0]})
    log.close()
    assert events(tmp_path / "events.jsonl")[0]["details"] == {"terms": ["nan", "inf", "-inf", 1.0]}

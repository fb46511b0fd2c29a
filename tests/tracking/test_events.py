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


def test_troubles_are_warnings_and_errors_up_to_the_step_that_a_run_goes_on_from(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    for step, severity in ((1, "info"), (2, "warning"), (3, "error"), (4, "warning")):
        log.append("guard", "something", step=step, epoch=0, severity=severity)
    log.append("tracking", "wandb could not go online", step=2, epoch=0, severity="warning")
    log.append("end", "RuntimeError: connection closed by peer", step=2, epoch=0, severity="error")
    assert log.troubles == 3
    log.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"step": null, "kind": "x", "severity": "info"}\n{"step": "2", "kind": "x", "severity": "error"}\n')
    assert [EventLog(tmp_path / "events.jsonl", step).troubles for step in (0, 2, 3, 9)] == [0, 1, 2, 3]
    assert EventLog(tmp_path / "events.jsonl").troubles == 4  # that of no known step too

"""One whole run, stopped and resumed, with a step that is skipped: what every tracker holds of it, read back."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from camox.checkpoints.store import list_checkpoints
from camox.errors import TrainingPaused
from camox.experiment import Experiment
from camox.tracking.jsonl import spell_non_finite
from camox.training.held_out_pictures import TILE
from tests.conftest import TINY_EXPERIMENT
from tests.incidents.test_incidents import losses_times
from tests.tracking.test_tensorboard_tracker import scalars, written
from tests.tracking.test_wandb_tracker import wandb_records, wandb_rows
from tests.training.test_trainer import bits, read_events, rows, stopped_after, train

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ("stability.replays=0",)
TRACKED = (
    *PLAIN,
    'tracking.wandb="offline"',
    "tracking.tensorboard=true",
    "tracking.images=3",
    "tracking.images_every_epochs=1",
    'tracking.artifacts="all"',
    'experiment.notes="what the run is for"',
    'experiment.tags=["tiny"]',
)


class TrackedRun(NamedTuple):
    folder: Path
    untracked: Path
    """The same run, neither stopped nor tracked."""
    metrics: list[dict[str, Any]]
    wandb: list[dict[str, Any]]
    """Rows of numbers as the offline files hold them, without what wandb adds."""
    shown: list[dict[str, Any]]
    """Rows of pictures."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("tracked")
    file = folder / "tiny.toml"
    file.write_text(TINY_EXPERIMENT)

    def skip_the_third(step: int, batch: Any) -> float:
        return math.nan if step == 3 else 1.0

    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
        tracked = Experiment.load(file, TRACKED, folder / "tracked")
        with losses_times(skip_the_third):
            with stopped_after(1), pytest.raises(TrainingPaused):
                train(tracked)
            train(tracked, resume="auto")
    with losses_times(skip_the_third):
        untracked = train(Experiment.load(file, PLAIN, folder / "untracked"))
    found = wandb_rows(tracked.run_folder)
    shown = [row for row in found if any(isinstance(value, dict) for value in row.values())]
    numbers = [{name: value for name, value in row.items() if name[0] != "_"} for row in found if row not in shown]
    return TrackedRun(tracked.run_folder, untracked, rows(tracked.run_folder), numbers, shown)


def spelled(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl with NaN as text, which can be compared."""
    values = {name: value for name, value in row.items() if name != "non_finite"}
    return values | dict.fromkeys(row.get("non_finite", []), "nan")


def test_wandb_holds_every_number_of_metrics_jsonl_and_no_other(run):
    assert run.metrics[0]["step"] == 1
    assert any("non_finite" in row for row in run.metrics), "the step that was skipped has no loss"
    assert [spell_non_finite(row) for row in run.wandb] == [spelled(row) for row in run.metrics]


def test_a_resumed_run_goes_on_as_the_same_one(run):
    runs = wandb_records(run.folder, "run")
    assert len({one.run_id for one in runs}) == 1
    assert len(list(run.folder.glob("wandb/offline-run-*"))) == 2
    numbered = [row["_step"] for row in wandb_rows(run.folder)]
    assert numbered == list(range(len(run.wandb) + len(run.shown)))


def test_tensorboard_holds_every_number_of_metrics_jsonl_and_no_other(run):
    expected: dict[str, list[tuple[int, Any]]] = {}
    for row in run.metrics:
        for name in row.keys() - {"step", "phase", "non_finite"}:
            value = math.nan if name in row.get("non_finite", []) else row[name]
            expected.setdefault(name, []).append((row["step"], value))
    found = scalars(run.folder)
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        np.testing.assert_array_equal(found[name], points, err_msg=name)


def test_the_experiment_and_where_it_ran_are_the_config(run):
    config = {item.key: json.loads(item.value_json) for item in wandb_records(run.folder, "run")[0].config.update}
    environment, _ = config.pop("environment"), config.pop("_wandb")
    experiment = Experiment.load(run.folder / "experiment.toml")
    assert config == json.loads(json.dumps(experiment.plain()))
    assert environment["packages"].keys() >= {"torch", "camox"}
    assert "git_commit" in environment
    (first, *_) = wandb_records(run.folder, "run")
    assert (first.notes, list(first.tags)) == ("what the run is for", ["tiny"])
    texts = {name: written(run.folder).Tensors(f"{name}/text_summary") for name in ("experiment", "environment")}
    assert "resnet10t" in texts["experiment"][0].tensor_proto.string_val[0].decode()
    assert "git_commit" in texts["environment"][0].tensor_proto.string_val[0].decode()


def test_held_out_images_and_routing_are_shown_after_each_epoch(run):
    assert [row["step"] for row in run.shown] == [2, 4]
    tensorboard = written(run.folder)
    for row in run.shown:
        pictures = {name: value for name, value in row.items() if isinstance(value, dict)}
        assert len(pictures) == 4
        assert "router/choices" in pictures
        for name, value in pictures.items():
            (file,) = run.folder.glob(f"wandb/offline-run-*/files/{value['path']}")
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            if name != "router/choices":
                assert pixels.shape[1] == 5 * TILE + 4 * 4
                assert "IoU 0." in value["caption"] or "no object" in value["caption"]
            (event,) = [one for one in tensorboard.Tensors(name) if one.step == row["step"]]
            with Image.open(io.BytesIO(event.tensor_proto.string_val[2])) as picture:
                assert np.array_equal(np.asarray(picture.convert("RGB")), pixels)


def test_what_a_guard_says_becomes_an_alert(run):
    (said,) = [event for event in read_events(run.folder) if event["severity"] != "info"]
    assert said["kind"] == "skipped_step"
    assert [alert.text for alert in wandb_records(run.folder, "alert")] == [said["message"]]
    (text,) = written(run.folder).Tensors("events/skipped_step/text_summary")
    assert said["message"] in text.tensor_proto.string_val[0].decode()
    assert [row["stability/events"] for row in run.metrics if "train/loss" in row] == [0, 0, 1, 1]


def test_checkpoints_become_artifacts_with_their_measures(run):
    artifacts = [one for one in wandb_records(run.folder, "artifact") if one.type == "model"]
    aliases = [set(one.aliases) for one in artifacts]
    assert [alias for alias in aliases if "epoch_0002" in alias]
    assert any("best" in alias for alias in aliases)
    last = json.loads(artifacts[-1].metadata)
    manifest = json.loads((run.folder / "checkpoints" / "epoch_0002" / "manifest.json").read_text())
    assert last.items() <= manifest["measures"].items()
    assert "val/iou" in last


def test_being_watched_changes_no_bit(run):
    ours, theirs = ({path.name: bits(path) for path in list_checkpoints(of)} for of in (run.folder, run.untracked))
    assert theirs
    assert {name: ours[name] for name in theirs} == theirs


DASHBOARDS = (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8")
TERMS = {"router/entropy_loss", "router/mutual_information_loss"}
"""Of the loss, with a coefficient of 0 by default."""
ELSEWHERE = TERMS | {"amp/scale", "amp/reference/<line>", "memory/peak_gib"}
"""What this run does not log; the others need a GPU."""


def as_pattern(name: str) -> str:
    """docs/dashboards.md writes `{a,b}` for a choice and `<thing>` for one part of a name."""
    choices = re.sub(r"\\{([^}]*)\\}", lambda found: f"({found[1].replace(',', '|')})", re.escape(name))
    return re.sub(r"<[a-z]+>", "[^/]+", choices)


def logged_by(run: TrackedRun) -> set[str]:
    return {name for row in run.metrics for name in row} - {"step", "phase", "non_finite"}


def test_every_name_is_explained(run):
    told = [as_pattern(name) for name in re.findall(r"`([^`\s]+)`", DASHBOARDS)]
    # What validation says of routers has the names of training.
    told += [f"val/{name}" for name in told if name.startswith("router/[^/]+/")]
    assert not [name for name in sorted(logged_by(run)) if not any(re.fullmatch(pattern, name) for pattern in told)]


def test_every_name_that_is_explained_is_logged(run):
    tables = DASHBOARDS.partition("## Pictures")[0]
    cells = [cell.strip() for cell in re.findall(r"^\| (`[^|]+)\|", tables, re.MULTILINE)]
    names = [name for cell in cells for written in re.findall(r"`([^`]+)`", cell) for name in each(written)]
    assert len(names) > 50
    logged = logged_by(run)
    gone = {name for name in names if not any(re.fullmatch(as_pattern(name), one) for one in logged)}
    assert gone == ELSEWHERE
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "camox").rglob("*.py"))
    assert not [name for name in gone if name.partition("<")[0] not in code]


def each(written: str) -> list[str]:
    """The names that `before/{a,b}` stands for."""
    before, brace, rest = written.partition("{")
    choices, _, after = rest.partition("}")
    return [before + choice + after for choice in choices.split(",")] if brace else [written]

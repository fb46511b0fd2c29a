"""Weights & Biases: the numbers of metrics.jsonl, pictures, alerts and checkpoints, online or offline."""

import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from camox.errors import ExperimentError
from camox.tracking.events import Severity
from camox.tracking.jsonl import plain
from camox.tracking.trackers import Picture, Tracker, checked
from camox.tracking.wandb_mode import WandbMode, resolve_mode

# A run's end waits no longer for a slow or dead network: what is left can be sent with `wandb sync`.
_FINISH_SECONDS = 120.0
_START_SECONDS = 30.0
_ALERT_SECONDS = 600.0
"""Between two alerts of one kind: a step that fails may be followed by hundreds."""
_DATA_DIR = "WANDB_DATA_DIR"
_LEVELS = {"info": "INFO", "warning": "WARN", "error": "ERROR"}


class WandbTracker(Tracker):
    """Weights & Biases, online or offline.

    wandb drops rows whose step is smaller than one it has seen, without a word. So rows are numbered by a
    counter of their own, which goes on across resumes, and all curves are drawn over "step", a logged value.

    A failure while training (network, a killed wandb process) never stops it: `warn` is called once and
    nothing more is sent. `mode` is the mode really used and "disabled" after a failure.

    Args:
        mode: "auto" means online where a key is found (environment, netrc, wandb's settings), else offline.
            The environment variable WANDB_MODE and `wandb offline` win over all but "disabled".
        project: Project on the server.
        entity: User or team; None is the account's default.
        name: Name shown for the run.
        config: The experiment as nested plain values.
        folder: The run's folder; wandb's files go to its `wandb` folder, and `wandb_run.json` keeps the id.
        notes: Text shown with the run.
        tags: Labels of the run.
        run_id: The id to go on with; None takes the one kept in `folder` when `resume`, else a new one.
        resume: Whether this run goes on from a checkpoint.
        warn: Called with a sentence a person must read; Python's warnings by default.

    Raises:
        ExperimentError: wandb is asked for but is not installed or cannot start.
    """

    def __init__(
        self,
        mode: WandbMode,
        project: str,
        entity: str | None,
        name: str,
        config: Mapping[str, Any],
        folder: str | Path,
        notes: str = "",
        tags: Sequence[str] = (),
        run_id: str | None = None,
        resume: bool = False,
        warn: Callable[[str], None] = warnings.warn,
    ):
        self._run: Any = None
        self._rows = 0
        self._warn = warn
        self._name = name
        self._alerted: dict[str, float] = {}
        self._failed: set[str] = set()
        self._state_path = Path(folder) / "wandb_run.json"
        self._offline_folders = Path(folder) / "wandb" / "offline-run-*"
        self.run_id = run_id
        self.mode: WandbMode = resolve_mode(mode, warn)
        if self.mode == "disabled":
            return
        if resume:
            self._recall()
        self._run = self._start(project, entity, name, config, Path(folder), notes, tags, asked=mode)
        self.run_id = self._run.id
        # Online, the server knows how many rows it has, which may be more than a lost file says.
        self._rows = max(self._rows, int(self._run.step))
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._remember()

    @property
    def url(self) -> str | None:
        """The run's page, where it is online."""
        return self._run.url if self._run is not None and self.mode == "online" else None

    @property
    def sync_line(self) -> str | None:
        """The command that sends what was logged offline; None online and when disabled."""
        if self._run is None or self.mode != "offline":
            return None
        return f"wandb sync {self._offline_folders}"

    @property
    def takes_pictures(self) -> bool:
        """Whether anything is sent."""
        return self._run is not None

    def log(self, values: Mapping[str, Any], *, step: int, epoch: int, phase: str) -> None:
        """Send one row; does nothing when disabled."""
        self._send({"step": step, "epoch": epoch, "phase": phase, **checked(values)})

    def show(self, pictures: Mapping[str, Picture], *, step: int, epoch: int, phase: str) -> None:
        """Send one row of pictures."""
        if self._run is None:
            return
        import wandb

        with self._beside_numbers("a picture"):
            images = {name: wandb.Image(one.pixels, caption=one.caption) for name, one in pictures.items()}
            self._send({"step": step, "epoch": epoch, "phase": phase, **images})

    def alert(self, kind: str, message: str, severity: Severity, *, step: int) -> None:
        """Send an alert, which reaches people as their settings say; at most one of a kind in ten minutes."""
        if self._run is None:
            return
        title = f"{kind.replace('_', ' ')} at step {step}"
        with self._beside_numbers("an alert"):
            # The server counts by title, which has the step for people: so it is counted here.
            if time.monotonic() - self._alerted.get(kind, -math.inf) >= _ALERT_SECONDS:
                self._alerted[kind] = time.monotonic()
                self._run.alert(title[:63], message, level=_LEVELS[severity])

    def keep(self, checkpoint: Path, measures: Mapping[str, float], aliases: Sequence[str]) -> None:
        """Send a checkpoint's files as an artifact of type "model"; they are copied first, which takes its time."""
        if self._run is None:
            return
        import wandb

        with self._beside_numbers("a checkpoint"), self._staged():
            artifact = wandb.Artifact(_artifact_name(self._name), type="model", metadata=dict(measures))
            artifact.add_dir(str(checkpoint))
            self._run.log_artifact(artifact, aliases=list(aliases))

    def finish(self) -> None:
        """End the run; waits at most two minutes for uploads."""
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            run.finish()
        except Exception as error:  # noqa: BLE001  as in log
            self._give_up(error)

    def _send(self, row: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        with self._no_harm():
            self._run.log(row, step=self._rows, commit=True)
            self._rows += 1
            self._remember()

    @contextmanager
    def _no_harm(self) -> Iterator[None]:
        """What fails in the block ends the sending, not the training."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  wandb raises a dozen unrelated types when its process or network dies
            self._give_up(error)

    @contextmanager
    def _beside_numbers(self, what: str) -> Iterator[None]:
        """What fails in the block is left out and told once; numbers are sent on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  as above
            if what not in self._failed:
                self._failed.add(what)
                self._warn(f"wandb could not take {what} ({type(error).__name__}: {error}); numbers are still sent")

    @contextmanager
    def _staged(self) -> Iterator[None]:
        """Copies of artifacts that wait to be sent lie in the run's folder, where the environment names no other."""
        chosen = os.environ.get(_DATA_DIR)
        os.environ[_DATA_DIR] = chosen or str(self._state_path.parent / "wandb")
        try:
            yield
        finally:
            if chosen is None:
                del os.environ[_DATA_DIR]

    def _start(
        self,
        project: str,
        entity: str | None,
        name: str,
        config: Mapping[str, Any],
        folder: Path,
        notes: str,
        tags: Sequence[str],
        *,
        asked: WandbMode,
    ) -> Any:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)

        def start() -> Any:
            return wandb.init(
                mode="online" if self.mode == "online" else "offline",
                project=project,
                entity=entity,
                name=name,
                config=plain(config),
                dir=str(folder),
                notes=notes or None,
                tags=list(tags) or None,
                id=self.run_id,
                # Offline there is no server to ask; the same id joins the parts when they are synced.
                resume="allow" if self.mode == "online" and self.run_id else None,
                # Else wandb hands out a run that is open in this process, such as one of a notebook, as the new one.
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    save_code=False,
                    init_timeout=_START_SECONDS,
                    finish_timeout=_FINISH_SECONDS,
                ),
            )

        try:
            return start()
        except (wandb.Error, OSError) as error:
            # What comes below the first line is advice about settings that only a program could make.
            reason = str(error).partition("\n")[0]
            if asked != "auto" or self.mode == "offline":
                raise ExperimentError(
                    f"[tracking] wandb could not start ({self.mode}): {reason}\n"
                    'Check the network and `wandb login`, or set tracking.wandb="offline" or "disabled".'
                ) from error
            self._warn(
                f"wandb could not go online ({reason}); this run is logged offline and can be sent later "
                f"with: wandb sync {self._offline_folders}"
            )
            self.mode = "offline"
            return start()

    def _recall(self) -> None:
        """Take the id and the row counter of the run that is resumed."""
        if not self._state_path.exists():
            return
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
            self.run_id, self._rows = self.run_id or str(state["id"]), int(state["rows"])
        except (ValueError, KeyError, TypeError):
            self._warn(f"{self._state_path} is damaged: wandb shows the resumed training as a new run")

    def _remember(self) -> None:
        # About 0.1 ms per row. Without the counter, the server would drop rows after a resume.
        replacement = self._state_path.with_name(self._state_path.name + ".partial")
        replacement.write_text(json.dumps({"id": self.run_id, "rows": self._rows, "url": self.url}), encoding="utf-8")
        os.replace(replacement, self._state_path)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self.mode = "disabled"
        self._warn(
            f"wandb failed ({type(error).__name__}: {error}); training goes on without it. "
            "Every number is still written to metrics.jsonl"
        )


def _artifact_name(run: str) -> str:
    """Names of artifacts have letters, digits, hyphens, underscores and dots, at most 128 of them."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", run)[:128]

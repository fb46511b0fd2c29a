"""Where logged numbers go: metrics.jsonl always, Weights & Biases if wanted."""

import json
import netrc
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from camox.errors import ExperimentError
from camox.tracking.jsonl import JsonLines, is_non_finite, plain

WandbMode = Literal["auto", "online", "offline", "disabled"]

# wandb's own names for its modes, the two old ones included.
_ENVIRONMENT_MODES: dict[str, WandbMode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
# A run's end waits no longer for a slow or dead network: what is left can be sent with `wandb sync`.
_FINISH_SECONDS = 120.0
_START_SECONDS = 60.0
_RESERVED = {"step", "epoch", "phase", "non_finite"}


class Tracker(Protocol):
    """Takes numbers by name; see the contract for the names."""

    def log(self, values: Mapping[str, Any], *, step: int, epoch: int, phase: str) -> None:
        """Record values of one optimizer step."""

    def finish(self) -> None:
        """Write out what is left; a second call does nothing."""


class Trackers:
    """Hands every row to each of several trackers, in order."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = tuple(trackers)

    def log(self, values: Mapping[str, Any], *, step: int, epoch: int, phase: str) -> None:
        """Record values of one optimizer step in every tracker."""
        for tracker in self._trackers:
            tracker.log(values, step=step, epoch=epoch, phase=phase)

    def finish(self) -> None:
        """Finish every tracker."""
        for tracker in self._trackers:
            tracker.finish()


class JsonlTracker:
    """metrics.jsonl: one object per call with "step", "epoch", "phase" and the values.

    NaN and Inf are written as null and their names listed under "non_finite": every line is valid JSON.

    Args:
        path: The file.
        resume_step: The step a run goes on from; lines of later steps are removed (atomically), since the
            resumed run writes them anew. None keeps every complete line.
    """

    def __init__(self, path: str | Path, resume_step: int | None = None):
        self._lines = JsonLines(path, last_step=resume_step)

    def log(self, values: Mapping[str, Any], *, step: int, epoch: int, phase: str) -> None:
        """Append one line and flush it."""
        values = _checked(values)
        non_finite = [name for name, value in values.items() if is_non_finite(value)]
        row = {"step": step, "epoch": epoch, "phase": phase}
        row |= {name: None if name in non_finite else value for name, value in values.items()}
        if non_finite:
            row["non_finite"] = non_finite
        self._lines.append(row)

    def finish(self) -> None:
        """Close the file."""
        self._lines.close()


class WandbTracker:
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
        self._state_path = Path(folder) / "wandb_run.json"
        self.run_id = run_id
        self.mode: WandbMode = _resolve_mode(mode, warn)
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

    def log(self, values: Mapping[str, Any], *, step: int, epoch: int, phase: str) -> None:
        """Send one row; does nothing when disabled."""
        if self._run is None:
            return
        row = {"step": step, "epoch": epoch, "phase": phase, **_checked(values)}
        try:
            self._run.log(row, step=self._rows, commit=True)
        except Exception as error:  # noqa: BLE001  wandb raises a dozen unrelated types when its process or network dies
            self._give_up(error)
            return
        self._rows += 1
        self._remember()

    def finish(self) -> None:
        """End the run; waits at most two minutes for uploads."""
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            run.finish()
        except Exception as error:  # noqa: BLE001  as in log
            self._run = run
            self._give_up(error)

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
            if asked != "auto" or self.mode == "offline":
                raise ExperimentError(
                    f"[tracking] wandb could not start ({self.mode}): {error}\n"
                    'Check the network and `wandb login`, or set tracking.wandb="offline" or "disabled".'
                ) from error
            self._warn(
                f"wandb could not go online ({error}); this run is logged offline and can be sent later "
                f"with: wandb sync {folder / 'wandb' / 'offline-run-*'}"
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


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    assert not _RESERVED & values.keys(), f"reserved names among the values: {sorted(_RESERVED & values.keys())}"
    return {name: plain(value) for name, value in values.items()}


def _resolve_mode(asked: WandbMode, warn: Callable[[str], None]) -> WandbMode:
    if asked == "disabled":
        return "disabled"
    variable = os.environ.get("WANDB_MODE", "").lower()
    if variable and variable not in _ENVIRONMENT_MODES:
        known = ", ".join(sorted(set(_ENVIRONMENT_MODES.values())))
        raise ExperimentError(f"environment variable WANDB_MODE={variable!r}: must be one of {known}")
    if variable and _ENVIRONMENT_MODES[variable] == "disabled":
        return "disabled"
    try:
        import wandb
    except ImportError as error:
        if asked == "auto":
            warn(f"wandb cannot be imported ({error}): this run is logged to metrics.jsonl alone")
            return "disabled"
        raise ExperimentError(
            f'[tracking] wandb="{asked}", but wandb cannot be imported ({error}).\n'
            'Install it with `pip install wandb`, or set tracking.wandb="disabled".'
        ) from error
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    # wandb's settings hold what `wandb offline` or `wandb disabled` wrote; "online" is also their default.
    declared = _ENVIRONMENT_MODES[variable or settings.mode]
    if declared != "online" or variable:
        return declared
    if asked != "auto":
        return asked
    default_url = wandb.Settings.model_fields["base_url"].default
    hosts = {urlsplit(settings.base_url).netloc}
    if settings.base_url == default_url:
        hosts.add("api.wandb.ai")  # the key of wandb's own server, under the name `wandb login` has long used
    return "online" if _has_key(settings.api_key, hosts) else "offline"


def _has_key(api_key: str | None, hosts: set[str]) -> bool:
    """Whether wandb would find credentials: its settings (environment included) or netrc. Asks no network."""
    if api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    candidates = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    for path in (Path(candidate).expanduser() for candidate in candidates if candidate):
        if not path.is_file():
            continue
        try:
            logins = netrc.netrc(str(path))
        except (netrc.NetrcParseError, OSError):
            continue  # wandb itself says what is wrong with the file and goes on without it
        if any((login := logins.authenticators(host)) and login[2] for host in hosts):
            return True
    return False

"""The object that an experiment file becomes."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Self, cast

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError

from camox.experiment import files, lint
from camox.experiment.lines import KeyPath
from camox.experiment.messages import Vocabulary, located, problems_of
from camox.experiment.network import Model
from camox.experiment.problems import raise_all
from camox.experiment.schema import (
    Checkpoints,
    Ema,
    Identity,
    Loss,
    Optimizer,
    Phase,
    Precision,
    Schedule,
    Stability,
    Tracking,
    Validation,
)
from camox.experiment.sources import Data, batch_sizes
from camox.experiment.table import Table


@dataclass(frozen=True)
class ResolvedPhase:
    """A phase with the settings that hold in it, its own or the experiment's."""

    name: str
    epochs: int
    freeze: tuple[str, ...]
    batch_size: int
    """Images per device and micro-batch."""
    accumulate: int
    """Micro-batches per optimizer step."""
    lr: float
    """Peak learning rate."""
    image_size: int
    """Height and width of training images in pixels."""
    unfreeze: str = "all"
    """Whether the backbone's stages are trained from the first epoch or join one after another ("progressive")."""
    multi_scale: tuple[float, ...] = ()
    """Factors of `image_size`, of which each batch has one; empty for all batches at `image_size`."""

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """Sizes of batches in pixels, in the order of the factors; equally many batches have each, on average."""
        return batch_sizes(self.image_size, self.multi_scale)

    @property
    def largest_size(self) -> int:
        """The largest of these sizes: what a step's memory is to be counted for."""
        return max(self.image_sizes)


class Experiment(Table):
    """An experiment file as one frozen, validated object; its tables are its attributes."""

    experiment: Identity
    """Name, seed and place of the run."""

    data: Data
    """Where images and masks come from and how they are fed."""

    model: Model = Model()
    """The network."""

    loss: Loss = Loss()
    """Weight of each term of the loss."""

    optimizer: Optimizer = Optimizer()
    """How weights follow gradients."""

    schedule: Schedule = Schedule()
    """How the learning rate moves over the run; a phase's `lr` sets its height."""

    phases: tuple[Phase, ...] = Field(min_length=1)
    """Parts of the training, one after the other."""

    precision: Precision = Precision()
    """Number format of forward and backward passes."""

    ema: Ema = Ema()
    """Exponential moving average of the weights."""

    stability: Stability = Stability()
    """When a run that goes wrong stops."""

    checkpoints: Checkpoints = Checkpoints()
    """What is saved and kept."""

    validation: Validation = Validation()
    """How held-out data are scored."""

    tracking: Tracking = Tracking()
    """Where numbers go besides the console and the run's folder."""

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = (), output: str | Path | None = None) -> Self:
        """Read an experiment file and the files it extends, and lay overrides over them.

        Args:
            path: a TOML file.
            overrides: `table.key=value` each; the value is TOML, a plain word a string.
            `phases.NAME.key=value`
                reaches the phase of that name. Later ones win.
            output: in place of `experiment.output`.

        Raises:
            ExperimentError: with one line for every mistake there is.
        """
        document, problems = files.resolve(path, overrides, output)
        data = files.plain(document)
        vocabulary = Vocabulary(cls)
        experiment = None
        try:
            experiment = cls.model_validate(data)
        except ValidationError as error:
            problems += problems_of(error, vocabulary, data)

        wrong = [problem.path for problem in problems]
        problems += lint.combinations(_valid_tables(data, wrong), wrong)
        raise_all(
            (problem.origin or files.origin_of(document, problem.path), located(problem, vocabulary, data))
            for problem in problems
        )
        assert experiment is not None, "an experiment with mistakes has been reported above"
        return experiment

    @property
    def run_folder(self) -> Path:
        """Folder of the run: `output/name`."""
        return Path(self.experiment.output) / self.experiment.name

    @property
    def warnings(self) -> tuple[str, ...]:
        """Remarks on settings that are possible but hardly meant, to be shown when a run starts."""
        return lint.warnings(self)

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def phases_resolved(self) -> tuple[ResolvedPhase, ...]:
        """Return the phases with what they leave open filled in from `data` and `optimizer`."""
        return tuple(
            ResolvedPhase(
                name=phase.name,
                epochs=phase.epochs,
                freeze=phase.freeze,
                batch_size=phase.batch_size or self.data.batch_size,
                accumulate=phase.accumulate or self.optimizer.accumulate,
                lr=phase.lr or self.optimizer.lr,
                image_size=phase.image_size or self.data.image_size,
                unfreeze=phase.unfreeze,
                multi_scale=self.data.multi_scale,
            )
            for phase in self.phases
        )

    def to_toml(self) -> str:
        """Return a file with every key written out that loads as an equal experiment.

        Keys without a value (None) stay out, because TOML has none. Variables and `extends` are resolved.
        """
        return tomli_w.dumps(_escaped(self.plain()))

    def publishable(self) -> Self:
        """The same experiment without what belongs to a machine or a person: for others to read, not to run at once.

        Of paths that are absolute or leave their folder only the last part is kept; notes, and where results went, are
        left out. Names of data, relative paths and ids of the hub stay.
        """
        plain = _without_places(self.plain())
        plain["experiment"] = {**plain["experiment"], "output": "runs", "notes": ""}
        plain["tracking"] = {key: value for key, value in plain.get("tracking", {}).items() if key != "entity"}
        return type(self).model_validate(plain)

    def fingerprint(self) -> str:
        """Return the SHA-256, in hexadecimal, of all settings; equal exactly for equal experiments."""
        canonical = json.dumps(self.plain(), sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """`table.key` of what differs between two experiments; a table that is no dictionary (phases) is named whole."""
    different = []
    for table in sorted(a.keys() | b.keys()):
        ours, theirs = a.get(table), b.get(table)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            different += [f"{table}.{key}" for key in keys]
        elif ours != theirs:
            different.append(table)
    return different


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_places(child) for child in value)
    if isinstance(value, str) and (value.startswith(("/", "~")) or ".." in PurePath(value).parts):
        return PurePath(value).name or "data"
    return value


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(child) for child in value]
    return files.escape_variables(value) if isinstance(value, str) else value


def _valid_tables(data: dict[str, Any], wrong: list[KeyPath]) -> dict[str, Any]:
    """Return the tables that are valid once wrong keys are left out, or stood in for where one is required.

    So one message names every mistake: combinations are judged even where some other key is wrong. What is
    then said of a key that was left out is dropped by `lint.combinations`.
    """
    tables = {}
    for name, field in Experiment.model_fields.items():
        value = data.get(name, {})
        for path in wrong:
            if path[:1] == (name,) and len(path) > 1:
                value = _repaired(value, path, depth=1)
        adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, field.annotation))
        try:
            tables[name] = adapter.validate_python(value)
        except ValidationError:
            continue
    return tables


_STAND_INS: dict[tuple[str, ...], Any] = {
    ("experiment", "name"): "unnamed",
    ("data", "train"): ({"synthetic": "habitats", "count": 1},),
    ("data", "augment", "name"): "unnamed",
    ("phases", "name"): "unnamed",
    ("phases", "epochs"): 1,
    **{
        ("data", split, key): 1 if key == "count" else "unnamed"
        for split in ("train", "val", "test")
        for key in ("path", "images", "masks", "hub", "count")
    },
}


def _repaired(value: Any, path: KeyPath, depth: int) -> Any:
    """Return nested tables without the key at `path`, of which `depth` parts lead to `value`.

    Of a list of single values all goes: without one of them it would be another list.
    """
    key, rest = path[depth], path[depth + 1 :]
    if isinstance(value, tuple) and isinstance(key, int) and key < len(value) and rest:
        return (*value[:key], _repaired(value[key], path, depth + 1), *value[key + 1 :])
    if not isinstance(value, dict):
        return value
    others = {other: child for other, child in value.items() if other != key}
    inside = value.get(key)
    if len(rest) > 1 or (rest and isinstance(inside, dict)):
        return others | {key: _repaired(inside, path, depth + 1)}
    names = tuple(part for part in path[: depth + 1] if isinstance(part, str))
    return others | ({key: _STAND_INS[names]} if names in _STAND_INS else {})

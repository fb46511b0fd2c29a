"""Train the controls that decide whether routing earns its place, and compare them at equal steps.

python tools/ablation.py experiments/quickstart.toml --modes sparse dense static random --seeds 42 1 2 \\
    --json benchmarks/results/ablation.json
python tools/ablation.py experiments/quickstart.toml --modes sparse --variant regions model.moe.granularity=4 \\
    --variant two_scales 'model.moe.scales=[8, 16]' --json regions.json
python tools/ablation.py --from benchmarks/results/ablation.json --markdown docs/model.md --figures docs

Trains seed by seed, each row in a process of its own, on habitats of --size pixels for --steps steps, or with --full
as the experiment says. The results are written after every run. Runs that are finished in --output are not trained
again, so that a study that was interrupted goes on; runs of other code are refused. The reference of all differences
is the first row.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation_reuse import (
    CODE_DIGEST,
    PACKAGE,
    RESOURCES_FILE,
    code_digest,
    ended_well,
    noted,
    require_same_code,
    require_same_experiment,
    require_unchanged_code,
)
from ablation_summary import summarise
from ablation_tables import markdown_tables
from camox.checkpoints.folders import list_checkpoints
from camox.data.sources import held_out_split, open_sources, open_training_sources
from camox.errors import ArgumentParser, CamoxError, DataError, ExperimentError
from camox.experiment import Experiment
from camox.tracking.console import Console
from machine import machine, versions
from pages import SHAPE_ERRORS, fill_block, read_results

MODES = ("sparse", "dense", "static", "random")
MEASURED = Path(__file__).resolve().with_name("measured_process.py")
SCRIPT = "tools/ablation.py"
_NUMBERS = {"steps": "steps of a run", "images": "training images", "image_size": "image size"}


@dataclass(frozen=True)
class Row:
    """One of the things compared: a name, and what it changes in the experiment."""

    name: str
    overrides: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """Trains and writes, or shows what was written; returns the exit code."""
    options = parse(arguments)
    console = Console()
    try:
        if options.results is None:
            run_study(options, ["python", SCRIPT, *arguments], console)
        else:
            show(options, console)
    except CamoxError as error:
        console.error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.error("interrupted: the same command goes on with the study")
        return 130
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, nargs="?", metavar="EXPERIMENT.toml")
    parser.add_argument("overrides", nargs="*", metavar="table.key=value", help="for all rows")
    parser.add_argument(
        "--modes",
        nargs="*",
        choices=MODES,
        default=list(MODES),
        help=f"a row for each of these values of model.moe.mode (default: {' '.join(MODES)})",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "table.key=value"),
        help="one more row (default: none)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2], help="of every row (default: 42 1 2)")
    parser.add_argument("--size", type=int, default=96, help="side of the habitats in pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of every run (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="size and steps as the experiment says")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/ablation"), help="folder for the runs (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--from", dest="results", type=Path, metavar="JSON", help="train nothing, show these results")
    parser.add_argument(
        "--markdown", type=Path, metavar="PAGE", help="with --from: put the tables into this page, not on the screen"
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="with --from: draw the figures into this folder")
    options = parser.parse_intermixed_args(arguments)
    if options.results is None and (options.experiment is None or options.json is None):
        parser.error("give an experiment and --json FILE to train, or --from FILE to show results")
    if options.results is None and (options.markdown or options.figures):
        parser.error("--markdown and --figures need --from FILE")
    if not options.modes and not options.variant:
        parser.error("nothing to train: give --modes or --variant")
    return options


# ---- training


def run_study(options: argparse.Namespace, command_line: list[str], console: Console) -> None:
    """Trains every row with every seed and writes the results after each run."""
    rows = [Row(mode, (f"model.moe.mode={mode}",)) for mode in options.modes]
    rows += [Row(name, tuple(overrides)) for name, *overrides in options.variant]
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise ExperimentError(f"rows {', '.join(names)} name one twice: give each variant a name of its own")
    common = list(options.overrides)
    if not options.full:
        common += smaller(Experiment.load(options.experiment, common), options.size, options.steps)
    plan = [(row, seed, arguments_of(row, seed, common)) for seed in options.seeds for row in rows]
    experiments = [Experiment.load(options.experiment, overrides, options.output) for *_, overrides in plan]
    steps = {row.name: optimizer_steps(experiment) for (row, *_), experiment in zip(plan, experiments, strict=True)}
    if len(set(steps.values())) > 1:
        each = ", ".join(f"{name} for {count}" for name, count in steps.items())
        raise ExperimentError(f"the rows do not train for equally many steps, {each}: compare them one at a time")
    digest = code_digest()
    for experiment in experiments:  # all of them now: the last would else be refused after hours of the others
        require_same_code(experiment.run_folder, digest)
        require_same_experiment(experiment)
    study: dict[str, Any] = {
        "command": shlex.join(command_line),
        CODE_DIGEST: digest,
        "machine": machine(),
        "versions": versions(("camox", "torch", "timm", "accelerate")),
        "settings": {
            "experiment": str(options.experiment),
            "overrides": common,
            "rows": {row.name: list(row.overrides) for row in rows},
            "seeds": options.seeds,
            "steps": steps[rows[0].name],
            "images": training_images(experiments[0]),
            "image_size": experiments[0].data.image_size,
        },
    }
    console.header("ablation", _in_words(study["settings"]))
    runs: list[dict[str, Any]] = []
    for number, ((row, seed, overrides), experiment) in enumerate(zip(plan, experiments, strict=True), start=1):
        console.notice(f"run {number} of {len(plan)}: {row.name}, seed {seed}")
        require_unchanged_code(digest)
        if not ended_well(experiment.run_folder):
            train(options.experiment, overrides, experiment)
        runs.append({"name": row.name, "seed": seed, **measured(experiment)})
        console.notice(f"  {headline(runs[-1])}")
        write_json(options.json, {**study, "runs": runs, "summary": summarise(runs)})
    console.notice(f"see the tables: {shlex.join(['python', SCRIPT, '--from', str(options.json)])}")


def _in_words(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings of a study as lines of name and text, what several rows or overrides say on lines of their own."""
    lines = [("experiment", settings["experiment"])]
    lines += [("override", override) for override in settings["overrides"]]
    lines += [(f"row {name}", " ".join(overrides)) for name, overrides in settings["rows"].items()]
    lines.append(("seeds", ", ".join(map(str, settings["seeds"]))))
    lines += [(name, str(settings[key])) for key, name in _NUMBERS.items()]
    return lines


def arguments_of(row: Row, seed: int, common: Sequence[str]) -> list[str]:
    """The overrides of one run."""
    name = f'experiment.name="{row.name}_seed_{seed}"'
    return [*common, *row.overrides, name, f"experiment.seed={seed}", "tracking.wandb=disabled"]


def smaller(experiment: Experiment, size: int, steps: int) -> list[str]:
    """Overrides that make an experiment on habitats one of `steps` optimizer steps on images of `size` pixels.

    There will be as many training images as the experiment has, or the fewest above with which whole epochs make up
    the steps. The last phase takes what the others leave. The only validation and checkpoint are at the end.

    Raises:
        ExperimentError: the experiment has other data, phases with batches or sizes of their own, or no such number
            of images.
    """
    data, optimizer = experiment.data, experiment.optimizer
    sources = [*data.train, *data.val, *data.test]
    own = [phase.name for phase in experiment.phases if phase.batch_size or phase.accumulate or phase.image_size]
    if len(data.train) != 1 or own or any("synthetic" not in source.plain() for source in sources):
        raise ExperimentError(
            "only an experiment with one source of habitats to train on, and without phases that set batch_size, "
            "accumulate or image_size, can be made smaller: give --full to run it as it is"
        )
    source = data.train[0].plain()
    most = 2 * source["count"]
    groups = open_sources([{**source, "count": most}]).groups  # those of fewer images are the first of these
    earlier = sum(phase.epochs for phase in experiment.phases[:-1])
    for count in range(source["count"], most + 1):
        kept = count if data.val else len(held_out_split(groups[:count], data.val_fraction, seed=0)[0])
        in_epoch = -(-(kept // data.batch_size) // optimizer.accumulate)
        if in_epoch and steps % in_epoch == 0 and steps // in_epoch > earlier:
            break
    else:
        raise ExperimentError(
            f"{steps} steps are no whole number of epochs, and more than {earlier}, for any number of images from "
            f"{source['count']} to {most}: give other --steps, or --full"
        )
    epochs = steps // in_epoch
    tests = ", ".join(_inline({**test.plain(), "size": size}) for test in data.test)
    vals = ", ".join(_inline({**val.plain(), "size": size}) for val in data.val)
    return [
        f"data.train=[{_inline({**source, 'count': count, 'size': size})}]",
        *([f"data.val=[{vals}]"] if vals else []),
        f"data.test=[{tests}]",
        f"data.image_size={size}",
        f"phases.{experiment.phases[-1].name}.epochs={epochs - earlier}",
        f"validation.every_epochs={epochs}",
        f"checkpoints.every_epochs={epochs}",
    ]


def optimizer_steps(experiment: Experiment) -> int:
    """Steps of all phases together, in one process."""
    images = training_images(experiment)
    return sum(
        phase.epochs * -(-(images // phase.batch_size) // phase.accumulate) for phase in experiment.phases_resolved()
    )


def training_images(experiment: Experiment) -> int:
    """Images that are trained on; without those held out."""
    data = experiment.data
    train, val = [source.plain() for source in data.train], [source.plain() for source in data.val]
    return len(open_training_sources(train, val, data.val_fraction, experiment.experiment.seed)[0])


def _inline(source: dict[str, Any]) -> str:
    """A TOML table on one line; strings, numbers and lists of them look alike in TOML and JSON."""
    given = {key: value for key, value in source.items() if value is not None}
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in given.items()) + " }"


def train(file: Path, overrides: Sequence[str], experiment: Experiment) -> None:
    """Trains in a process of its own and notes in the run's folder which code that was and what it took.

    A run that was cut off goes on from its last checkpoint; what it took is then not known and left out.

    Raises:
        ExperimentError: training failed.
    """
    folder = experiment.run_folder
    interrupted = bool(list_checkpoints(folder))
    command = training_command(file, overrides, experiment.experiment.output)
    code_noted = {CODE_DIGEST: code_digest()}
    write_json(folder / RESOURCES_FILE, code_noted)  # now: a run that is cut off must say it too
    with tempfile.TemporaryDirectory() as scratch:
        taken = Path(scratch) / "taken.json"
        process = subprocess.Popen([sys.executable, str(MEASURED), str(taken), *command], env=_environment())
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if code == 0 and not interrupted:
            write_json(folder / RESOURCES_FILE, code_noted | json.loads(taken.read_text()))
    if code != 0:
        raise ExperimentError(
            f"{folder}: training ended with exit code {code} for the reason above; once that is mended, the same "
            "command goes on with the study"
        )


def training_command(file: Path, overrides: Sequence[str], output: str) -> list[str]:
    """What trains one run: afresh, or from its last checkpoint."""
    arguments = [str(file), *overrides, "--output", output, "--resume", "auto"]
    return [sys.executable, "-P", "-m", "camox", "train", *arguments]  # -P: no `camox` of the working folder


def _environment() -> dict[str, str]:
    """For a training: it imports the same `camox` as this process, whose digest is noted."""
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *([before] if before else [])])}


def measured(experiment: Experiment) -> dict[str, Any]:
    """What a finished run took and gives."""
    # Only now: it brings in scikit-image, which showing results does not need.
    from camox.inference.scoring.routing_study import study_run

    folder = experiment.run_folder
    taken = {key: value for key, value in noted(folder).items() if key != CODE_DIGEST}
    return {
        "run": str(folder),
        "mode": experiment.model.moe.mode,
        "commit": json.loads((folder / "environment.json").read_text())["git_commit"],
        "resources": taken or None,
        **study_run(folder, experiment.data.workers),
    }


def headline(run: dict[str, Any]) -> str:
    """One line on a run."""
    test, parts = run["test"], []
    parts.append(f"IoU {test['iou']:.4f}, S {test['s_measure']:.4f}, MAE {test['mae']:.4f}")
    if run["resources"]:
        parts.append(f"{run['resources']['cpu_seconds']:.0f} s of CPU")
    if run["routing"]:
        scales = run["routing"]["scales"].values()
        gained = ", ".join(f"{scale['information_gained']:+.3f}" for scale in scales)
        parts.append(f"information gained {gained} nat")
        parts.append(f"dead {sum(scale['dead'] for scale in scales)}")
    if run["counterfactual"]:
        other, same = run["counterfactual"]["other_kind"], run["counterfactual"]["same_kind"]
        parts.append(f"another habitat's routing costs {other['cost']:.4f}, the same habitat's {same['cost']:.4f}")
    return "; ".join(parts)


# ---- showing


def show(options: argparse.Namespace, console: Console) -> None:
    """Puts the tables of a results file on the screen or into a page, and draws its figures.

    Raises:
        DataError: a file cannot be read or written, or holds no whole study.
    """
    study = read_results(options.results)
    if not study.get("runs"):
        raise DataError(f"{options.results}: holds no study; give a file that this command wrote with --json")
    figures: list[Path] = []
    try:
        tables = markdown_tables(study)
        if options.figures is not None:
            from ablation_figures import draw_figures

            figures = draw_figures(study, options.figures)
    except SHAPE_ERRORS as error:
        raise DataError(
            f"{options.results}: holds only a part of a study, or another program's: {error!r}; give a file that this "
            "command wrote with --json"
        ) from error
    except OSError as error:
        raise DataError(f"{options.figures}: the figures cannot be written: {error}; give another --figures") from error
    if options.markdown is None:
        console.notice(tables)
    else:
        fill_block(options.markdown, "ablation", tables)
    for path in figures:
        console.notice(f"{path}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes beside the place and renames: a kill leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

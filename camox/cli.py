"""The verbs of the `camox` command: they parse, call, and turn errors into messages and exit codes.

Nothing here imports torch before a verb needs it: help, schema and inspection answer at once.
"""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import camox
from camox.errors import CamoxError, ExperimentError
from camox.tracking.console import Console
from camox.tracking.encoding import spell_out

Weights = Literal["auto", "raw", "ema"]
ProtocolName = Literal["camox", "pysod"]
ExportFormat = Literal["onnx", "torch", "hub"]

app = typer.Typer(
    name="camox",
    help="Train, score and use models for camouflaged-object detection.",
    epilog="Begin with `camox train experiments/quickstart.toml`. `camox COMMAND --help` has an example of each.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

data_app = typer.Typer(help="Look at data: what is wrong with them, and what the network gets to see.")
app.add_typer(data_app, name="data")


def _flag(name: str, text: str) -> Any:
    """An option without a value: typer would show one of type bool."""
    return typer.Option(name, metavar="", help=text)


_Model = Annotated[Path, typer.Argument(metavar="CHECKPOINT_OR_RUN", help="A checkpoint, a run's folder, an export.")]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="TABLE.KEY=VALUE", help="Values in place of the file's, such as optimizer.lr=1e-3."),
]
_Weights = Annotated[
    Weights, typer.Option(help="Raw or EMA weights; auto takes those that scored better on held-out data.")
]
_ImageSize = Annotated[
    int | None,
    typer.Option(min=32, help="Size in pixels at which the model sees images; by default the one of training."),
]
_Tta = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Test-time augmentation: hflip, vflip, scales, or several joined by commas. Twice the time for each flip, "
        "three times for scales.",
    ),
]
_With = Annotated[
    list[Path] | None,
    typer.Option(
        "--with", metavar="CHECKPOINT_OR_RUN", help="A further model, whose maps are averaged in. May be repeated."
    ),
]
_Protocol = Annotated[ProtocolName, typer.Option(help="How maps become scores; pysod equals pysodmetrics.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (default: those of the process) and give its exit code."""
    for stream in (sys.stdout, sys.stderr):
        spell_out(stream)
    # A notebook hands its own way to draw down to commands, whose environment may not have it; matplotlib then fails.
    os.environ["MPLBACKEND"] = "Agg"
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # Cut off before parsing: afterwards the launcher's options could not be told from overrides.
    cut = given.index("--") if given[:1] == ["train"] and "--" in given else len(given)
    try:
        return app(args=given[:cut], prog_name="camox", obj=tuple(given[cut + 1 :]), standalone_mode=False) or 0
    except typer.TyperException as error:  # its own way to show one is a page of usage and a box
        context = getattr(error, "ctx", None)
        what = error.format_message().rstrip(".").replace("Value error, ", "")
        where = context.command_path if context else "camox"
        Console().error(f"{what[:1].lower()}{what[1:]} (see {where} --help)")
        return error.exit_code
    except CamoxError as error:
        if os.environ.get("CAMOX_DEBUG") == "1":
            traceback.print_exc()
        Console().error(str(error))
        return error.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"camox {camox.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: `camox train experiments/quickstart.toml optimizer.lr=1e-3 -- --num_processes 2`")
def train(
    context: typer.Context,
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment to run.")],
    overrides: _Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="auto|latest|PATH",
            help="Go on from a checkpoint: auto starts afresh where there is none, latest does not.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="In place of experiment.output.")] = None,
    check: Annotated[bool, _flag("--check", "Say what would be trained, and train nothing.")] = False,
    profile: Annotated[
        bool,
        _flag("--profile", "Take a few steps of every phase, say what they spend their time on, and train nothing."),
    ] = False,
) -> None:
    """Train an experiment, with a process for each GPU of this machine.

    Options after `--` go to `accelerate launch`. Exit codes: 0 done; 2 configuration or data wrong, nothing trained;
    3 stopped by a guard, which says what to do; 4 stopped early by a signal or its time limit, after saving: go on
    with `--resume auto`.
    """
    from camox.experiment import Experiment
    from camox.training.launching.launcher import launch, refuse_together

    refuse_together(profile=profile, check=check, resume=resume is not None)
    loaded = Experiment.load(experiment, overrides or [], output)
    if check:
        from camox.training.check import check as check_experiment

        check_experiment(loaded)
        return
    arguments = [str(experiment), *(overrides or [])]
    arguments += ["--resume", resume] if resume is not None else []
    arguments += ["--output", str(output)] if output is not None else []
    arguments += ["--profile"] if profile else []
    raise typer.Exit(launch(arguments, context.obj or ()))


@app.command(epilog="Example: `camox diagnose experiments/sparse_moe_416.toml --gpu T4 --processes 2`")
def diagnose(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment to examine.", show_default=False)
    ] = None,
    overrides: _Overrides = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN|RUN/replays/STEP",
            help="In place of an experiment: take a step again that a run has kept because it was not finite, and say "
            "where its first NaN or Inf comes from.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME|SIZE", help="Card to estimate memory for, such as T4 or 16GiB [default: this one]."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes of the run that is planned: its GPUs.")] = 1,
    lr_range: Annotated[
        bool, _flag("--lr-range", "Also look for the learning rate at which the loss diverges.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Picture of --lr-range [default: NAME_lr_range.png].")
    ] = None,
    report: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers to a file.")] = None,
) -> None:
    """Look for what is wrong with an experiment before it runs: outputs, losses, gradients, settings, memory.

    Nothing is written into a run's folder. Exit codes: 0 all pass; 1 something failed or looks wrong; 2 configuration
    or data wrong.
    """
    if (experiment is None) == (replay is None):
        raise ExperimentError("camox diagnose takes either an experiment or --replay RUN, see camox diagnose --help")
    if replay is not None:
        from camox.diagnosis.replay import replay_kept

        raise typer.Exit(replay_kept(replay))
    assert experiment is not None
    from camox.diagnosis.diagnose import diagnose as diagnose_experiment
    from camox.experiment import Experiment

    loaded = Experiment.load(experiment, overrides or [])
    raise typer.Exit(diagnose_experiment(loaded, gpu, processes, lr_range, plot, report))


@app.command(epilog="Example: `camox evaluate runs/quickstart --data NC4K=data/NC4K --out scores`")
def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT_OR_RUN", help="A checkpoint, or a run's folder; several are compared with the first."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Data to score on: a dataset of the field, or a folder with one of images and one of masks; of a "
            "folder with several test sets each for itself. May be repeated. By default the experiment's test data, "
            "else what its checkpoints were selected on.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the scores [default: RUN/evaluation, or RUN/evaluation-NAME; needed to compare].",
        ),
    ] = None,
    weights: _Weights = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images that the model sees at once.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 2,
    protocol: _Protocol = "camox",
    image_size: _ImageSize = None,
    non_camouflaged: Annotated[
        bool,
        _flag(
            "--non-camouflaged",
            "Of --data, also score COD10K's images without a camouflaged object; they count in no mean.",
        ),
    ] = False,
    corruptions: Annotated[
        bool,
        _flag(
            "--corruptions",
            "Also score with blur, noise, JPEG and low light, each at 5 severities: takes 21 times as long.",
        ),
    ] = False,
    tta: _Tta = "",
    together: _With = None,
) -> None:
    """Score a checkpoint on images with ground truth, or compare several.

    Scores are printed, and written with a row per image to --out.
    """
    if together and len(models) > 1:
        raise typer.BadParameter("joins one checkpoint: leave it out, or give one alone", param_hint="--with")
    if non_camouflaged and not data:
        raise typer.BadParameter("chooses among the images of --data: give that too", param_hint="--non-camouflaged")
    folders = _named_folders(data or [])
    of_data = (non_camouflaged, corruptions)
    settings = (weights, batch_size, workers, protocol, image_size, None, None, *of_data, _names(tta))
    if len(models) > 1:
        from camox.inference.scoring.comparison import evaluate_several

        evaluate_several(models, folders, out, *settings)
        return
    from camox.inference.scoring.evaluation import evaluate as evaluate_checkpoint

    evaluate_checkpoint(models[0], folders, out, *settings, together or ())


@app.command(epilog="Example: `camox score --pred maps/NC4K --gt data/NC4K/GT --protocol pysod`")
def score(
    pred: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR",
            help="Folder of prediction maps, greyscale images 0 … 255. May be repeated, to compare with the first.",
        ),
    ],
    gt: Annotated[Path, typer.Option(metavar="DIR", help="Folder of ground-truth masks with the names of the maps.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the scores; without it they are only printed.")
    ] = None,
    protocol: _Protocol = "camox",
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the images.")] = 1,
) -> None:
    """Score prediction maps of any program against ground truth."""
    from camox.inference.scoring.scored_maps import score_maps

    score_maps(pred, gt, out, protocol, workers, Console())


@app.command(epilog="Example: `camox predict runs/quickstart 'photos/**/*.jpg' --out masks --overlay --tta hflip`")
def predict(
    model: _Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Image files, folders of images, or quoted patterns; ** is folders of any depth."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the masks.")],
    overlay: Annotated[bool, _flag("--overlay", "Also write DIR/overlays: images with the object outlined.")] = False,
    binary: Annotated[bool, _flag("--binary", "Also write DIR/binary: 255 for object, 0 for the rest.")] = False,
    objects: Annotated[
        bool, _flag("--json", "Also write DIR/objects.json: areas, boxes and scores of what is found.")
    ] = False,
    threshold: Annotated[
        str,
        typer.Option(
            metavar="auto|VALUE",
            help="Probability from which on a pixel is object in overlays, binary masks and JSON; auto is the one with "
            "the best IoU on held-out data.",
        ),
    ] = "auto",
    tta: _Tta = "",
    together: _With = None,
    refine: Annotated[
        Literal["none", "guided"],
        typer.Option(help="guided: masks follow the edges of large photographs (needs kornia)."),
    ] = "none",
    bits: Annotated[Literal["8", "16"], typer.Option(help="Bits of a grey level of the masks.")] = "8",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images that are worked on at once [default: 8 on a GPU, threads of torch on a CPU]."),
    ] = None,
    weights: _Weights = "auto",
    overwrite: Annotated[bool, _flag("--overwrite", "Replace results that are there already.")] = False,
    image_size: _ImageSize = None,
) -> None:
    """Write a mask for every image: a grey PNG of its size, white where the model is sure of an object."""
    from camox.inference.prediction.predictor import predict as predict_images

    predict_images(
        model,
        images,
        out,
        overlay,
        batch_size,
        weights,
        overwrite,
        image_size,
        ensemble=together or (),
        tta=_names(tta),
        threshold=_threshold(threshold),
        binary=binary,
        refinement=None if refine == "none" else refine,
        bits=16 if bits == "16" else 8,
        objects=objects,
    )


@app.command(epilog="Example: `camox report runs/quickstart runs/mine --out comparison.html`")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs; several stand side by side.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Where to write [default: RUN/report.html; needed for several runs]."),
    ] = None,
    without_gallery: Annotated[
        bool, _flag("--no-gallery", "Do not load the model: numbers and events only, much faster.")
    ] = False,
) -> None:
    """Write an HTML page about a run, or several: verdict, events, curves, routers, scores, predictions."""
    from camox.report.report import write_report

    place = write_report(runs, out, with_gallery=not without_gallery)
    Console().notice(f"{place} ({place.stat().st_size / 1e6:.1f} MB)")


@app.command(epilog="Example: `camox export runs/quickstart --format onnx --out model.onnx`")
def export(
    model: Annotated[Path, typer.Argument(metavar="CHECKPOINT_OR_RUN", help="A checkpoint, or a run's folder.")],
    format: Annotated[
        ExportFormat,
        typer.Option(
            help="onnx: one file for onnxruntime; torch: one .pt2 file, a program of torch.export; hub: a folder for "
            "from_pretrained and the Hugging Face hub."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="PATH", help="The file, or for hub the folder.")],
    weights: _Weights = "auto",
    overwrite: Annotated[bool, _flag("--overwrite", "Replace an export that is there already.")] = False,
    license: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Of a hub model: its licence, such as apache-2.0 [default: unknown]."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload a hub model, once it is written.")
    ] = None,
    private: Annotated[bool, _flag("--private", "Push to a private repository only, made if missing.")] = False,
) -> None:
    """Write a model as a file for other programs, or as a folder for the Hugging Face hub.

    Its maps are compared with the checkpoint's on images of several sizes: a difference above 1e-3 ends with exit code
    2, and no export is left.
    """
    from camox.inference.exporting.export import export as export_model
    from camox.inference.exporting.hub import HubOptions

    hub = HubOptions(license, push, private)
    export_model(model, format, out, weights, overwrite, None if hub == HubOptions() else hub)


@data_app.command("check", epilog="Example: `camox data check data/COD10K-v3 --out audit`")
def data_check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH|EXPERIMENT.toml",
            help="A dataset's folder, a folder of several datasets, or an experiment: then all of its sources.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for data_check.html, contact_sheet.png and data_check.json; without it nothing is written.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images on the contact sheet.")] = 48,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that read images [default: one for each core].")
    ] = None,
) -> None:
    """Find what is wrong with images and masks before anything is trained on them.

    Every file is read as training would read it. Problems are to be mended: they make training fail, or teach or score
    something wrong (near-duplicates between training and test among them). Notes say what the loader deals with by
    itself. Exit codes: 0 no problems; 1 problems, which are listed; 2 there is no dataset to read.
    """
    from camox.diagnosis.data_check.check import check_data

    raise typer.Exit(check_data(path, out, count, workers))


@data_app.command("preview", epilog="Example: `camox data preview experiments/quickstart.toml --out preview.png`")
def data_preview(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment to look at.")],
    overrides: _Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Picture to write [default: NAME_preview.png].")
    ] = None,
    epoch: Annotated[int, typer.Option(min=1, help="The first of five epochs whose augmentation is shown.")] = 1,
    count: Annotated[int, typer.Option(min=1, help="Samples, spread over the training set.")] = 8,
) -> None:
    """Draw training samples as the network gets them: resized, augmented by the run's seed, masks outlined."""
    from camox.diagnosis.data_preview import preview
    from camox.experiment import Experiment

    preview(Experiment.load(experiment, overrides or []), out, epoch, count)


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def inspect(context: typer.Context) -> None:
    """Look for NaN, Inf and damage in checkpoints, or compare two."""
    from camox.checkpoints.inspection import main as inspect_checkpoints

    raise typer.Exit(inspect_checkpoints(context.args, program="camox inspect"))


@app.command(epilog="Example: `camox schema > experiments/schema.json`")
def schema() -> None:
    """Print the JSON schema of an experiment file, for editors."""
    from camox.experiment import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _named_folders(given: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise typer.BadParameter(f"{text!r} is not NAME=PATH, such as NC4K=data/NC4K", param_hint="--data")
        if name in folders:
            raise typer.BadParameter(f"{name} is given twice", param_hint="--data")
        folders[name] = Path(path)
    return folders


def _names(joined: str) -> list[str]:
    return [name.strip() for name in joined.split(",") if name.strip()]


def _threshold(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 0 to 1", param_hint="--threshold")
    return value

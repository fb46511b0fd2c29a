"""What `accelerate launch` runs:

accelerate launch camox/train.py experiments/quickstart.toml [table.key=value …] [--resume auto] [--output DIR]
"""

import argparse
import gc
import os
import sys
from pathlib import Path

# Run as a script, `camox/` itself comes first on the path and would shadow packages with its folders' names.
if __name__ == "__main__" and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

# Before torch is imported. `accelerate launch` sets one thread for each process, whatever the machine has (`camox
# train` has set what is wanted), and waiting threads that spin make a step several times slower as soon as another
# program runs. A CPU's convolutions are compiled for each size of an expert's sub-batch; of the 1024 that are kept by
# default, most would be gone when needed again.
if os.environ.get("OMP_NUM_THREADS", "1") == "1" and "CAMOX_EXPECTED_PROCESSES" not in os.environ:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ["MPLBACKEND"] = "Agg"  # a notebook hands down its own, which this environment may not have

from camox.errors import ArgumentParser
from camox.experiment import Experiment
from camox.training.launching.ending import to_the_end
from camox.training.launching.launcher import refuse_together
from camox.training.launching.restarts import resume_from


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; `camox train` takes the same."""
    parser = ArgumentParser("accelerate launch camox/train.py", description=__doc__)
    parser.add_argument("experiment", metavar="EXPERIMENT.toml", help="the experiment to run")
    parser.add_argument("overrides", nargs="*", default=[], metavar="table.key=value", help="wins over the file")
    parser.add_argument("--resume", metavar="auto|latest|PATH", help="go on from a checkpoint")
    parser.add_argument("--output", metavar="DIR", help="folder of runs, in place of experiment.output")
    parser.add_argument("--check", action="store_true", help="load and build everything, train nothing")
    parser.add_argument("--profile", action="store_true", help="say what a few steps take, train nothing")
    options = parser.parse_intermixed_args(arguments)
    refuse_together(profile=options.profile, check=options.check, resume=options.resume is not None)
    return options


def main(arguments: list[str]) -> int:
    """Runs the experiment; returns the exit code."""
    return to_the_end(lambda: _run(parse(arguments)))


def _run(options: argparse.Namespace) -> None:
    experiment = Experiment.load(options.experiment, options.overrides, options.output)
    if options.check:
        from camox.training.check import check

        check(experiment)
    elif options.profile:
        from camox.training.profiling.profiler import profile_experiment

        profile_experiment(experiment)
    else:
        # What importing makes lives to the end. Looking for garbage among it takes a quarter of the time of importing,
        # and a third of a second in each full collection later on.
        gc.disable()
        from camox.training.trainer import Trainer

        if __name__ == "__main__":  # else there are objects that are not ours to keep
            gc.freeze()
        gc.enable()
        Trainer(experiment, resume_from(options.resume, experiment.run_folder)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

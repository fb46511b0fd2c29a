"""Each kind of mistake: the line it is reported with, and that all are reported together."""

# ruff: noqa: E501 - the tables of mistakes read best with one on each line

import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from camox.errors import ExperimentError
from camox.experiment import Experiment
from camox.experiment.messages import Vocabulary
from camox.experiment.problems import nearest

Write = Callable[..., Path]


def messages(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ExperimentError) as caught:
        Experiment.load(path, overrides)
    return str(caught.value).split("\n")


# Text appended to a valid file, the line in it that is wrong, and what is said of that line.
MISTAKES = {
    "unknown key, near": ("[optimizer]\nweight_decey = 1", 2, '[optimizer] unknown key "weight_decey": did you mean "weight_decay"?'),
    "unknown key, other trainers' name": ("[optimizer]\nlearning_rate = 1", 2, '[optimizer] unknown key "learning_rate": did you mean "lr"?'),
    "key of another table": ("[model]\ntop_k = 2", 2, '[model] unknown key "top_k": "top_k" is a key of [model.moe]'),
    "key like none": ("[ema]\nzzz = 1", 2, '[ema] unknown key "zzz": valid keys are "enabled", "decay", "warmup"'),
    "unknown table": ("[optimiser]\nlr = 1", 1, "unknown table [optimiser]: did you mean [optimizer]?"),
    "nested table at the top": ("[router]\nnoise = 1", 1, "unknown table [router]: did you mean [model.moe.router]?"),
    "string for integer": ('[validation]\nevery_epochs = "1"', 2, '[validation] every_epochs must be an integer, not the string "1"'),
    "float for integer": ("[validation]\nevery_epochs = 1.0", 2, "[validation] every_epochs must be an integer, not the number 1.0"),
    "bool for number": ("[optimizer]\nlr = true", 2, "[optimizer] lr must be a number, not true"),
    "number for bool": ("[ema]\nenabled = 1", 2, "[ema] enabled must be true or false, not the number 1"),
    "number for string": ("[tracking]\nproject = 1", 2, "[tracking] project must be a string, not the number 1"),
    "value for list": ("[validation]\nmeasures = 1", 2, "[validation] measures must be a list, not the number 1"),
    "value for table": ("[model]\nmoe = 1", 2, "[model] moe must be a table, not the number 1"),
    "infinite": ("[optimizer]\nlr = inf", 2, "[optimizer] lr must be a finite number, not inf"),
    "not above": ("[optimizer]\nlr = 0", 2, "[optimizer] lr must be greater than 0.0, not 0"),
    "below": ("[checkpoints]\nkeep_last = 0", 2, "[checkpoints] keep_last must be at least 1, not 0"),
    "width": ("[model]\nwidth = 100", 2, "[model] width must be a multiple of 8, not 100: take 104"),
    "width, too small": ("[model]\nwidth = -4", 2, "[model] width must be a multiple of 8, not -4: take 8"),
    "granularity, too fine": ("[model.moe]\ngranularity = 17", 2, '[model.moe] granularity must be "image" or the rows of a grid, from 2 to 16, not the number 17'),
    "granularity, unknown": ('[model.moe]\ngranularity = "pixel"', 2, '[model.moe] granularity must be "image" or the rows of a grid, from 2 to 16, not the string "pixel"'),
    "granularity, empty regions": ("[model.moe]\ngranularity = 5", 2, '[model.moe] granularity = 5 leaves regions of a 5×5 grid empty where an image of 352² pixels has only 11×11 cells, at stride 32: take 4, the largest below it that fits all maps, or larger images, or leave that stride out of scales'),
    "unknown expert": ('[model.moe]\nexperts = [\n"edge", "textur",\n"semantic"]', 3, '[model.moe] experts[1] has no choice "textur": did you mean "texture"?'),
    "unknown scale": ("[model.moe]\nscales = [4, 64]", 2, "[model.moe] scales[1] must be one of 4, 8, 16, 32, not the number 64"),
    "empty list": ("[model.moe]\nexperts = []", 2, "[model.moe] experts must not be empty"),
    "pair of one": ("[optimizer]\nbetas = [0.9]", 2, "[optimizer] betas must have two values"),
    "pair of three": ("[model.moe.balance]\nband = [0.1, 2, 3]", 2, "[model.moe.balance] band must have 2 values, not 3"),
    "duplicate expert": ('[model.moe]\nexperts = ["edge", "edge"]', 2, '[model.moe] experts names "edge" more than once: name it once'),
    "top_k": ('[model.moe]\nexperts = ["edge", "texture"]\ntop_k = 3', 3, "[model.moe] top_k = 3 exceeds the number of experts, 2: lower top_k or add experts"),
    "band order": ("[model.moe.balance]\nband = [2, 0.5]", 2, "[model.moe.balance] band = [2.0, 0.5] must be a lowest and a highest load around the equal share 1, such as [0.5, 2.0]"),
    "monitor": ('[validation]\nmeasures = ["iou"]\n[checkpoints]\nmonitor = "mae"', 4, '[checkpoints] monitor = "mae" is not measured: add it to validation.measures, or monitor one of "iou"'),
    "min_lr": ("[optimizer]\nlr = 1e-6", 2, "[optimizer] lr = 1e-06 is below schedule.min_lr = 1e-05, the lowest rate of the schedule: lower min_lr or raise lr"),
    "min_lr of a phase": ('[[phases]]\nname = "b"\nepochs = 1\nlr = 1e-6', 4, '[[phases]] "b": lr = 1e-06 is below schedule.min_lr = 1e-05, the lowest rate of the schedule: lower min_lr or raise lr'),
    "no loss": ("[loss]\nstructure=0", 2, "[loss] structure = 0 leaves the prediction itself untrained: give it a weight, or one of structure_legacy, bce, iou, dice, tversky, focal, frequency"),
    "milestones": ('name = "multistep"\nmilestones = [3, 1.5]', 2, "[schedule] milestones = [3, 1.5] must increase: put them in order, each once"),
    "no milestones": ('name = "multistep"', 1, '[schedule] name = "multistep" has no milestones: give the epochs after which the rate falls, such as [60, 90]'),
    "progressive but frozen": ('[[phases]]\nname = "b"\nepochs = 1\nfreeze = ["backbone"]\nunfreeze = "progressive"', 5, '[[phases]] "b": unfreeze = "progressive" and freeze = ["backbone"] exclude each other: remove one, or make two phases'),
    "unknown unfreeze": ('[[phases]]\nname = "b"\nepochs = 1\nunfreeze = "progresive"', 4, '[[phases]] "b": unfreeze has no choice "progresive": did you mean "progressive"?'),
    "untrained heads": ("[loss]\ndeep=0", 2, "[loss] deep = 0 leaves the heads of deep supervision untrained: give it a weight, or set model.deep_supervision = false"),
    "untrained boundary": ("[model]\nrefinement_steps=0\n[loss]\nboundary=0\nuncertainty=0", 4, "[loss] boundary = uncertainty = 0 without refinement steps leaves the boundary head untrained: give one of them a weight"),
    "router without gradient": ("[model.moe]\ntop_k=1", 2, "[model.moe] top_k = 1 gives the router no gradient from the task: use 2 or more"),
    "loss scale": ("[precision]\ninit_scale = 0.5", 2, "[precision] init_scale = 0.5 is below min_scale = 1.0, so the run would stop at once: raise init_scale"),
    "duplicate phase": ('[[phases]]\nname = "full"\nepochs = 1', 2, '[[phases]] "full": another phase has this name already: rename one of them'),
    "phase without a key": ('[[phases]]\nname = "b"', 1, '[[phases]] "b": missing key "epochs": add epochs = …'),
    "phase without a name": ("[[phases]]\nepochs = 1", 1, '[[phases]] number 2: missing key "name": add name = …'),
    "unknown part frozen": ('[[phases]]\nname = "b"\nepochs = 1\nfreeze = ["head"]', 4, '[[phases]] "b": freeze[0] must be one of "backbone", not the string "head"'),
    "transform without a name": ("[[data.augment]]\np = 0.5", 1, '[[data.augment]] number 1: missing key "name": add name = …'),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistake_is_reported_with_its_line(write: Write, minimal: str, kind: str):
    text, line, message = MISTAKES[kind]
    assert messages(write(minimal + text)) == [f"x.toml:{len(minimal.splitlines()) + line}: {message}"]


DATA_MISTAKES = {
    "no train": ("image_size = 64", '2: [data] missing key "train": add train = …'),
    "empty train": ("train = []", "3: [data] train must not be empty"),
    "unknown layout": (
        'train = [\n{ layout = "cod10", path = "x" }]',
        '4: [data] train[0]: layout has no choice "cod10": did you mean "cod10k"?',
    ),
    "unknown key of a source": (
        'train = [{ layout = "folder", images = "i",\n masks = "m" },\n { layout = "cod10k", path = "x", splitt = "test" }]',
        '5: [data] train[1]: unknown key "splitt": did you mean "split"?',
    ),
    "unknown key of a set of the hub": (
        'train = [{ hub = "a/b", masks = "gt" }]',
        '3: [data] train[0]: unknown key "masks": did you mean "mask"?',
    ),
    "streamed set without val": (
        'train = [{ hub = "a/b", streaming = true }]',
        "3: [data] train[0]: nothing can be held out of a streamed set: give val, sources that are not streamed",
    ),
    "streamed set beside another": (
        'train = [{ hub = "a/b", streaming = true }, { hub = "a/c" }]\nval = [{ hub = "a/b" }]',
        "3: [data] train[0]: a streamed set is the only source of train: remove the others, or streaming",
    ),
    "weight of a streamed set": (
        'train = [{ hub = "a/b", streaming = true, weight = 2 }]\nval = [{ hub = "a/b" }]',
        "3: [data] train[0]: weight = 2.0 has no meaning for a streamed set: set count to what an epoch should have",
    ),
    "super-classes of a streamed set": (
        'train = [{ hub = "a/b", streaming = true, super_class = "x.csv" }]\nval = [{ hub = "a/b" }]',
        "3: [data] train[0]: super_class has no meaning for a streamed set, of which nothing is held out: remove it",
    ),
    "streamed val": (
        'train = [{ hub = "a/b" }]\nval = [{ hub = "a/b", streaming = true }]',
        "4: [data] val[0]: only training data are streamed, because all of these are scored: remove streaming",
    ),
    "cache of a streamed set": (
        'train = [{ hub = "a/b", streaming = true }]\nval = [{ hub = "a/b" }]\ncache = "x"',
        "5: [data] a streamed set is not cached: remove cache, or streaming, which downloads the set once",
    ),
    "count of a set that is not streamed": (
        'train = [{ hub = "a/b", count = 9 }]',
        "3: [data] train[0]: count is for streamed sets: set streaming = true or remove it",
    ),
    "hub that is no text": ("train = [{ hub = 3 }]", "3: [data] train[0]: hub must be a string, not the number 3"),
    "key missing in a source": (
        'train = [{ layout = "cod10k" }]',
        '3: [data] train[0]: missing key "path": add path = …',
    ),
    "source that is none": (
        "train = [3]",
        '3: [data] train[0]: must be a table, not the number 3: write { layout = "auto", path = "…" }, '
        '{ layout = "folder", images = "…", masks = "…" }, { hub = "owner/name" } or { synthetic = "habitats", count = … }',
    ),
    "value in a source": (
        'train = [{ synthetic = "habitats", count = 0 }]',
        "3: [data] train[0]: count must be at least 1, not 0",
    ),
    "shares": (
        'train = [{ synthetic = "habitats", count = 9, empty = 0.5, tiny = 0.6 }]',
        "3: [data] train[0]: empty = 0.5 and tiny = 0.6 are shares of the same images: together at most 1",
    ),
    "val and val_fraction": (
        'train = [{ synthetic = "habitats", count = 9 }]\nval = [{ synthetic = "habitats", count = 9 }]\nval_fraction = 0.1',
        "5: [data] val_fraction and val exclude each other: remove val_fraction, or set it to 0",
    ),
    "neither val nor val_fraction": (
        'train = [{ synthetic = "habitats", count = 9 }]\nval_fraction = 0',
        "4: [data] val_fraction = 0 leaves nothing to validate on: give val, or a fraction such as 0.1",
    ),
    "unset variable": (
        'train = [{ layout = "cod10k", path = "${CAMOX_UNSET}/x" }]',
        "3: [data] train[0]: path needs the environment variable CAMOX_UNSET, which is not set: "
        "export CAMOX_UNSET=…, or pass data.train=… on the command line",
    ),
}


@pytest.mark.parametrize("kind", DATA_MISTAKES)
def test_mistake_in_data_is_reported_with_its_line(write: Write, kind: str):
    text, message = DATA_MISTAKES[kind]
    path = write(f'experiment.name = "x"\n[data]\n{text}\n[[phases]]\nname = "full"\nepochs = 9\n')
    assert messages(path) == [f"x.toml:{message}"]


def test_empty_file_lacks_the_required_tables(write: Write):
    assert sorted(messages(write(""))) == [
        f"x.toml: missing table {table}: add it" for table in ("[[phases]]", "[data]", "[experiment]")
    ]


def test_key_outside_of_all_tables(write: Write, minimal: str):
    assert messages(write("lr = 1\n" + minimal)) == [
        'x.toml:1: unknown key "lr" outside of all tables: it belongs below [optimizer] or [[phases]]'
    ]


@pytest.mark.parametrize("name", ["my run", "..", "a/b", "é", ""])
def test_name_that_is_no_safe_folder(write: Write, minimal: str, name: str):
    (message,) = messages(write(minimal.replace("minimal", name)))
    allowed = "letters, digits, underscores, hyphens and, behind the first character, dots"
    assert message == f'x.toml:2: [experiment] name may hold only {allowed}, not "{name}"'


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=abc", '[optimizer] lr must be a number, not the string "abc"'),
        ("data.image_size=abc", '[data] image_size must be an integer, not the string "abc"'),
        ("experiment.deterministic=True", '[experiment] deterministic must be true or false, not the string "True": lower case and without quotes'),
        ("optimizer.learning_rate=1", '[optimizer] unknown key "learning_rate": did you mean "lr"?'),
        ("phases.ful.lr=1", 'no phase named "ful": did you mean "full"?'),
        ("phases.full=1", "name a key of the phase, such as phases.full.epochs=10"),
        ("data.train.count=1", "data.train is a list: give all of it, data.train=[…]"),
        ("experiment.name.x=1", "experiment.name is a single value: write experiment.name=…"),
        ("extends=y.toml", "extends cannot be overridden: pass the other file itself"),
        ("lr", "not of the form table.key=value, such as optimizer.lr=1e-4"),
    ],
)  # fmt: skip
def test_mistake_in_an_override_names_the_override(write: Write, minimal: str, override: str, message: str):
    assert messages(write(minimal), override) == [f'override "{override}": {message}']


def test_mistake_is_reported_where_the_extended_file_makes_it(write: Write, minimal: str):
    write("[optimizer]\n\nlr = -1\n[ema]\ndecay = 2\n", "base.toml")
    path = write('extends = "base.toml"\n' + minimal + "[optimizer]\nclip = -1\n[ema]\ndecay = 0.9\n")
    assert messages(path) == [
        "base.toml:3: [optimizer] lr must be greater than 0.0, not -1",
        f"x.toml:{len(minimal.splitlines()) + 3}: [optimizer] clip must be greater than 0.0, not -1",
    ]


# With another of them in the same file, these are no TOML, or judge keys that are wrong already.
ALONE = {
    "value for table",
    "top_k",
    "monitor",
    "min_lr",
    "min_lr of a phase",
    "milestones",
    "no milestones",
    "no loss",
    "loss scale",
    "untrained heads",
    "untrained boundary",
    "router without gradient",
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(kinds=st.sets(st.sampled_from(sorted(MISTAKES.keys() - ALONE)), min_size=2, max_size=6))
def test_all_mistakes_are_in_one_message(write: Write, minimal: str, kinds: set[str]):
    text, expected, headers = minimal, set(), []
    for kind in sorted(kinds):
        added, line, message = MISTAKES[kind]
        expected.add(f"x.toml:{len(text.splitlines()) + line}: {message}")
        headers.append(added.split("\n")[0])
        text += added + "\n"
    tables = [header for header in headers if not header.startswith("[[")]
    assume(len(tables) == len(set(tables)) and len(headers) - len(tables) < 2)
    assert set(messages(write(text))) == expected


VOCABULARY = Vocabulary(Experiment)
PLAIN_TABLES = sorted(
    path
    for path in VOCABULARY.tables
    if path and path not in (("phases",), ("data", "augment"), ("data",), ("experiment",))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_typo_is_reported_with_the_nearest_key(write: Write, minimal: str, data: st.DataObject):
    table = data.draw(st.sampled_from(PLAIN_TABLES))
    keys = list(VOCABULARY.tables[table].model_fields)
    key = data.draw(
        st.sampled_from([key for key in keys if len(key) > 3])
        if any(len(k) > 3 for k in keys)
        else st.sampled_from(keys)
    )
    place = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    typo = data.draw(
        st.sampled_from(
            [
                key[:place] + key[place + 1 :],
                key[:place] + letter + key[place:],
                key[:place] + letter + key[place + 1 :],
            ]
        )
    )
    assume(typo not in keys and not VOCABULARY.tables_with(typo) and nearest(typo, keys) == key)

    header = ".".join(table)
    text = minimal.replace("[schedule]\nwarmup_epochs = 1\n", "")
    path = write(f"{text}[{header}]\n{typo} = 1\n")
    line = text.count("\n") + 2
    assert f'x.toml:{line}: [{header}] unknown key "{typo}": did you mean "{key}"?' in messages(path)[0]

"""Every command that README and docs tell to type is typed, in a folder that holds what they presume.

One that is not is named here with the reason, and what can be told of it without running it is tested: that its
options, its target or its tool exist.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from camox.cli import main
from tests.docs.commands import COMMANDS, ROOT, Command
from tests.docs.workplace import copy, furnish

NOT_TYPED = {
    r"make ": "it installs, trains for minutes, or runs this very test; that the target exists is tested",
    r"pip install|git |source |.*\.venv/bin/": "it sets the machine up, as `make install` has done",
    r".*\btorchrun |.*accelerate launch": "launch lines: test_launching.py, tests/distributed, test_train_script.py",
    r"camox train .* -- ": "launch lines: test_launching.py, tests/training/launching",
    r"python tools/benchmark\.py (?!.*--from|compare)": "minutes to hours; tests/tools runs every suite on small cases",
    r"python tools/benchmark\.py compare .* new\.json": "of what was measured before: test_benchmark_comparison.py",
    r"python tools/ablation\.py experiments": "it trains fifteen runs; tests/tools/test_ablation.py trains small ones",
    r"python tools/(repeat_experiment|prediction_picture|report_time|export_parity|inference_options)\.py": "minutes",
    r"camox diagnose --replay": "it needs a step that was not finite: tests/training/test_replay.py makes some",
    r"camox \w+( \w+)?( --[a-z-]+( \w+)?)?$": "the name of a command, not a whole one",
    r"tensorboard ": "it serves until it is stopped; tests/tracking reads the same files with TensorBoard's reader",
    r"camox predict model\.onnx$": "a part of one; tests/inference/exporting/test_export.py predicts with such a file",
    r"wandb |pgrep ": "it needs the network, or a run that hangs",
    r"python -m pytest tests/gpu": "it needs a GPU",
}
FIRST_START = r"camox train (?!.*--(resume|check|profile))"
PARSERS = {"tools/inspect_checkpoint.py": "camox/checkpoints/inspection.py"}
"""Where the options of a tool are that has no parser of its own."""
EXIT_CODES = {r"camox diagnose": {0, 1}}


def reason_not_to(command: Command) -> str | None:
    return next((reason for pattern, reason in NOT_TYPED.items() if re.match(pattern, command.text)), None)


WHOLE = {command.text: command for command in COMMANDS if not command.is_a_pattern}
TYPED = [command for command in WHOLE.values() if reason_not_to(command) is None]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "furnished"
    folder.mkdir()
    furnish(folder)
    return folder


@pytest.fixture
def workplace(furnished, tmp_path, monkeypatch):
    folder = copy(furnished, tmp_path / "workplace")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", TYPED, ids=lambda command: command.text)
def test_it_can_be_typed(command, workplace, capsys):
    words = shlex.split(command.text.partition(" > ")[0])
    codes = next((codes for pattern, codes in EXIT_CODES.items() if re.match(pattern, command.text)), {0})
    if re.match(FIRST_START, command.text):
        shutil.rmtree("runs")
    if words[0] == "camox" and words[1] != "train":
        code, said = main(words[1:]), capsys.readouterr().err
    else:
        program = [sys.executable, "-m", "camox"] if words[0] == "camox" else [sys.executable]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*program, *words[1:]], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        code, said = done.returncode, done.stdout + done.stderr
    assert code in codes, said


@pytest.mark.parametrize("command", [one for one in COMMANDS if re.search(r"\bmake [a-z-]+", one.text)], ids=str)
def test_its_target_exists(command):
    (target,) = re.findall(r"\bmake ([a-z-]+)", command.text)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [one for one in COMMANDS if re.search(r"tools/\w+\.py", one.text)], ids=str)
def test_its_tool_has_its_options(command):
    (tool,) = re.findall(r"tools/\w+\.py", command.text)
    asked = set(re.findall(r"(?<=\s)--[a-z][a-z-]*", command.text.partition(tool)[2]))
    source = ROOT / PARSERS.get(tool, tool)
    assert asked - set(re.findall(r'"(--[a-z][a-z-]*)"', source.read_text())) == set()


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.text.startswith("camox ")], ids=str)
def test_its_verb_has_its_options(command):
    verbs = command.text.split()[1:3] if command.text.split()[1] == "data" else command.text.split()[1:2]
    asked = {word.split("=")[0] for word in re.findall(r"(?<=\s)--[a-z-]+", command.text.partition(" -- ")[0])}
    with contextlib.redirect_stdout(io.StringIO()) as help_text:
        assert main([*verbs, "--help"]) == 0
    assert {option for option in asked if option not in help_text.getvalue()} == set()


def test_nothing_is_left_out_in_vain():
    texts = [command.text for command in COMMANDS if not command.is_a_pattern]
    for pattern in NOT_TYPED:
        assert any(re.match(pattern, text) for text in texts), pattern

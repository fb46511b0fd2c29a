"""What docs/launching.md tells to type can be launched, and its numbers are those of the results."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from camox.experiment import Experiment
from camox.train import parse
from camox.training.launch_options import settle

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"(?:^    |\| `)([^`\n]*(?:camox train|camox/train\.py) [^`\n]+)", PAGE, re.MULTILINE)


def words_of(command: str) -> tuple[list[str], list[str]]:
    """The launcher's options, and the arguments of camox/train.py."""
    words = shlex.split(command.replace("NODE0", "127.0.0.1"))
    if words[:2] == ["camox", "train"]:
        cut = words.index("--") if "--" in words else len(words)
        return words[cut + 1 :], words[2:cut]
    script = words.index("camox/train.py")
    return words[:script], words[script + 1 :]


def test_there_are_commands():
    assert {command.split()[0] for command in COMMANDS} >= {"camox", "torchrun", "ACCELERATE_USE_CPU=true"}


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_can_be_launched(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    options, arguments = words_of(command)
    experiment = parse(arguments)
    Experiment.load(experiment.experiment, experiment.overrides)
    if "torchrun" in options:
        asked = get_args_parser().parse_args([*options[options.index("torchrun") + 1 :], "camox/train.py"])
        assert asked.training_script == "camox/train.py"
    elif "launch" in options:
        launch_command_parser().parse_args([*options[options.index("launch") + 1 :], "camox/train.py"])
    else:
        settle([*options, "camox/train.py", *arguments])


def test_every_configuration_is_told_of():
    for file in (ROOT / "accelerate_configs").glob("*.yaml"):
        assert f"(../accelerate_configs/{file.name})" in PAGE


def test_the_size_of_what_is_not_sharded():
    results = json.loads((ROOT / "benchmarks/results/step.json").read_text())
    millions = results["results"]["networks"]["sparse"]["parameters_millions"]
    assert f"{millions:.1f} million parameters" in PAGE
    assert PAGE.count(f"{millions * 20 / 1000:.2f} GB") == 2

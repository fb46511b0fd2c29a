"""A TOML file becomes one frozen, validated object. Nothing here imports torch."""

from camox.experiment.editor import json_schema
from camox.experiment.experiment import Experiment, ResolvedPhase

__all__ = ["Experiment", "ResolvedPhase", "json_schema"]

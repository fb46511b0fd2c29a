"""A checkpoint as a folder of the Hugging Face hub: weights, what there is to know of them, and a card."""

from dataclasses import dataclass
from pathlib import Path

from camox.inference.exporting.model_card import write_card
from camox.inference.loading.facts import Facts
from camox.inference.loading.loaded_model import LoadedModel
from camox.models.pretrained import EXPERIMENT, FACTS, PUBLISHED, push_folder, write_pretrained


@dataclass(frozen=True)
class HubOptions:
    """What only the person who publishes a model can say."""

    license: str | None = None
    """Identifier of the hub, such as apache-2.0; None leaves it "unknown", and the card says so."""
    push: str | None = None
    """`owner/name` to upload to."""
    private: bool = False
    """Whether the repository has to be private; one that is made for it then is."""


def write_hub_folder(loaded: LoadedModel, facts: Facts, folder: Path, options: HubOptions) -> None:
    """Write config.json, model.safetensors, camox.json, README.md and, without its paths, experiment.toml."""
    folder.mkdir(parents=True)
    # Before the weights: with a card of its own, none is written there.
    write_card(loaded, facts, folder, options.license, options.push)
    write_pretrained(folder, loaded.model.config, loaded.model.state_dict())
    (folder / FACTS).write_text(facts.to_json(), encoding="utf-8")
    if loaded.experiment is not None:
        (folder / EXPERIMENT).write_text(loaded.experiment.publishable().to_toml(), encoding="utf-8")


def push_export(folder: Path, options: HubOptions) -> str:
    """Upload an exported folder; gives the address. Raises CheckpointError where the hub does not take it."""
    assert options.push is not None
    return push_folder(folder, options.push, private=options.private or None, message="Upload a camox model")


def replaceable(folder: Path) -> bool:
    """Whether a folder holds nothing but what an export writes, so that nothing is lost with it."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= set(PUBLISHED)

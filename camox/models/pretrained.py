"""Models as the Hugging Face hub holds them: a folder with config.json, model.safetensors and a model card."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from safetensors.torch import save_file
from torch import Tensor

from camox.errors import CheckpointError

CONFIG, WEIGHTS, CARD, FACTS, EXPERIMENT = (
    "config.json",
    "model.safetensors",
    "README.md",
    "camox.json",
    "experiment.toml",
)
PUBLISHED = (CONFIG, WEIGHTS, CARD, FACTS, EXPERIMENT)
"""All files that camox writes into such a folder, and the only ones that it uploads."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ANSWER_SECONDS = 10
_USE = """```python
from camox import CamoXpert

model = CamoXpert.from_pretrained("{name}")
logits = model(images).logits  # images: float [B, 3, H, W], RGB in [0, 1], any size
```
"""


def is_hub_id(path_or_id: str | Path) -> bool:
    """Whether nothing of that name lies on this machine, and it reads `owner/name`."""
    return not os.path.exists(path_or_id) and _ID.fullmatch(str(path_or_id)) is not None


def local_folder(
    path_or_id: str | Path,
    weights: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """The folder itself, or the one in the cache that a model of the hub was fetched into.

    Only tables and the safetensors file of `weights` are fetched: there is nothing in them to run.

    Raises:
        CheckpointError: the hub has no such model or cannot be reached, and the cache holds no copy.
    """
    if not is_hub_id(path_or_id):
        return Path(path_or_id)
    try:
        return Path(
            snapshot_download(
                str(path_or_id),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                allow_patterns=[CONFIG, FACTS, EXPERIMENT, f"{weights}.safetensors"],
                etag_timeout=_ANSWER_SECONDS,
            )
        )
    except Exception as error:  # the client lets through whatever its network library raises
        raise CheckpointError(
            f"{path_or_id}: there is no such folder, and it cannot be had from the hub ({_first_line(error)}): correct "
            "the path or the id, connect to the network, or log in with hf auth login for a private model"
        ) from error


def write_pretrained(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors, and a short card where there is none. CheckpointError if it cannot."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        if not (folder / CARD).exists():
            (folder / CARD).write_text(_short_card(folder.resolve().name), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder}: the model cannot be written ({error}): give another folder") from error


def push_folder(
    folder: Path, repo_id: str, token: str | None = None, private: bool | None = None, message: str = "Upload a model"
) -> str:
    """Upload what camox wrote into the folder, nothing else, as `owner/name`; gives the address of the commit.

    Raises:
        CheckpointError: the id reads otherwise, it is to be private and is public already, the hub refuses, or it
            cannot be reached.
    """
    if not _ID.fullmatch(repo_id):
        raise CheckpointError(f'"{repo_id}" is no id of the hub: give owner/name')
    try:
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        # What is there already stays as public as it is: the hub says nothing of it.
        is_public = bool(private) and not api.repo_info(repo_id).private
        if is_public:
            raise CheckpointError(f"{repo_id}: is a public repository already: give another name, or make it private")
        return str(
            api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, allow_patterns=list(PUBLISHED)
            )
        )
    except CheckpointError:
        raise
    except Exception as error:  # as above
        raise CheckpointError(
            f"{repo_id}: the hub does not take it ({_first_line(error)}): log in with hf auth login (or set HF_TOKEN) "
            "and check that you may write there"
        ) from error


def card_data(name: str, **fields: Any) -> ModelCardData:
    """What the hub reads of every camox model; `fields` are others of its metadata."""
    return ModelCardData(
        library_name="camox",
        pipeline_tag="image-segmentation",
        tags=["camouflaged-object-detection", "mixture-of-experts", "image-segmentation"],
        model_name=name,
        **fields,
    )


def how_to_load(name: str) -> str:
    """The lines of Python that load and run a model."""
    return _USE.format(name=name)


def _short_card(name: str) -> str:
    head = card_data(name, license="unknown").to_yaml()
    text = f"# {name}\n\nA camox model that finds camouflaged objects.\n\n{how_to_load(name)}"
    return str(ModelCard(f"---\n{head}\n---\n\n{text}"))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

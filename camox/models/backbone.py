"""The timm feature extractor behind the model: any backbone with features at strides 4, 8, 16 and 32."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from camox.errors import ExperimentError

STRIDES = (4, 8, 16, 32)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Image `[B,3,H,W]`, RGB in [0, 1], H and W multiples of 32 → four feature maps at strides 4, 8, 16, 32.

    The mean and deviation the weights were trained with are buffers, so that whoever holds the model
    cannot normalise differently. `channels` gives the channels of the four maps.

    Raises:
        ExperimentError: unknown name, not four scales, one image size only, or weights that cannot be had.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, pretrained: bool = False, weights: str | Path | None = None):
        super().__init__()
        network = _create(name, pretrained, weights)
        reductions = network.feature_info.reduction()
        missing = [stride for stride in STRIDES if stride not in reductions]
        if missing:
            raise ExperimentError(
                f'backbone "{name}" has features at strides {reductions}, not at {missing}: '
                f"camox needs strides {list(STRIDES)}; choose a pyramid such as edgenext_base or resnet50"
            )
        settings = getattr(network, "pretrained_cfg", None) or {}
        if settings.get("fixed_input_size"):
            raise ExperimentError(
                f'backbone "{name}" takes images of {settings.get("input_size")} only: camox needs one that takes '
                "any multiple of 32; choose a pyramid such as edgenext_base or pvt_v2_b2"
            )
        self.network: nn.Module = network
        self._is_nhwc = getattr(network, "output_fmt", "NCHW") == "NHWC"  # MambaOut's maps, for one
        self._norm_momentum: dict[nn.modules.batchnorm._BatchNorm, float | None] = {}
        self.frozen_stages = 0
        """How many of the four stages are not trained, counted from the shallowest."""
        self._indices = [reductions.index(stride) for stride in STRIDES]
        all_channels = network.feature_info.channels()
        self.channels = [all_channels[index] for index in self._indices]
        for key, value in (
            ("mean", settings.get("mean", _IMAGENET_MEAN)),
            ("std", settings.get("std", _IMAGENET_STD)),
        ):
            self.register_buffer(key, torch.tensor(value, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        self._count_batches(True)
        features = self.network((images - self.mean) / self.std)
        chosen = [features[index].permute(0, 3, 1, 2) if self._is_nhwc else features[index] for index in self._indices]
        if self._norm_momentum and chosen[-1].requires_grad:
            # The backward pass computes the network again; BatchNorm must not take in the batch again.
            chosen[-1].register_hook(lambda _: self._count_batches(False))
        return chosen

    def freeze_stages(self, count: int) -> None:
        """Freezes the `count` shallowest of the four stages and trains the others.

        A stage is what leads from one of the four feature maps to the next, the first from the image to stride 4.
        Frozen: no backward through it, its norm statistics untouched and its dropout off, also after `train()`.
        """
        assert 0 <= count <= len(STRIDES), count
        self.requires_grad_(count < len(STRIDES))
        if 0 < count < len(STRIDES):
            for stage in self._stages()[:count]:
                for parameter in stage:
                    parameter.requires_grad_(False)
        self.frozen_stages = count
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for module in self.network.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def _stages(self) -> list[list[nn.Parameter]]:
        """The parameters of each stage: those that a feature map depends on and the one before does not.

        Read from the graph of one small forward pass, because timm's networks agree on neither names nor nesting.
        """
        training = self.training
        self.eval()
        with torch.enable_grad():
            features = self(torch.zeros_like(self.mean).expand(1, 3, 64, 64))
        self.train(training)
        seen: set[Any] = set()
        return [_new_leaves(feature.grad_fn, seen) for feature in features]

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass; about a third more time for much less memory."""
        switch = getattr(self.network, "set_grad_checkpointing", None)
        if switch is None:
            raise ExperimentError("this backbone cannot checkpoint gradients: set model.gradient_checkpointing=false")
        switch(True)
        self._norm_momentum = {
            module: module.momentum
            for module in self.network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }

    def _count_batches(self, count: bool) -> None:
        for norm, momentum in self._norm_momentum.items():
            norm.momentum = momentum if count else 0.0


def _new_leaves(node: Any, seen: set[Any]) -> list[nn.Parameter]:
    """Parameters that lead to `node` of an autograd graph by nodes that have not been `seen`; marks those."""
    leaves, pending = [], [node]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        pending += [before for before, _ in node.next_functions]
    return leaves


def _create(name: str, pretrained: bool, weights: str | Path | None) -> Any:
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5)
        hint = f"did you mean one of {', '.join(close)}?" if close else "see timm.list_models()"
        raise ExperimentError(f'model.backbone = "{name}" is not known: {hint}')
    if weights is not None:
        return _create_from_file(name, Path(weights))
    source = pretrained_source(name) if pretrained else None
    try:
        if source is not None and not source.is_cached:
            source.require_answer()
        return timm.create_model(name, pretrained=pretrained, features_only=True)
    # The hub client raises a dozen unrelated types for "no network"; without `pretrained` nothing is fetched.
    except Exception as error:
        if source is None:
            raise ExperimentError(
                f'backbone "{name}" cannot be used as a feature extractor ({error}): choose another'
            ) from error
        raise ExperimentError(
            f'pretrained weights of "{name}" could not be fetched ({type(error).__name__}: {error}): {source.remedy}, '
            "or set model.pretrained=false"
        ) from error


@dataclass(frozen=True)
class PretrainedSource:
    """Where timm's weights of a backbone come from."""

    page: str
    """Address of the repository on the hub, or of a file elsewhere."""
    repository: str | None
    """Name of the repository on the hub."""

    @property
    def remedy(self) -> str:
        """What to do without a network."""
        file = "model.safetensors of " if self.repository else ""
        return f"download {file}{self.page} on another machine and give the file's path as model.weights"

    @property
    def is_cached(self) -> bool:
        """Whether the hub's client has the weights on this machine already."""
        files = ("model.safetensors", "pytorch_model.bin") if self.repository else ()
        return any(isinstance(try_to_load_from_cache(str(self.repository), file), str) for file in files)

    def require_answer(self) -> None:
        """One request to the hub, which raises whatever its client does: downloads would be tried for a minute."""
        if self.repository:
            with suppress(HfHubHTTPError):  # an answer all the same
                get_hf_file_metadata(hf_hub_url(self.repository, "model.safetensors"))


def pretrained_source(name: str) -> PretrainedSource:
    """Where the pretrained weights of a timm model come from, without asking the network.

    Raises:
        ExperimentError: it has none.
    """
    settings = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    repository, address = getattr(settings, "hf_hub_id", None), getattr(settings, "url", None)
    if not repository and not address:
        raise ExperimentError(
            f'there are no pretrained weights of "{name}": set model.pretrained=false, give a file as model.weights, '
            "or choose another backbone"
        )
    return PretrainedSource(f"https://huggingface.co/{repository}" if repository else str(address), repository)


def _create_from_file(name: str, weights: Path) -> Any:
    if weights.is_dir():
        raise ExperimentError(f"model.weights = {weights} is a folder: give the path of a .safetensors file in it")
    if weights.suffix != ".safetensors":
        raise ExperimentError(
            f"model.weights = {weights} is not a .safetensors file, and camox loads no pickles into training: convert "
            f"it first: python tools/convert_checkpoint.py {weights} --out {weights.with_suffix('.safetensors')}"
        )
    if not weights.is_file():
        raise ExperimentError(f"model.weights = {weights}: there is no such file; give the path of a .safetensors file")
    try:
        return _load_file(name, weights)
    except ExperimentError:
        raise
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ExperimentError(f'weights {weights} do not fit backbone "{name}": {error}') from error
    except Exception as error:  # safetensors' own error type derives from Exception alone
        raise ExperimentError(f"weights {weights} cannot be read: {error}") from error


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """timm lists every name that does not fit, thousands of characters before the message here says so."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _load_file(name: str, weights: Path) -> Any:
    # One seed for both: what the file left as it was initialised, the file did not hold.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # timm maps a classification checkpoint to the feature extractor's names and drops the classifier.
        with _quiet_timm():
            network = timm.create_model(
                name, pretrained=True, features_only=True, pretrained_cfg_overlay={"file": str(weights)}
            )
        torch.manual_seed(0)
        untrained = dict(timm.create_model(name, pretrained=False, features_only=True).named_parameters())
    # timm only logs missing names. Vectors are left out: norms start at one and may well have stayed there.
    absent = [
        key
        for key, parameter in network.named_parameters()
        if parameter.requires_grad and parameter.ndim > 1 and torch.equal(parameter, untrained[key])
    ]
    if absent:
        raise ExperimentError(
            f'weights {weights} do not fit backbone "{name}": they hold nothing for {len(absent)} of its tensors, '
            f"such as {absent[0]}; give the file of this backbone"
        )
    return network

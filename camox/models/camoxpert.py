"""The network: backbone, a sparse mixture of experts at each scale, decoder, refinement."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camox.errors import CheckpointError, ExperimentError
from camox.models.backbone import STRIDES, Backbone
from camox.models.balance import LoadBalance
from camox.models.conversion import convert_state
from camox.models.decoder import Decoder, SearchIdentification
from camox.models.experts import EXPERTS
from camox.models.moe import MixtureOfExperts, plan_dispatch
from camox.models.pretrained import local_folder, push_folder, write_pretrained
from camox.models.refinement import BoundaryUncertainty, Refinement, ReverseAttention, relative_deviation
from camox.models.regions import split_regions
from camox.models.router import RandomRouting, Router, Routing, StaticRouting

if TYPE_CHECKING:
    from camox.experiment import Experiment

DEFAULT_EXPERTS = ("texture", "edge", "contrast", "frequency", "attention", "semantic")


@dataclass
class CamoXpertOutput:
    """What the model says of a batch. Maps are logits unless named otherwise."""

    logits: Tensor
    """`[B, 1, H, W]` at the input's own size."""

    uncertainty: Tensor
    """`[B, 1, H, W]`, the boundary's standard deviation relative to the largest in the image, in (0, 1]."""

    search: Tensor
    """`[B, 1, H/32, W/32]` of the padded input: where an object may be."""

    deep: list[Tensor]
    """Decoder heads at strides 16, 8, 4 (only the last without deep supervision)."""

    boundary: Tensor
    """`[B, 1, H/4, W/4]`: boundary logits."""

    boundary_log_variance: Tensor
    """`[B, 1, H/4, W/4]`, fp32, in ±7."""

    refinements: list[Tensor]
    """`[B, 1, H/4, W/4]` after each refinement step."""

    routing: dict[int, Routing] = field(default_factory=dict)
    """Stride → what that scale's router decided; one row per image, or with a grid of regions one per region."""


class CamoXpert(nn.Module):
    """Camouflaged-object segmentation with a per-image sparse mixture of experts at four scales.

    `model(images)` takes float `[B, 3, H, W]`, RGB in [0, 1], any H and W, and gives a `CamoXpertOutput`.
    `config` holds the constructor's arguments, JSON-ready, so that `from_pretrained` can build it again.

    Raises:
        ExperimentError: an unknown backbone or expert, impossible sizes, weights that cannot be had.
    """

    def __init__(
        self,
        backbone: str = "edgenext_base",
        pretrained: bool = False,
        weights: str | None = None,
        width: int = 128,
        deep_supervision: bool = True,
        refinement_steps: int = 2,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        compile: bool = False,
        mode: str = "sparse",
        experts: Sequence[str] = DEFAULT_EXPERTS,
        top_k: int = 2,
        scales: Sequence[int] = STRIDES,
        shared: bool = False,
        granularity: str | int = "image",
        dispatch: str = "sorted",
        gate: str = "mlp",
        temperature: float = 1.0,
        logit_limit: float = 10.0,
        logit_limit_mode: str = "tanh",
        prob_floor: float = 0.0,
        noise: float = 0.0,
        window_images: float = 512,
        band: Sequence[float] = (0.5, 2.0),
        bias_rate: float = 5e-2,
    ):
        super().__init__()
        # What is needed to build the network again: weights come from the checkpoint then, and who predicts a few
        # images does not want to wait for a compiler.
        arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        self.config: dict[str, Any] = json.loads(json.dumps(arguments)) | {
            "pretrained": False,
            "weights": None,
            "compile": False,
        }
        _check_arguments(self.config)
        self.expert_names = tuple(experts[:top_k] if mode == "static" else experts)
        self.scales = tuple(stride for stride in STRIDES if stride in scales)
        self.mode = mode
        self.dispatch = dispatch
        self.grid = granularity if isinstance(granularity, int) else 1
        self.channels_last = channels_last
        self.learns_routing = mode in ("sparse", "dense") and bool(self.scales)
        top_k = len(experts) if mode == "dense" else top_k

        self.backbone = Backbone(backbone, pretrained, weights)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in self.backbone.channels)
        self.mixtures = nn.ModuleDict()
        self.routers = nn.ModuleDict()
        self.balances = nn.ModuleDict()
        for stride in self.scales:
            key, channels = f"stride_{stride}", self.backbone.channels[STRIDES.index(stride)]
            self.mixtures[key] = MixtureOfExperts(width, self.expert_names, shared, self.grid, gradient_checkpointing)
            if mode == "static":
                self.routers[key] = StaticRouting(top_k)
            elif mode == "random":
                self.routers[key] = RandomRouting(len(experts), top_k, salt=stride)
            else:
                self.routers[key] = Router(
                    channels, len(experts), top_k, gate, temperature, logit_limit, logit_limit_mode, prob_floor, noise
                )
                self.balances[key] = LoadBalance(
                    len(experts), top_k, window_images, (band[0], band[1]), bias_rate, bias_limit=logit_limit
                )
        self.search = SearchIdentification(width)
        self.decoder = Decoder(width)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in range(3 if deep_supervision else 1))
        self.reverse_attention = ReverseAttention(width)
        self.boundary = BoundaryUncertainty(width)
        self.refinements = nn.ModuleList(Refinement(width) for _ in range(refinement_steps))
        if gradient_checkpointing:
            self.backbone.checkpoint_gradients()
        if channels_last:
            self.to(memory_format=torch.channels_last)
        if compile:
            self._compile()

    def forward(self, images: Tensor, routing: dict[int, Routing] | None = None) -> CamoXpertOutput:
        """`images` float `[B, 3, H, W]`; `routing` by stride, if given, takes the place of the routers' decisions."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % 32, 0, -height % 32), mode="replicate")
        if self.channels_last:
            padded = padded.contiguous(memory_format=torch.channels_last)
        features = self.backbone(padded)
        # All routers before any expert: their choices then travel to the host in one copy.
        routing = self._route(padded, features) if routing is None else routing
        scales = self._mix([lateral(f) for lateral, f in zip(self.laterals, features, strict=True)], routing)
        identified, search = self.search(scales[-1])
        decoded = self.decoder(identified, scales[:-1])
        deep = [head(d) for head, d in zip(self.heads, decoded[-len(self.heads) :], strict=True)]

        detail = self.reverse_attention(decoded[-1], deep[-1])
        boundary, log_variance = self.boundary(detail)
        uncertainty = relative_deviation(log_variance, (height + 3) // 4, (width + 3) // 4)
        logits, refinements = deep[-1], []
        for refine in self.refinements:
            # The uncertainty is told by its own score alone: it must not learn to flatter the refinement.
            logits = refine(detail, logits, boundary, uncertainty.detach())
            refinements.append(logits)
        return CamoXpertOutput(
            logits=_to_input_size(logits, padded, height, width),
            uncertainty=_to_input_size(uncertainty.detach(), padded, height, width),
            search=search,
            deep=deep,
            boundary=boundary,
            boundary_log_variance=log_variance,
            refinements=refinements,
            routing=routing,
        )

    def freeze_backbone(self, stages: int) -> None:
        """Freezes that many of the backbone's four stages, from the shallowest on, and trains the others.

        Frozen: no backward through them, their norm statistics untouched.
        """
        self.backbone.freeze_stages(stages)

    def anneal_routing_noise(self, share: float) -> None:
        """Sets what is left of every router's exploration noise, in [0, 1]."""
        for router in self.routers.values():
            if isinstance(router, Router):
                router.noise_share = share

    def set_routing_noise(self, deviation: float) -> None:
        """Sets the standard deviation of every router's exploration noise before annealing."""
        for router in self.routers.values():
            if isinstance(router, Router):
                router.noise = deviation

    def balance(self, stride: int) -> LoadBalance:
        """The balance state of the mixture at that stride."""
        balance = self.balances[f"stride_{stride}"]
        assert isinstance(balance, LoadBalance)
        return balance

    def routing_margins(self, output: CamoXpertOutput) -> Tensor:
        """Of each image `[B]`, the narrowest of its routers' choices in `output`; see `Router.margins`.

        Infinite where no router chooses.
        """
        images = len(output.logits)
        margins = [output.logits.new_full((images,), torch.inf)]
        for stride, routing in output.routing.items():
            router = self.routers[f"stride_{stride}"]
            if isinstance(router, Router):
                of_regions = router.margins(routing.raw_logits, self.balance(stride).bias)
                margins.append(of_regions.view(images, -1).amin(dim=1))
        return torch.stack(margins).amin(dim=0)

    @classmethod
    def from_experiment(cls, experiment: "Experiment") -> "CamoXpert":
        """Builds the network that an experiment's model table describes."""
        model = experiment.model
        moe, router, balance = model.moe, model.moe.router, model.moe.balance
        return cls(
            backbone=model.backbone,
            pretrained=model.pretrained,
            weights=model.weights,
            width=model.width,
            deep_supervision=model.deep_supervision,
            refinement_steps=model.refinement_steps,
            gradient_checkpointing=model.gradient_checkpointing,
            channels_last=model.channels_last,
            compile=model.compile,
            mode=moe.mode,
            experts=moe.experts,
            top_k=moe.top_k,
            scales=moe.scales,
            shared=moe.shared,
            granularity=moe.granularity,
            dispatch=moe.dispatch,
            gate=router.gate,
            temperature=router.temperature,
            logit_limit=router.logit_limit,
            logit_limit_mode=router.logit_limit_mode,
            prob_floor=router.prob_floor,
            noise=router.noise,
            window_images=balance.window_images,
            band=balance.band,
            bias_rate=balance.bias_rate if balance.kind == "band" else 0.0,
        )

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        weights: str = "model",
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        **changes: Any,
    ) -> "CamoXpert":
        """Loads `config.json` and `<weights>.safetensors` (`model` or `ema`) of a folder; eval mode.

        The folder is a checkpoint, or one that `save_pretrained` or `camox export --format hub` wrote. What is no
        folder and reads `owner/name` is a model of the Hugging Face hub: its files are fetched into `cache_dir`, at
        `revision` (a branch, tag or commit), with `token` for a private one. No code is ever loaded from either.
        `changes` are arguments in place of those in `config.json`, such as `mode="dense"`: see `convert_state`.

        Raises:
            CheckpointError: a file is missing, cannot be fetched, or does not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = local_folder(path_or_id, weights, revision, token, cache_dir)
        config_file, weights_file = folder / "config.json", folder / f"{weights}.safetensors"
        for file in (config_file, weights_file):
            if not file.is_file():
                raise CheckpointError(f"{folder} has no {file.name}: give the folder of a camox checkpoint")
        try:
            config, state = json.loads(config_file.read_text(encoding="utf-8")), load_file(weights_file)
            _refuse_foreign_config(config, state)
            if changes:
                state, config = convert_state(state, config, **changes)
            # Whatever the file says: nothing is fetched or opened beside what is here.
            model = cls(**{**config, "pretrained": False, "weights": None})
            model.load_state_dict(state)
        except (CheckpointError, ExperimentError) as error:
            raise CheckpointError(f"{folder}: {error}") from error
        except (OSError, ValueError, SafetensorError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"{folder} cannot be loaded as a camox model: {error}") from error
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json`, `model.safetensors` and, where there is none, a short model card as `README.md`.

        `camox export --format hub` also writes what is known of the run: measures, threshold, image size.

        Raises:
            CheckpointError: the disk refuses.
        """
        write_pretrained(Path(folder), self.config, self.state_dict())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        commit_message: str = "Upload a camox model",
    ) -> str:
        """Uploads what `save_pretrained` writes as `owner/name`, which is made if there is none; gives its address.

        Raises:
            CheckpointError: the hub refuses, or cannot be reached.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(Path(folder), repo_id, token, private, commit_message)

    def _route(self, images: Tensor, features: list[Tensor]) -> dict[int, Routing]:
        routing = {}
        for stride in self.scales:
            router = self.routers[f"stride_{stride}"]
            if self.learns_routing:
                feature = split_regions(features[STRIDES.index(stride)], self.grid)
                routing[stride] = router(feature, self.balance(stride).bias)
            else:
                routing[stride] = router(split_regions(images, self.grid))
        return routing

    def _mix(self, scales: list[Tensor], routing: dict[int, Routing]) -> list[Tensor]:
        plans: list[Any] = [None] * len(routing)
        if self.dispatch == "sorted" and self.mode in ("sparse", "random") and routing:
            plans = list(plan_dispatch(list(routing.values()), len(self.expert_names)))
        for (stride, decision), plan in zip(routing.items(), plans, strict=True):
            index = STRIDES.index(stride)
            scales[index] = self.mixtures[f"stride_{stride}"](scales[index], decision, plan)
        return scales

    def _compile(self) -> None:
        """Compiles what has no branch on data: expert bodies and decoder. Sub-batches vary in size, hence `dynamic`."""
        # An expert's code is shared by four scales, each with one image or several, in training or evaluation.
        torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
        for mixture in self.mixtures.values():
            assert isinstance(mixture, MixtureOfExperts)
            for expert in [*mixture.experts.values(), *([] if mixture.shared is None else [mixture.shared])]:
                expert.compile(fullgraph=True, dynamic=True)
        self.decoder.compile(fullgraph=True, dynamic=True)


def _to_input_size(maps: Tensor, padded: Tensor, height: int, width: int) -> Tensor:
    full = F.interpolate(maps.float(), size=padded.shape[-2:], mode="bilinear", align_corners=False)
    return full[..., :height, :width]


_CHOICES = {
    "mode": ("sparse", "dense", "static", "random"),
    "dispatch": ("sorted", "masked"),
    "gate": ("mlp", "linear"),
    "logit_limit_mode": ("tanh", "clamp"),
}


def _refuse_foreign_config(config: Any, state: Mapping[str, Tensor]) -> None:
    """Refuses a damaged config.json before a network is built of it, which may take more memory than there is."""
    if not isinstance(config, dict):
        raise CheckpointError(
            "cannot be loaded: config.json is not a table of the model's arguments: take another checkpoint"
        )
    known = signature(CamoXpert).parameters
    for key, value in config.items():
        if key not in known:
            raise CheckpointError(
                f"cannot be loaded: config.json has {key!r}, which is no argument of the model: update camox"
            )
        if not _is_like(value, known[key].default):
            raise CheckpointError(
                f"cannot be loaded: config.json has {key} = {str(value)[:80]}, which it cannot be: take "
                "another checkpoint"
            )
    width = len(state["laterals.0.weight"]) if "laterals.0.weight" in state else None
    steps = len({name.split(".")[1] for name in state if name.startswith("refinements.")})
    for key, held in (("width", width), ("refinement_steps", steps)):
        if (told := config.get(key, known[key].default)) != held:
            raise CheckpointError(
                f"cannot be loaded: config.json has {key} = {told!r} and the weights are of {held}: they are "
                "not of the same network; take another checkpoint"
            )


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value from a file is of the kind that an argument with this default takes."""
    if isinstance(default, tuple):
        kinds = {type(item) for item in default}
        numbers = kinds == {float} and len(default) == 2  # a pair; the others are of any length
        fits = not numbers or (isinstance(value, list) and len(value) == 2)
        return fits and isinstance(value, list) and all(_is_like(item, default[0]) for item in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and -1e30 < value < 1e30
    return isinstance(value, str | int) if default == "image" else value is default or type(value) is type(default)


def _check_arguments(config: dict[str, Any]) -> None:
    for key, choices in _CHOICES.items():
        if config[key] not in choices:
            raise ExperimentError(f'unknown {key} "{config[key]}": choose from {list(choices)}')
    experts, top_k, scales, width, granularity = (
        config[key] for key in ("experts", "top_k", "scales", "width", "granularity")
    )
    unknown = [name for name in experts if name not in EXPERTS]
    if unknown:
        raise ExperimentError(f"unknown experts {unknown}: choose from {list(EXPERTS)}")
    if len(set(experts)) != len(experts):
        raise ExperimentError(f"experts {list(experts)} name one twice: name each once")
    if not experts:
        raise ExperimentError(f"experts is empty: name at least one of {list(EXPERTS)}, or set scales to none")
    if not 1 <= top_k <= len(experts):
        raise ExperimentError(f"top_k = {top_k} of {len(experts)} experts: choose between 1 and {len(experts)}")
    if width % 8 or width < 8:
        raise ExperimentError(f"width = {width} does not divide into 8 normalisation groups: use a multiple of 8")
    if not set(scales) <= set(STRIDES):
        raise ExperimentError(f"scales = {list(scales)}: choose from the strides {list(STRIDES)}")
    if granularity != "image" and not (isinstance(granularity, int) and granularity >= 1):
        raise ExperimentError(f'granularity = {granularity!r}: choose "image" or the number of rows of a grid')

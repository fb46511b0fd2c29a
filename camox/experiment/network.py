"""Every key of `[model]` and the tables in it, its default and its meaning."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from camox.experiment.table import Table


def _check_granularity(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Pydantic alone would report one mistake for each of the two types."""
    try:
        return check(value)
    except ValidationError as error:
        raise PydanticCustomError("choice", 'must be "image" or the rows of a grid, from 2 to 16') from error


Expert = Literal["texture", "edge", "contrast", "frequency", "attention", "semantic", "patch_frequency", "hybrid"]
Granularity = Annotated[
    Literal["image"] | Annotated[int, Field(ge=2, le=16)],
    WrapValidator(_check_granularity),
]


class Router(Table):
    """How an image is assigned to experts. Computed in fp32."""

    gate: Literal["mlp", "linear"] = "mlp"
    """What turns an image's statistics into logits: a network with one hidden layer, or one linear layer."""

    temperature: float = Field(default=1.0, gt=0)
    """Divides the router's logits before they are limited; lower is more decided."""

    logit_limit: float = Field(default=10.0, gt=0)
    """Logits stay within ± this value."""

    logit_limit_mode: Literal["tanh", "clamp"] = "tanh"
    """With "tanh" logits are limited smoothly; with "clamp" they are cut off and have no gradient beyond."""

    prob_floor: float = Field(default=0.0, ge=0, lt=0.1)
    """Least probability and weight of an expert. Above 0 they no longer sum to one and lose their gradient at the
    floor: for experiments that were published with it."""

    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the Gaussian noise added to logits for selection at the start of training; 0 for none. With
    1 experts are chosen by chance at first, and so trained alike."""

    noise_fraction: float = Field(default=0.15, ge=0, le=1)
    """Share of all steps over which the noise, if any, falls linearly to zero. Before its end a router that
    was never sound is not said to have collapsed."""


class Balance(Table):
    """What keeps every expert in use."""

    kind: Literal["band", "switch", "importance", "none"] = "band"
    """With "band" experts whose load leaves `band` are helped by a bias and the load-balance loss reads a window of
    images; "switch" is the loss of Switch Transformers, on each micro-batch (of all processes) alone; "importance" the
    squared distance of its mean probabilities from equal shares; with "none" nothing is done."""

    coefficient: float = Field(default=1e-3, ge=0)
    """Weight of the load-balance loss once it is warmed up."""

    coefficient_after_warmup: float | None = Field(default=None, ge=0)
    """Weight of the load-balance loss after `warmup_epochs`, if it is to be another than `coefficient`."""

    warmup_epochs: float = Field(default=5.0, ge=0)
    """Epochs over which the weight of the load-balance loss rises linearly from zero."""

    window_images: int = Field(default=512, ge=1)
    """Half-life, in images, of the running load of each expert. A single batch says nothing about balance."""

    band: tuple[float, float] = (0.5, 2.0)
    """Loads that are left alone, lowest and highest, as multiples of the equal share; holds 1."""

    bias_rate: float = Field(default=5e-2, ge=0)
    """How far the selection bias of an expert outside `band` moves per 24 images and unit of distance. With the default
    an expert that nobody chooses gains half a logit in 512 images."""

    z_loss: float = Field(default=1e-4, ge=0)
    """Weight of the squared log-partition of the router's logits, which keeps them small."""

    entropy: float = Field(default=0.0, ge=0)
    """Weight of a term that asks for the use of all experts over a batch: the entropy of the mean probabilities."""

    mutual_information: float = Field(default=0.0, ge=0)
    """Weight of a term that asks for the use of all experts over a batch and for a clear choice in each image."""


class MixtureOfExperts(Table):
    """The experts that features pass through at each scale."""

    mode: Literal["sparse", "dense", "static", "random"] = "sparse"
    """With "sparse" an image passes through the `top_k` experts its router selects, with "dense" through all,
    weighted. Two controls: with "static" every image passes through the first `top_k` of `experts`, and with "random"
    through `top_k` drawn by chance."""

    experts: tuple[Expert, ...] = Field(
        default=("texture", "edge", "contrast", "frequency", "attention", "semantic"), min_length=1
    )
    """Names of the experts, each once."""

    top_k: int = Field(default=2, ge=1)
    """Experts per image, except in "dense" mode."""

    scales: tuple[Literal[4, 8, 16, 32], ...] = (4, 8, 16, 32)
    """Strides of the feature maps that have experts, each once; with none the network has no experts."""

    shared: bool = False
    """One more expert at each scale, a hybrid of all cues, that every image passes through."""

    granularity: Granularity = "image"
    """What is routed: whole images, or the regions of a grid with this many rows and columns. An expert sees no
    further than its region, so maps have seams at the borders of regions."""

    dispatch: Literal["sorted", "masked"] = "sorted"
    """With "sorted" each expert runs on its images only, for which one copy of the routing to the host is
    waited for; with "masked" every expert runs on every image and nothing waits. The results are equal."""

    router: Router = Router()
    """How an image is assigned to experts."""

    balance: Balance = Balance()
    """What keeps every expert in use."""


class Model(Table):
    """The network."""

    backbone: str = Field(default="edgenext_base", min_length=1)
    """Name of a timm model with features at strides 4, 8, 16 and 32."""

    pretrained: bool = True
    """Start the backbone from timm's pretrained weights, downloaded on first use."""

    weights: str | None = Field(default=None, min_length=1)
    """Local safetensors file with the backbone's weights, used in place of a download."""

    width: int = Field(default=128, ge=8, multiple_of=8)
    """Channels of all feature maps behind the backbone."""

    deep_supervision: bool = True
    """Three more heads on decoder features, supervised in training."""

    refinement_steps: int = Field(default=2, ge=0)
    """Residual corrections of the logits at stride 4, each supervised."""

    gradient_checkpointing: bool = False
    """Compute activations of the backbone and the experts again in the backward pass: less memory, more time."""

    channels_last: bool = False
    """Store feature maps as NHWC, which convolutions of a GPU in fp16 or bf16 prefer."""

    compile: bool = False
    """Compile experts and decoder with torch.compile: faster steps after some minutes of compiling at the start."""

    moe: MixtureOfExperts = MixtureOfExperts()
    """The experts that features pass through at each scale."""

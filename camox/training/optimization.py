"""One AdamW over named parameter groups, gradient clipping by group, and its state by parameter name."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from camox.errors import CheckpointError

GROUPS = ("backbone", "router", "experts", "head")
_STATE = {"step", "exp_avg", "exp_avg_sq"}
"""What AdamW keeps for each parameter."""


def group_of(name: str) -> str:
    """The group of a parameter, from its name in the model: one of `GROUPS`."""
    if name.startswith("backbone."):
        return "backbone"
    if "router" in name:
        return "router"
    return "experts" if ".experts." in name or ".shared." in name else "head"


def build_optimizer(
    model: nn.Module,
    lr_multipliers: Mapping[str, float],
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool,
) -> torch.optim.AdamW:
    """AdamW over every parameter, frozen ones too: a phase that unfreezes them needs no second optimizer.

    Norms, biases, scales and routers have no weight decay. Each group carries `name` and `lr_mult`.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = group_of(name)
        decays = group != "router" and sum(size > 1 for size in parameter.shape) > 1
        groups.setdefault((group, decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "name": group,
                "lr_mult": lr_multipliers.get(group, 1.0),
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (group, decays), parameters in groups.items()
        ],
        lr=0.0,  # set before every step from the schedule
        betas=betas,
        fused=fused,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, router_factor: float = 1.0) -> None:
    """Gives each group `rate` times its multiplier, the routers' times a factor besides."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"] * (router_factor if group["name"] == "router" else 1.0)


class GradientNorms(NamedTuple):
    """2-norms before clipping, fp32, 0-dimensional, on the device; `clipped` are 0 or 1."""

    groups: dict[str, Tensor]
    total: Tensor
    router_clipped: Tensor
    rest_clipped: Tensor


def clip_gradients(
    parameters: Iterable[tuple[str, nn.Parameter]], router_limit: float, rest_limit: float
) -> GradientNorms:
    """Limits the routers' gradient and everything else's apart, after unscaling, without a host sync.

    The two sets are disjoint, so the order does not matter and no gradient is limited twice. A norm that is
    not finite leaves gradients that are not finite either: the step must then be skipped.
    """
    by_group: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in parameters:
        if parameter.grad is not None:
            by_group[group_of(name)].append(parameter)
    device = next(p.device for members in by_group.values() for p in members)
    # Of no tensors the norm would be one on the CPU, and to copy it would wait for the device in each step.
    nothing = torch.zeros((), device=device)
    norms = {
        name: get_total_norm([p.grad for p in members if p.grad is not None]) if members else nothing
        for name, members in by_group.items()
    }
    router, rest = norms["router"], _combine(norms[name] for name in GROUPS if name != "router")
    others = [p for name in GROUPS if name != "router" for p in by_group[name]]
    clip_grads_with_norm_(by_group["router"], router_limit, router)
    clip_grads_with_norm_(others, rest_limit, rest)
    return GradientNorms(
        groups=norms,
        total=_combine(norms.values()),
        router_clipped=(router > router_limit).float(),
        rest_clipped=(rest > rest_limit).float(),
    )


def _combine(norms: Iterable[Tensor]) -> Tensor:
    return torch.stack([norm.float() for norm in norms]).norm()


def optimizer_tensors(
    parameters: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The optimizer's state of named parameters: `<parameter>/exp_avg`, `<parameter>/step`, …"""
    return {
        f"{name}/{key}": value
        for name, parameter in parameters
        for key, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave, in the parameters' own order in memory; parameters that had no state yet
    (frozen until now) stay without.

    Raises:
        CheckpointError: a name that is not a parameter of this model, or state that does not fit the parameter.
    """
    numbers = {
        id(parameter): number
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    by_name = dict(model.named_parameters())
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        if name not in by_name:
            raise CheckpointError(f"the optimizer's state has {name}, which this model has not")
        if field not in _STATE or value.shape != (() if field == "step" else by_name[name].shape):
            raise CheckpointError(f"the optimizer's state has {key} of shape {list(value.shape)}, which does not fit")
        # A file has one order in memory. Weights in channels_last have another, and the fused kernel goes through
        # weight and moments side by side: without this each weight would get the moments of another one.
        ours = value if field == "step" else torch.empty_like(by_name[name]).copy_(value)
        state.setdefault(numbers[id(by_name[name])], {})[field] = ours
    if partial := [fields for fields in state.values() if fields.keys() != _STATE]:
        raise CheckpointError(f"the optimizer's state of a parameter has only {', '.join(sorted(partial[0]))}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

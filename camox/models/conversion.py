"""One network's tensors as those of its twin: another way through the experts, fewer of them, or in another order.

Twins share the names of their parameters; what differs is which experts there are, and so the rows of each router.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from camox.errors import CheckpointError

_ROUTED = ("sparse", "dense")
_FIXED = (
    "backbone", "pretrained", "weights", "width", "deep_supervision", "refinement_steps", "scales", "shared", "gate",
)  # fmt: skip
"""Arguments that decide which parameters there are, or where they come from."""

_EXPERT = re.compile(r"mixtures\.\w+\.experts\.(\w+)\.")
_ROUTER = re.compile(r"(routers|balances)\.")
_GATE = re.compile(r"routers\.\w+\.gate\.(weight|bias)")
_BALANCE = re.compile(r"balances\.\w+\.(load|bias)")


def convert_state(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    mode: str | None = None,
    experts: Sequence[str] | None = None,
    top_k: int | None = None,
    **others: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and arguments of a `CamoXpert` as those of one with other experts, or another way through them.

    Nothing given is changed. Without a change of experts every tensor keeps its bits, so that "sparse" to "dense" and
    back gives what was there. Where experts are left out, those kept are preferred to each other as before: loads are
    scaled to sum to 1 and selection biases are centred anew. The optimizer's state has no such conversion.

    Args:
        state: the network's tensors by name, of raw or averaged weights.
        config: its arguments, as in `config.json`.
        mode: by default as it is. To "sparse" and "dense" only from these: the others have no routers.
        experts: names of those to keep, in any order; by default all that the network holds.
        top_k: by default as it is; to "static" with `experts`, all of these. None to "dense", and not 1 to "sparse".
        others: further arguments of `CamoXpert`, of those that change no parameter, such as `granularity`.

    Raises:
        CheckpointError: the network does not hold what the other needs.
    """
    others = {name: list(value) if isinstance(value, tuple) else value for name, value in others.items()}  # as in JSON
    _refuse_other_parameters(config, others)
    held = _experts_held(config)
    mode = mode or config["mode"]
    if mode in _ROUTED and config["mode"] not in _ROUTED:
        raise CheckpointError(
            f'a network of mode "{config["mode"]}" has no routers, and mode "{mode}" needs them: convert a sparse or '
            f'dense one, or train with model.moe.mode = "{mode}"'
        )
    names = held if experts is None else list(experts)
    if absent := [name for name in names if name not in held]:
        raise CheckpointError(
            f"the network holds no expert {', '.join(absent)}, only {', '.join(held)}: choose from these, or train a "
            "network with the others"
        )
    if top_k is None:
        top_k = len(names) if mode == "static" and experts is not None else config["top_k"]
        if mode == "dense":
            top_k = min(top_k, len(names))  # it is not used there
    elif mode == "dense":
        raise CheckpointError(f'top_k = {top_k} has no effect in mode "dense", which takes all experts: leave it out')
    if mode == "sparse" and top_k == 1 < len(names) and (mode, top_k) != (config["mode"], config["top_k"]):
        raise CheckpointError(
            "with top_k = 1 the one expert of an image has weight 1 whatever the router learned, so the network cannot "
            "be trained on: take 2 or more"
        )
    if not 1 <= top_k <= len(names):
        raise CheckpointError(f"top_k = {top_k} of {len(names)} experts: keep more experts, or give another top_k")
    if mode == "static":
        names = names[:top_k]  # what it holds, and no more than that, is what its config tells
    changed = {"mode": mode, "experts": names, "top_k": top_k}
    converted = {
        name: _select(name, tensor, held, names) for name, tensor in state.items() if _is_kept(name, mode, names)
    }
    return converted, {**config, **others, **changed}


def _refuse_other_parameters(config: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Refuses to change what decides which parameters there are."""
    for name in ("mode", "experts", "top_k", "scales"):
        if name not in config:
            raise CheckpointError(f"its config.json does not tell {name}: it is none of a camox model, or damaged")
    if not config["scales"]:
        raise CheckpointError("the network has no experts (scales = []): there is nothing to convert")
    for name in _FIXED:
        if name in others and others[name] != config.get(name):
            raise CheckpointError(
                f"{name} = {others[name]!r} needs other parameters than those of {name} = {config.get(name)!r}: keep "
                "it, or train such a network"
            )


def _experts_held(config: Mapping[str, Any]) -> list[str]:
    names = list(config["experts"])
    return names[: config["top_k"]] if config["mode"] == "static" else names


def _is_kept(name: str, mode: str, experts: Sequence[str]) -> bool:
    if _ROUTER.match(name):
        return mode in _ROUTED
    expert = _EXPERT.match(name)
    return expert is None or expert[1] in experts


def _select(name: str, tensor: Tensor, held: list[str], kept: list[str]) -> Tensor:
    """The rows of the experts kept, if it is a tensor with one for each."""
    balance = _BALANCE.fullmatch(name)
    if kept == held or not (balance or _GATE.fullmatch(name)):
        return tensor
    if len(tensor) != len(held):
        raise CheckpointError(
            f"{name} is of {len(tensor)} experts and config.json names {len(held)}: they are not of the same network; "
            "take another checkpoint"
        )
    rows = tensor[[held.index(expert) for expert in kept]]
    if balance is None or len(kept) == len(held):
        return rows
    if balance[1] == "bias":
        return rows - rows.mean()
    return rows / rows.sum() if rows.sum() > 0 else rows + 1 / len(kept)

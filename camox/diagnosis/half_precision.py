"""The half precision of a GPU on a CPU: autocast by CUDA's rules, of which results have which type.

A CPU's own autocast keeps norms and resized maps in half precision, where a GPU computes and keeps them in single: what
a step holds there cannot be counted by it. The lists are those of `ATen/autocast_mode.h`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel
from torch.utils._pytree import tree_leaves, tree_map

HALF = ["addmv", "addr", "chain_matmul", "linalg_multi_dot", "mv"]
"""In half precision; those left out are on the CPU's own list too, or made of such as are."""

SINGLE = [
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
    "sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm",
    "native_layer_norm", "rms_norm", "group_norm", "frobenius_norm.dim", "nuclear_norm", "nuclear_norm.dim",
    "cosine_similarity", "binary_cross_entropy_with_logits", "poisson_nll_loss", "cosine_embedding_loss",
    "nll_loss", "nll_loss2d", "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss",
    "mse_loss", "margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss",
    "multi_margin_loss", "dist", "pdist", "cdist", "renorm", "logsumexp", "upsample_nearest1d",
    "_upsample_nearest_exact1d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_nearest3d",
    "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa", "norm.Scalar", "norm.ScalarOpt_dim",
]  # fmt: skip
"""Computed in single precision."""

SINGLE_RESULT = [
    "prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm",
    "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum", "sum.dim_IntList",
]  # fmt: skip
"""Given a result in single precision, unless they are told its type."""

WIDEST = [
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot",
    "scatter_add",
]  # fmt: skip
"""Computed in the widest type among their arguments."""


@contextmanager
def autocast_as_on_a_gpu() -> Iterator[None]:
    """Inside, `torch.autocast("cpu", …)` gives results the types that `torch.autocast("cuda", …)` gives them.

    Also where gradient checkpointing computes a part again. Alters torch's own table of operators while it lasts: for a
    process that computes nothing else meanwhile.
    """
    library = Library("aten", "IMPL")
    for names, rule in ((HALF, _in_half), (SINGLE, _in_single), (SINGLE_RESULT, _single_result), (WIDEST, _in_widest)):
        for name in names:
            library.impl(name, rule(_operator(name)), _KEY)
    for name in torch._C._dispatch_get_all_op_names():
        if _has_rule(name, _KEY) and not _has_rule(name, "AutocastCUDA"):
            library.impl(name.removeprefix("aten::"), fallthrough_kernel, _KEY)
    try:
        yield
    finally:
        del library  # without an owner it takes its entries back


_KEY = "AutocastCPU"
_Operator = Callable[..., Any]


def _has_rule(name: str, key: str) -> bool:
    return name.startswith("aten::") and bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def _operator(name: str) -> _Operator:
    packet, _, overload = name.partition(".")
    operator: _Operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return operator


def _in_half(operator: _Operator) -> _Operator:
    return _cast(operator, lambda arguments: torch.get_autocast_dtype("cpu"))


def _in_single(operator: _Operator) -> _Operator:
    return _cast(operator, lambda arguments: torch.float32)


def _in_widest(operator: _Operator) -> _Operator:
    return _cast(operator, lambda arguments: torch.float32 if any(_is_single(a) for a in arguments) else None)


def _cast(operator: _Operator, choose: Callable[[list[Any]], torch.dtype | None]) -> _Operator:
    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = choose(tree_leaves((args, kwargs)))
        if dtype is not None:
            args, kwargs = tree_map(lambda a: a.to(dtype) if _is_half(a) or _is_single(a) else a, (args, kwargs))
        with _below():
            return operator(*args, **kwargs)

    return run


def _single_result(operator: _Operator) -> _Operator:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        told = [a for a in (*args, kwargs.get("dtype")) if isinstance(a, torch.dtype)]
        if _is_half(x) and not told:
            args = tuple(a for a in args if a is not None)  # a type that was left out in place
            kwargs["dtype"] = torch.float32
        with _below():
            return operator(x, *args, **kwargs)

    return run


def _is_half(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _is_single(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _below() -> Any:
    """The operator itself, without this rule."""
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU))

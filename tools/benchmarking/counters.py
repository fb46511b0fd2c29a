"""What a forward pass does, counted rather than timed: the same on every machine, busy or idle."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.timing import significant
from camox.diagnosis.memory import saved_bytes
from camox.models.costs import FOURIER_TRANSFORMS

DRAWS = 3
"""Random routings that counts are averaged over."""

# The device must have computed them before the size of their result is known on the host.
_SIZED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
# They hand the values of a host's tensor to Python without calling an operator.
_READS = {"tolist", "numpy", "__array__"}


def forward_counts(
    forward: Callable[[], object], module: nn.Module, images: int, device: torch.device
) -> dict[str, float]:
    """Every count of a forward pass of `module` on `images` images; means where the routing is drawn by chance."""
    own = [*module.parameters(), *module.buffers()]
    work, kept, calls = [], [], []
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        work.append(multiply_adds(forward))
        kept.append(saved_bytes(forward, own))
        with count_calls(device) as counted:
            forward()
        calls.append(counted)
    return {
        "gmac_per_image": significant(mean(work) / images / 1e9),
        "parameters_millions": significant(parameter_count(module) / 1e6),
        "saved_bytes": round(mean(kept)),
        "operators_per_forward": significant(mean(counted.operators for counted in calls)),
        "host_copies_per_forward": significant(mean(counted.host_copies for counted in calls)),
    }


def parameter_count(module: nn.Module) -> int:
    """Numbers in the parameters of `module`, each parameter once."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(forward: Callable[[], object]) -> int:
    """Multiply-adds of the convolutions, matrix products and Fourier transforms that `forward` calls.

    Element-wise work is not counted. Meant for a forward pass alone: in a backward pass with gradient checkpointing
    the same work would count twice.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FOURIER_TRANSFORMS) as counter:
        forward()
    return int(counter.get_total_flops()) // 2


class StepWork(NamedTuple):
    """What a training step has to do, whatever it runs on."""

    multiply_adds: int
    """Of convolutions, matrix products and Fourier transforms, forward and backward."""

    traffic_bytes: int
    """All that operators read and write, each by itself."""


def step_work(step: Callable[[], object]) -> StepWork:
    """Counts one step, without gradient checkpointing: there work that is done twice would count twice."""
    with FlopCounterMode(display=False, custom_mapping=FOURIER_TRANSFORMS) as counter, _Traffic() as traffic:
        step()
    return StepWork(int(counter.get_total_flops()) // 2, traffic.bytes)


class _Traffic(TorchDispatchMode):
    """Bytes of the tensors that operators take and give; views move nothing, and `empty` has written nothing yet."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        aliases = [given.alias_info for given in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and not func.overloadpacket.__name__.startswith(("empty", "new_empty")):
            leaves = tree_leaves((args, kwargs, result))
            self.bytes += sum(_bytes(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        return result


def _bytes(tensor: Tensor) -> int:
    """What is stored of it: an expanded dimension is read from the same place again and again."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@dataclass
class Calls:
    """How often something was called."""

    operators: int = 0
    """Operators below autograd, views included."""

    host_copies: int = 0
    """Times that the host had to have values from the device."""


@contextmanager
def count_calls(device: torch.device) -> Iterator[Calls]:
    """Counts what is called on tensors of `device` while the block runs.

    On a GPU a host copy is an operator that takes a tensor there and gives one on the host, or a number to Python, or
    a result whose size depends on the values (`nonzero`, indexing by a mask, …). On a CPU device and host are one and
    nothing is copied; counted are the places that would: numbers handed to Python (`.item()`, `bool()`, `.tolist()`,
    `.numpy()`) and results sized by values. `.cpu()` and `.to("cpu")` do nothing there and count by what is then read.
    """
    calls = Calls()
    with _Reads(calls, device), _Operators(calls, device):
        yield calls


class _Operators(TorchDispatchMode):
    def __init__(self, calls: Calls, device: torch.device):
        super().__init__()
        self.calls = calls
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.operators += 1
        self.calls.host_copies += self._copies(func.overloadpacket.__name__, args, kwargs or {}, result)
        return result

    def _copies(self, operator: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object) -> bool:
        source = args[1] if operator == "copy_" else next(iter(args), None)
        if not isinstance(source, Tensor) or source.device.type != self.device.type:
            return False
        match operator:
            case "_local_scalar_dense":
                return True
            case "copy_" | "_to_copy":
                return isinstance(result, Tensor) and result.device.type != self.device.type
            case "index" | "index_put" | "index_put_":
                return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
            case "repeat_interleave":
                return kwargs.get("output_size") is None
        return operator in _SIZED_BY_VALUES


class _Reads(TorchFunctionMode):
    """What `_Operators` cannot see on a CPU, or would take for a copy. On a GPU it sees all by itself."""

    def __init__(self, calls: Calls, device: torch.device):
        super().__init__()
        self.calls = calls
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.device.type != "cpu":
            return func(*args, **kwargs)
        before = self.calls.host_copies
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", None)
        if name in _READS:
            self.calls.host_copies += 1
        if name == "one_hot" and (len(args) > 1 or "num_classes" in kwargs):
            # Told the number of classes, only a CPU reads the numbers to check them; a GPU leaves that to its kernel.
            self.calls.host_copies = before
        return result

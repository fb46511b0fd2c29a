"""Where the first value that is not finite comes from: module, operation, line of code, forward or backward pass."""

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Stage = Literal["weights", "input", "forward", "backward"]
_LABEL = "camox_module"
_MOST_CANDIDATES = 64
_TORCH = Path(torch.__file__).parent
_ABOVE_CAMOX = Path(__file__).parents[2]


@dataclass(frozen=True)
class Culprit:
    """The first place at which a value is not finite, though all that went into it is."""

    stage: Stage
    module: str
    """Dotted name of a module in the network, of a tensor for "weights" and "input"; empty for what is outside of all
    modules, such as a loss."""
    operation: str
    """As torch names it, such as "aten.log.default"; empty for "weights" and "input"."""
    line: str
    """File and line of the code that asked for the operation, or, in the backward pass, for the one it belongs to."""
    nan: int
    inf: int
    size: int
    """How many values there are in all."""
    rows: tuple[int, ...] = ()
    """Which images of the batch, where the first dimension is the batch's."""

    def plain(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        bad = " and ".join(f"{count} {name}" for count, name in ((self.nan, "NaN"), (self.inf, "Inf")) if count)
        values = f"{bad} of {self.size} value{'s' if self.size > 1 else ''}"
        match self.stage:
            case "weights":
                return f"{self.module}, a tensor of the network itself, holds {values}"
            case "input":
                return f"{self.module}, which the network is given, holds {values}"
        line = f" ({self.line})" if self.line else ""
        return f"{self.module or 'the loss'}: {self.operation}{line} gives {values} in the {self.stage} pass"


def find_culprit(network: nn.Module, inputs: Mapping[str, Tensor], compute: Callable[[], None]) -> Culprit | None:
    """Runs `compute`, which calls `network` and goes backward, and gives what first made a value that is not finite.

    None where no such value lasts: torch itself divides by zero here and there and writes zeros over the result.
    Constants, such as the -Inf of a mask, are blamed only if nothing else is at fault. Costs several times the
    computation alone, and a wait for the device after each operation.

    Args:
        inputs: name → tensor that `compute` starts from; the batch is the first dimension of each.
    """
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    given: list[tuple[Stage, Mapping[str, Tensor]]] = [("weights", named), ("input", inputs)]
    for stage, tensors in given:
        for name, tensor in tensors.items():
            if not _is_finite(tensor):
                return _culprit(stage, name, "", "", tensor)
    modules, images = _Modules(network), len(next(iter(inputs.values())))
    # With anomaly detection every backward node knows the line that its forward was called from.
    with torch.autograd.set_detect_anomaly(True, check_nan=False), modules, _Operations(modules, images) as operations:
        compute()
    gradients = (parameter.grad for parameter in network.parameters() if parameter.grad is not None)
    return operations.culprit(gradients_are_finite=all(map(_is_finite, gradients)))


class _Modules:
    """Knows which module is at work: in a forward pass by its hooks, in a backward pass by labels on the graph."""

    def __init__(self, network: nn.Module):
        self._names = {module: name for name, module in network.named_modules()}
        self._stack: list[str] = []

    def __enter__(self) -> "_Modules":
        self._hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def at_work(self) -> tuple[Stage, str, str]:
        """Stage, module and line. What a checkpointed forward pass computes again counts as forward."""
        node = torch._C._current_autograd_node()
        if self._stack or node is None:
            return "forward", self._stack[-1] if self._stack else "", _line_of(sys._getframe(1))
        notes = _notes(node)
        return "backward", notes.get(_LABEL, ""), _line_in("".join(notes.get("traceback_", [])))

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        if module in self._names:
            self._stack.append(self._names[module])

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if module not in self._names:
            return
        name = self._stack.pop()
        given = {tensor.grad_fn for tensor in _tensors(tree_leaves(arguments))}
        # Inner modules are left first: what has no label yet is this module's own.
        nodes: list[Node | None] = [tensor.grad_fn for tensor in _tensors(tree_leaves(output))]
        while nodes:
            node = nodes.pop()
            if node is None or node in given or _LABEL in _notes(node):
                continue
            _notes(node)[_LABEL] = name
            nodes += [before for before, _ in node.next_functions]


class _Operations(TorchDispatchMode):
    """Looks at the result of every operation, and keeps those that are not finite though their arguments are."""

    def __init__(self, modules: _Modules, images: int):
        super().__init__()
        self._modules = modules
        self._images = images
        self._candidates: list[tuple[bool, Tensor, Culprit]] = []
        self._made_nan = False

    def culprit(self, gradients_are_finite: bool) -> Culprit | None:
        """The first candidate whose result nobody has made finite since."""
        lasting = [(constant, culprit) for constant, result, culprit in self._candidates if not _is_finite(result)]
        if all(constant for constant, _ in lasting) and gradients_are_finite and not self._made_nan:
            return None  # a mask did what it is for
        return min(lasting, key=lambda candidate: candidate[0])[1] if lasting else None

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        leaves = tree_leaves((arguments, keywords or {}))
        # Judged before the call: an operation in place overwrites what it was given.
        sound = len(self._candidates) < _MOST_CANDIDATES and all(map(_is_finite, _tensors(leaves)))
        results = operation(*arguments, **(keywords or {}))
        # Memory that nobody has written to yet holds anything.
        for result in _tensors(tree_leaves(results)) if "empty" not in str(operation) else ():
            if _is_finite(result):
                continue
            self._made_nan = self._made_nan or bool(result.isnan().any())
            if sound:
                stage, module, line = self._modules.at_work()
                constant = any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in leaves)
                found = _culprit(stage, module, str(operation), line, result, self._rows(result))
                self._candidates.append((constant, result, found))
        return results

    def _rows(self, result: Tensor) -> tuple[int, ...]:
        if result.dim() < 2 or len(result) != self._images:
            return ()
        return tuple((~result.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist())


def _notes(node: Node) -> dict[str, Any]:
    """What may be attached to a node of the graph; lives as long as the node."""
    notes: Any = node.metadata  # declared as a method, but a property
    return notes


def _tensors(leaves: Iterable[Any]) -> Iterator[Tensor]:
    return (leaf for leaf in leaves if isinstance(leaf, Tensor))


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(tensor.isfinite().all())


def _culprit(stage: Stage, name: str, operation: str, line: str, tensor: Tensor, rows: tuple[int, ...] = ()) -> Culprit:
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return Culprit(stage, name, operation, line, nan, inf, tensor.numel(), rows)


def _line_of(frame: FrameType | None) -> str:
    """The innermost place on the stack that is neither in torch nor here."""
    while frame is not None:
        name = frame.f_code.co_filename
        if _is_ours(name):
            return f"{_short(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _line_in(traceback: str) -> str:
    places = re.findall(r'File "([^"]+)", line (\d+)', traceback)
    return next((f"{_short(name)}:{number}" for name, number in reversed(places) if _is_ours(name)), "")


def _is_ours(file: str) -> bool:
    return file != __file__ and not file.startswith("<") and _TORCH not in Path(file).parents


def _short(file: str) -> str:
    path = Path(file)
    # The first may lie below the second.
    for base in (_TORCH.parent, _ABOVE_CAMOX):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return file

"""A CPU's autocast by CUDA's rules, against CUDA's own autocast on tensors without values, which need no GPU."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from camox.diagnosis.half_precision import HALF, SINGLE, SINGLE_RESULT, WIDEST, autocast_as_on_a_gpu
from camox.diagnosis.memory import saved_bytes
from camox.models.camoxpert import CamoXpert

OPERATIONS = {
    "convolution": lambda x, h, n: F.conv2d(x, n[:, :, None, None].expand(8, 8, 3, 3)),
    "linear": lambda x, h, n: F.linear(n, n),
    "product": lambda x, h, n: h @ n,
    "product with a vector": lambda x, h, n: n.mv(n[0]),
    "layer norm": lambda x, h, n: F.layer_norm(h, (8,)),
    "group norm": lambda x, h, n: F.group_norm(h[None], 1),
    "softmax": lambda x, h, n: h.softmax(dim=1),
    "softmax of a type": lambda x, h, n: h.softmax(dim=1, dtype=torch.float16),
    "sum": lambda x, h, n: h.sum(),
    "sum of rows": lambda x, h, n: h.sum(dim=1, keepdim=True),
    "sum of a type": lambda x, h, n: h.sum(dim=1, dtype=torch.float16),
    "mean": lambda x, h, n: h.mean(dim=1),
    "exponential": lambda x, h, n: h.exp(),
    "power": lambda x, h, n: h**2,
    "norm": lambda x, h, n: h.norm(dim=1),
    "normalised": lambda x, h, n: F.normalize(h, dim=1),
    "interpolated": lambda x, h, n: F.interpolate(h[None, None], scale_factor=2.0, mode="bilinear"),
    "padded": lambda x, h, n: F.pad(h[None, None], (1, 1, 1, 1), mode="replicate"),
    "concatenated": lambda x, h, n: torch.cat([h, h]),
    "GELU": lambda x, h, n: F.gelu(h),
    "sigmoid": lambda x, h, n: h.sigmoid(),
    "cross-entropy": lambda x, h, n: F.binary_cross_entropy_with_logits(h, h),
    "addcmul of two types": lambda x, h, n: torch.addcmul(h, h, n),
    "addcmul of one type": lambda x, h, n: torch.addcmul(h, h, h),
}


@contextmanager
def autocast(device):
    """On a machine without a GPU `torch.autocast("cuda")` switches itself off."""
    torch.set_autocast_dtype(device, torch.float16)
    torch.set_autocast_enabled(device, True)
    torch.autocast_increment_nesting()
    try:
        with autocast_as_on_a_gpu():
            yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, False)


def types(operation, device):
    with FakeTensorMode(), autocast(device):
        x, half, n = (
            torch.empty(2, 8, 16, 16, device=device),
            torch.empty(8, 8, device=device, dtype=torch.float16),
            torch.empty(8, 8, device=device),
        )
        return operation(x, half, n).dtype


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_have_the_types_that_a_gpu_gives_them(name):
    assert types(OPERATIONS[name], "cpu") == types(OPERATIONS[name], "cuda")


def test_the_lists_name_what_torch_has_a_rule_for():
    has_rule = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    ruled = {name.removeprefix("aten::") for name in names if has_rule(name, "AutocastCUDA")}
    of_both = {name for name in ruled if has_rule(f"aten::{name}", "AutocastCPU")}
    listed = {*HALF, *SINGLE, *SINGLE_RESULT, *WIDEST}
    assert listed <= ruled
    # Recurrent cells, which no model here has; what is made of operators that are listed; and what Python never calls.
    rest = ruled - of_both - listed
    assert all(any(part in name for part in ("rnn", "cell", "convolution", "einsum", "attention")) for name in rest)
    assert {"layer_norm", "upsample_bilinear2d", "sum"} <= listed


def test_afterwards_a_cpu_has_its_own_rules_again():
    with autocast_as_on_a_gpu():
        pass
    x = torch.ones(1, 1, 4, 4, dtype=torch.float16)
    with torch.autocast("cpu", torch.float16):
        assert F.pad(x, (1, 1, 1, 1), mode="replicate").dtype == torch.float32
        assert F.group_norm(x, 1).dtype == torch.float16


def test_the_network_keeps_for_its_backward_pass_what_it_keeps_on_a_gpu():
    """All of a forward pass by CUDA's own rules. Only the backward pass of such tensors needs a GPU."""

    def saved(device, enabled=True):
        network = CamoXpert("edgenext_xx_small", width=32, mode="dense", shared=True, refinement_steps=1)
        with FakeTensorMode(allow_non_fake_inputs=True):
            network._apply(lambda tensor: torch.empty_like(tensor, device=device))
            images = torch.empty(2, 3, 64, 96, device=device)
            own = [*network.parameters(), *network.buffers()]
            if not enabled:
                return saved_bytes(lambda: network(images), own)
            with autocast(device):
                return saved_bytes(lambda: network(images), own)

    assert saved("cpu") == saved("cuda") < 0.8 * saved("cuda", enabled=False)

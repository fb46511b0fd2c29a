"""Twins of a network: the same tensors under another mode, with fewer experts, or with them in another order."""

import inspect
import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from camox.errors import CheckpointError, ExperimentError
from camox.models import conversion
from camox.models.camoxpert import DEFAULT_EXPERTS, CamoXpert
from camox.models.conversion import convert_state
from camox.models.router import Routing

SEVEN = (*DEFAULT_EXPERTS[:3], "hybrid", *DEFAULT_EXPERTS[3:])


@pytest.fixture
def network(build):
    """A network as if trained: routers that decide, uneven loads and biases."""

    def make(**arguments):
        made = build(width=8, **arguments).eval()
        generator = torch.Generator().manual_seed(7)
        for name, tensor in made.state_dict().items():
            if name.endswith(".load"):
                tensor.copy_(torch.rand(len(tensor), generator=generator).softmax(dim=0))
            elif name.startswith("balances."):
                tensor.copy_(torch.rand(len(tensor), generator=generator))
                tensor -= tensor.mean()
            elif "gate" in name:
                tensor.normal_(generator=generator)
        return made

    return make


def twin(network, **changes):
    """The converted network, loaded strictly."""
    state, config = convert_state(network.state_dict(), network.config, **changes)
    made = CamoXpert(**config).eval()
    made.load_state_dict(state)
    assert made.config == config
    return made


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@torch.no_grad()
def logits(network, images, routing=None):
    return network(images, routing).logits


# ---- modes


@pytest.mark.parametrize("arguments", [{}, {"gate": "linear", "shared": True, "granularity": 2, "scales": (8, 32)}])
def test_to_dense_and_back_changes_no_bit(network, arguments):
    sparse = network(**arguments)
    dense = convert_state(sparse.state_dict(), sparse.config, mode="dense")
    back, config = convert_state(*dense, mode="sparse")
    assert equal(back, sparse.state_dict())
    assert config == sparse.config


def test_as_dense_it_is_the_dense_network_with_these_tensors(network, images):
    sparse = network()
    dense = network(mode="dense")
    dense.load_state_dict(sparse.state_dict())
    converted = twin(sparse, mode="dense")
    assert converted.config == dense.config
    assert torch.equal(logits(converted, images()), logits(dense, images()))
    assert not torch.allclose(logits(converted, images()), logits(sparse, images()), atol=1e-4)


def test_with_all_experts_chosen_sparse_is_dense(network, images):
    dense = network(mode="dense")
    sparse = twin(dense, mode="sparse", top_k=6)
    assert torch.allclose(logits(sparse, images()), logits(dense, images()), atol=1e-6, rtol=1e-6)


def test_as_static_it_runs_the_named_experts_with_equal_weights(network, images):
    sparse, batch = network(), images(3)
    static = twin(sparse, mode="static", experts=["semantic", "edge"])
    assert static.expert_names == ("semantic", "edge")
    assert not [name for name in static.state_dict() if "router" in name or "balance" in name]
    chosen = torch.tensor([[5, 1]]).repeat(3, 1)
    uniform, half = torch.full((3, 6), 1 / 6), torch.full((3, 2), 1 / 2)
    routing = dict.fromkeys(sparse.scales, Routing(torch.zeros(3, 6), uniform, chosen, half))
    assert torch.allclose(logits(static, batch), logits(sparse, batch, routing), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "experts", "top_k"),
    [
        ({}, ["texture", "edge"], 2),
        ({"top_k": 3}, ["texture", "edge", "contrast"], 3),
        ({"experts": ["semantic", "edge", "contrast"]}, ["semantic", "edge", "contrast"], 3),
        ({"experts": ["semantic", "edge", "contrast"], "top_k": 1}, ["semantic"], 1),
    ],
)
def test_a_static_twin_holds_what_its_config_names_and_no_more(network, changes, experts, top_k):
    static = twin(network(), mode="static", **changes)
    assert (static.config["experts"], static.config["top_k"]) == (experts, top_k)
    assert list(static.mixtures["stride_4"].experts) == experts


def test_as_random_it_loses_its_routers_alone(network):
    sparse = network()
    state, _ = convert_state(sparse.state_dict(), sparse.config, mode="random")
    kept = {name: t for name, t in sparse.state_dict().items() if not name.startswith(("routers.", "balances."))}
    assert equal(state, kept)
    assert twin(sparse, mode="random").config["mode"] == "random"


def test_of_a_static_network_only_what_it_holds_is_there_to_take(network):
    static = network(mode="static")  # of six names in its config it holds the first two
    assert twin(static, mode="random").expert_names == ("texture", "edge")
    with pytest.raises(CheckpointError, match="no expert contrast, only texture, edge"):
        twin(static, experts=["contrast", "edge"])


# ---- experts


@torch.no_grad()
def test_another_order_says_the_same(network, images):
    ours, order = network(), ["semantic", "frequency", "texture", "attention", "edge", "contrast"]
    other = twin(ours, experts=order)
    assert torch.allclose(logits(other, images(3)), logits(ours, images(3)), atol=1e-5)
    for stride, theirs in other(images(3)).routing.items():
        expected = [[DEFAULT_EXPERTS[i] for i in row] for row in ours(images(3)).routing[stride].selected]
        assert [[order[i] for i in row] for row in theirs.selected] == expected
    assert equal(twin(other, experts=list(DEFAULT_EXPERTS)).state_dict(), ours.state_dict())


@pytest.mark.parametrize("gate", ["mlp", "linear"])
@torch.no_grad()
def test_from_seven_dense_experts_to_six_sparse_ones(network, images, gate):
    seven, batch = network(mode="dense", experts=SEVEN, gate=gate), images(3)
    six = twin(seven, mode="sparse", experts=DEFAULT_EXPERTS, top_k=2)
    assert six.config["experts"] == list(DEFAULT_EXPERTS)
    columns = [SEVEN.index(name) for name in DEFAULT_EXPERTS]
    before, after = seven(batch).routing, six(batch).routing
    for stride in six.scales:
        assert torch.allclose(after[stride].raw_logits, before[stride].raw_logits[:, columns], atol=1e-5)
        load, bias = six.balance(stride).load, six.balance(stride).bias
        assert torch.allclose(load, seven.balance(stride).load[columns] / seven.balance(stride).load[columns].sum())
        assert abs(bias.mean()) < 1e-6
        assert torch.allclose(bias.diff(), seven.balance(stride).bias[columns].diff(), atol=1e-6)
    own = {name: t for name, t in seven.state_dict().items() if ".hybrid." not in name and "gate" not in name}
    own = {name: t for name, t in own.items() if not name.startswith("balances.")}
    assert all(torch.equal(six.state_dict()[name], tensor) for name, tensor in own.items())


def test_experts_that_were_never_chosen_start_with_equal_loads(network):
    sparse = network()
    sparse.balance(4).load.copy_(torch.tensor([0.5, 0.5, 0, 0, 0, 0]))
    state, _ = convert_state(sparse.state_dict(), sparse.config, experts=["contrast", "frequency"])
    assert state["balances.stride_4.load"].tolist() == [0.5, 0.5]


ROWS = {
    "routers.stride_4.gate.weight": torch.arange(12.0).view(6, 2),
    "routers.stride_4.gate.bias": torch.arange(6.0),
    "balances.stride_4.load": torch.tensor([6.0, 1, 2, 3, 4, 8]) / 24,
    "balances.stride_4.bias": torch.arange(6) - 2.5,
}
CONFIG = {"mode": "sparse", "experts": list(DEFAULT_EXPERTS), "top_k": 1, "scales": [4]}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_in_several_steps_or_in_one_the_result_is_the_same(data):
    lists = [list(DEFAULT_EXPERTS)]
    for _ in range(3):
        shuffled = data.draw(st.permutations(lists[-1]))
        lists.append(shuffled[: data.draw(st.integers(1, len(shuffled)))])
    state, config = ROWS, CONFIG
    for experts in lists[1:]:
        state, config = convert_state(state, config, experts=experts)
    at_once, expected = convert_state(ROWS, CONFIG, experts=lists[-1])
    assert config == expected
    for name, tensor in state.items():
        assert torch.allclose(tensor, at_once[name], atol=1e-6), name


def test_what_is_given_is_left_as_it_was(network):
    sparse = network()
    before = {name: tensor.clone() for name, tensor in sparse.state_dict().items()}
    config = json.dumps(sparse.config)
    convert_state(sparse.state_dict(), sparse.config, mode="dense", experts=["edge", "texture"])
    assert equal(sparse.state_dict(), before)
    assert json.dumps(sparse.config) == config


# ---- what shapes do not allow

OTHERWISE: dict[str, Any] = {
    "backbone": "resnet14t", "width": 16, "deep_supervision": False, "refinement_steps": 1,
    "gradient_checkpointing": True, "channels_last": True, "compile": False, "scales": (4, 8), "shared": True,
    "granularity": 2, "dispatch": "masked", "gate": "linear", "temperature": 2.0, "logit_limit": 5.0,
    "logit_limit_mode": "clamp", "prob_floor": 1e-3, "noise": 0.5, "window_images": 99, "band": (0.1, 3.0),
    "bias_rate": 0.1,
}  # fmt: skip


def shapes(network):
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def test_every_argument_of_the_network_is_judged():
    converted = {"mode", "experts", "top_k"}
    arguments = set(inspect.signature(CamoXpert).parameters)
    assert arguments == OTHERWISE.keys() | converted | {"pretrained", "weights"}


@pytest.mark.parametrize("name", OTHERWISE)
def test_an_argument_is_refused_if_and_only_if_it_changes_parameters(build, name):
    network, other = build(width=8), build(**{"width": 8, name: OTHERWISE[name]})
    changes = {name: OTHERWISE[name]}
    if shapes(network) == shapes(other):
        assert shapes(twin(network, **changes)) == shapes(network)
    else:
        with pytest.raises(CheckpointError, match=rf"^{name} = .* needs other parameters.*keep it, or train"):
            convert_state(network.state_dict(), network.config, **changes)
    value = network.config[name]
    same = {name: tuple(value) if isinstance(value, list) else value}
    assert equal(twin(network, **same).state_dict(), network.state_dict())


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ({}, {"experts": ["edge", "hybrid"]}, "no expert hybrid, only texture, edge.*choose from these, or train"),
        ({}, {"experts": ["edge"]}, "top_k = 2 of 1 experts: keep more experts, or give another top_k"),
        ({}, {"experts": []}, "top_k = 2 of 0 experts: keep more"),
        ({}, {"mode": "static", "experts": []}, "top_k = 0 of 0 experts: keep more"),
        ({}, {"top_k": 7}, "top_k = 7 of 6 experts"),
        ({}, {"top_k": 0}, "top_k = 0 of 6 experts"),
        ({}, {"mode": "static", "top_k": 7}, "top_k = 7 of 6 experts"),
        ({}, {"top_k": 1}, "with top_k = 1 the one expert of an image has weight 1.*take 2 or more"),
        ({"mode": "dense"}, {"mode": "sparse", "top_k": 1}, "with top_k = 1 the one expert.*take 2 or more"),
        ({}, {"mode": "dense", "top_k": 3}, 'top_k = 3 has no effect in mode "dense".*leave it out'),
        ({"mode": "dense"}, {"experts": ["edge", "texture"], "top_k": 2}, "top_k = 2 has no effect.*leave it out"),
        ({"mode": "static"}, {"mode": "sparse"}, r'mode "static" has no routers.*model\.moe\.mode = "sparse"'),
        ({"mode": "random"}, {"mode": "dense"}, 'mode "random" has no routers, and mode "dense" needs them: convert'),
        ({"scales": ()}, {"mode": "dense"}, "no experts .*nothing to convert"),
        ({}, {"pretrained": True}, "pretrained = True needs other"),
        ({}, {"weights": "file.safetensors"}, "weights = 'file.safetensors' needs other"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(build, arguments, changes, message):
    network = build(width=8, **arguments)
    with pytest.raises(CheckpointError, match=message):
        convert_state(network.state_dict(), network.config, **changes)


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("sparse", {"mode": "random", "top_k": 1}),
        ("sparse", {"mode": "static", "top_k": 1}),
        ("sparse", {"experts": ["edge"], "top_k": 1}),
        ("sparse", {"mode": "dense", "experts": ["edge"]}),
        ("dense", {"experts": ["edge"]}),
    ],
)
def test_one_expert_is_enough_where_no_router_learns_from_its_choice(network, images, mode, changes):
    one = twin(network(mode=mode), **changes)
    assert one.config["top_k"] == 1
    assert logits(one, images()).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"), [({"mode": "spares"}, "spares.*choose from"), ({"experts": ["edge", "edge"]}, "twice")]
)
def test_what_no_network_could_be_is_refused_by_the_network(build, changes, message):
    with pytest.raises(ExperimentError, match=message):
        twin(build(width=8), **changes)


def test_tensors_and_config_of_different_networks_are_refused(build):
    state, config = build(width=8, experts=SEVEN).state_dict(), build(width=8).config
    with pytest.raises(CheckpointError, match=r"gate\.weight is of 7 experts and config.json names 6"):
        convert_state(state, config, experts=["edge", "texture"])


def test_a_config_that_is_none_is_refused():
    with pytest.raises(CheckpointError, match="does not tell mode"):
        convert_state({}, {"depth": 3}, mode="dense")


# ---- from a folder


def test_from_pretrained_takes_changes(network, images, tmp_path):
    sparse = network()
    save_file(sparse.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(sparse.config))
    dense = CamoXpert.from_pretrained(tmp_path, mode="dense", granularity=2)
    assert not dense.training
    assert (dense.config["mode"], dense.config["granularity"]) == ("dense", 2)
    assert torch.equal(logits(dense, images()), logits(twin(sparse, mode="dense", granularity=2), images()))
    with pytest.raises(CheckpointError, match="width = 16") as refusal:
        CamoXpert.from_pretrained(tmp_path, width=16)
    assert str(refusal.value).startswith(f"{tmp_path}: ")
    with pytest.raises(CheckpointError, match="depth"):
        CamoXpert.from_pretrained(tmp_path, depth=3)


def test_names_of_parameters_are_those_that_conversion_looks_for(build):
    names = list(build(width=8).state_dict())
    for pattern, count in ((conversion._EXPERT, 6), (conversion._GATE, 1), (conversion._BALANCE, 1)):
        assert sum(bool(pattern.match(name)) for name in names) >= 4 * count

"""Labels around what a trainer calls: in the trace, and nowhere else."""

import torch
import torch.utils.checkpoint
from torch import nn
from torch.profiler import ProfilerActivity, profile

from camox.training.profile_labels import PREFIX, Labels


def labels_while(work) -> list[str]:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    return [event.name.removeprefix(PREFIX) for event in recorded.events() if event.name.startswith(PREFIX)]


def test_a_compiled_module_has_its_label_around_the_compiled_code():
    module, images = nn.Linear(3, 4), torch.ones(2, 3)
    expected = module(images)
    module.compile(backend="eager", fullgraph=True)
    Labels(torch.device("cpu")).put_module(module, "backbone")
    torch.testing.assert_close(module(images), expected)
    assert labels_while(lambda: module(images)) == ["backbone"]


def test_a_module_computed_again_has_its_label_again():
    module = nn.Linear(3, 4)
    Labels(torch.device("cpu")).put_module(module, "experts: edge, stride 4")

    def work() -> None:
        images = torch.ones(2, 3, requires_grad=True)
        torch.utils.checkpoint.checkpoint(module, images, use_reentrant=False).sum().backward()

    assert labels_while(work) == ["experts: edge, stride 4"] * 2


def test_only_the_labelled_object_changes():
    labelled, other = nn.Linear(3, 4), nn.Linear(3, 4)
    Labels(torch.device("cpu")).put_module(labelled, "decoder")
    assert labels_while(lambda: other(torch.ones(2, 3))) == []
    assert set(labelled.state_dict()) == set(other.state_dict())

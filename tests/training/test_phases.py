"""An epoch belongs to one phase; a phase freezes what it names and nothing else."""

from camox.models.camoxpert import CamoXpert
from camox.training.phases import apply_freeze, phase_of


def test_every_epoch_has_its_phase(tiny_experiment):
    phases = tiny_experiment("phases.frozen.epochs=2", "phases.full.epochs=3").phases_resolved()
    assert [phase_of(epoch, phases).name for epoch in range(5)] == ["frozen"] * 2 + ["full"] * 3


def test_a_phase_takes_over_what_it_leaves_open(tiny_experiment):
    phases = tiny_experiment(
        "phases.full.lr=5e-4", "phases.full.image_size=64", "optimizer.accumulate=3"
    ).phases_resolved()
    assert [(p.lr, p.image_size, p.accumulate, p.batch_size) for p in phases] == [(1e-3, 32, 3, 4), (5e-4, 64, 3, 4)]


def test_freezing_is_undone_by_the_next_phase(tiny_experiment):
    frozen, full = tiny_experiment().phases_resolved()
    network = CamoXpert("resnet10t", width=8).train()
    apply_freeze(network, frozen)
    assert not any(p.requires_grad for p in network.backbone.parameters())
    assert all(p.requires_grad for n, p in network.named_parameters() if not n.startswith("backbone."))
    apply_freeze(network, full)
    assert all(p.requires_grad for p in network.parameters())
    assert all(module.training for module in network.modules())

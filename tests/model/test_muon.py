"""The optimiser: orthogonal steps of the stated size, views of any shape, and what is left to AdamW."""

import copy

import pytest
import torch

from transvert.model import networks
from transvert.model.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (40, 8)])
def test_the_singular_values_of_a_step_are_near_one(shape):
    torch.manual_seed(0)
    wide = torch.randn(2, *shape) * torch.logspace(-1, 1, shape[1])  # A condition number of a hundred.
    values = torch.linalg.svdvals(orthogonalise(wide))
    assert values.min() > 0.3 and values.max() < 1.3


def test_a_step_has_adamws_size_and_goes_downhill():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(32, 16, 3, 3, 3))
    slope = torch.randn_like(weight)
    optimiser = Muon([weight], learning_rate=0.01, weight_decay=0.0)
    (weight * slope).sum().backward()
    optimiser.step()
    # An orthogonal 32 x 432 matrix has an RMS of 1 / sqrt(432); the scale 0.2 sqrt(432) leaves 0.2.
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=0.2)
    assert (weight * slope).sum() < 0


def test_channels_last_and_first_move_alike():
    torch.manual_seed(0)
    plain = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    last = torch.nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    slope = torch.randn(8, 4, 3, 3)
    for weight in (plain, last):
        optimiser = Muon([weight], learning_rate=0.1, weight_decay=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            (weight * slope).square().sum().backward()
            optimiser.step()
    assert torch.allclose(plain, last, atol=1e-6)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_vectors_are_adamws():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    for weight, optimiser in (
        (ours, Muon([ours, torch.nn.Parameter(torch.ones(3, 3))], 0.1, 0.02)),
        (theirs, torch.optim.AdamW([theirs], 0.1, weight_decay=0.02)),
    ):
        weight.square().sum().backward()
        optimiser.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_every_parameter_of_every_network_moves(name):
    torch.manual_seed(0)
    net = networks.build_network(name)
    before = copy.deepcopy(net.state_dict())
    optimiser = Muon(net.parameters(), 0.01, 0.0)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    for key, parameter in net.named_parameters():
        assert not torch.equal(parameter, before[key]), key

"""Muon for filters: what it does to a matrix, and that a filter is a row of one."""

import pytest
import torch
from torch import nn

from runner.train.filter_muon import FilterMuon, compute_orthogonal


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (6, 6)])
def test_all_singular_values_become_about_one(shape):
    torch.manual_seed(0)
    made = compute_orthogonal(torch.randn(shape), 5).float()

    assert made.shape == shape
    assert ((values := torch.linalg.svdvals(made)) > 0.5).all()
    assert (values < 1.3).all()


def test_filters_move_as_the_rows_of_a_matrix_do():
    torch.manual_seed(0)
    filters, gradients = nn.Parameter(torch.randn(6, 3, 2, 2)), torch.randn(3, 6, 3, 2, 2)
    matrix = nn.Parameter(filters.detach().reshape(6, 12).clone())
    optimizers = [FilterMuon([one], lr=0.1, normalize=True) for one in (filters, matrix)]
    for gradient in gradients:
        filters.grad, matrix.grad = gradient.clone(), gradient.reshape(6, 12).clone()
        for optimizer in optimizers:
            optimizer.step()

    assert torch.equal(filters.reshape(6, 12), matrix)


def test_a_step_is_that_of_the_formula():
    torch.manual_seed(0)
    parameter, gradients = nn.Parameter(torch.randn(4, 5)), torch.randn(2, 4, 5)
    expected, buffer = parameter.detach().clone(), torch.zeros(4, 5)
    optimizer = FilterMuon([parameter], lr=0.1, momentum=0.6, steps=3, weight_decay=0.5)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        buffer = 0.6 * buffer + gradient
        expected = 0.95 * expected - 0.1 * compute_orthogonal(gradient + 0.6 * buffer, 3).float()

    torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("settings", [{"lr": -1}, {"momentum": 1.0}, {"steps": 0}])
def test_what_it_cannot_do_is_refused(settings):
    with pytest.raises(ValueError, match="must be at least 0, momentum in"):
        FilterMuon([nn.Parameter(torch.ones(2, 2))], **settings)
    with pytest.raises(ValueError, match=r"the shape \[2\]"):
        FilterMuon([nn.Parameter(torch.ones(2))])

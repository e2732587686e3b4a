"""Digests tell apart what differs in a bit, a shape, a dtype or a name, and nothing else."""

import pytest
import torch

from runner.core.digests import (
    LARGE,
    hash_batch,
    hash_generators,
    hash_rows,
    hash_saved_generators,
    hash_tensor,
    hash_tree,
)
from runner.core.rng import get_state

BASE = torch.arange(12, dtype=torch.float32).reshape(3, 4)


def test_equal_trees_have_equal_digests() -> None:
    """Strides, autograd and a copy change nothing."""
    same = [BASE.clone(), BASE.t().contiguous().t(), BASE.clone().requires_grad_()]

    assert {hash_tree({"a": one}) for one in same} == {hash_tree({"a": BASE})}


def test_other_trees_have_other_digests() -> None:
    """A bit, a shape, a dtype, a name, an order and a length each count; so do all layouts and dtypes."""
    flipped = BASE.clone()
    flipped[0, 0] = -0.0
    trees = [
        {"a": BASE}, {"b": BASE}, {"a": flipped}, {"a": BASE.reshape(4, 3)}, {"a": BASE.to(torch.bfloat16)},
        {"a": BASE.to(torch.complex64)}, {"a": BASE.to_sparse()}, {"a": BASE.bool()}, [BASE], [BASE, BASE], BASE,
        {"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": None}, {"a": BASE.double()},
        {"a": BASE.to(torch.complex64).conj() * 1j},
    ]  # fmt: skip

    assert len({hash_tree(tree) for tree in trees}) == len(trees)


def test_large_tensors_count_by_their_bytes() -> None:
    """Tensors that are hashed by threads tell their last bit, and their order."""
    one = torch.zeros(LARGE // 4)
    other = one.clone()
    other[-1] = 1

    assert len({hash_tree(tree) for tree in ([one, one], [one, other], [other, one])}) == 3
    assert hash_tree([one, other]) == hash_tree([one.clone(), other.clone()])


def test_members_of_a_batch_have_a_digest_each() -> None:
    """A batch of two members has two digests, by position or by key."""
    assert hash_batch([BASE, BASE]).keys() == {"0", "1"}
    assert hash_batch({"image": BASE}).keys() == {"image"}
    assert hash_batch(BASE).keys() == hash_batch(None).keys() == {"all"}


def test_generators_of_a_log_line_are_those_of_a_checkpoint() -> None:
    """Both ways of hashing give the same for torch's generator; a draw changes it, and no other."""
    before, saved = hash_generators(), hash_saved_generators(get_state())
    torch.rand(1)
    after = hash_saved_generators(get_state())

    assert before["torch"] == saved["torch"]
    assert [name for name in saved if saved[name] != after[name]] == ["torch"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_many_tensors_have_the_hashes_that_each_has(dtype) -> None:
    """Of one kind, which are hashed together, of several, and strided ones."""
    rows = [(one * torch.arange(12).reshape(3, 4)).to(dtype) for one in range(5)]

    for tensors in (rows, [*rows, rows[0][0]], [row.t() for row in rows], []):
        assert hash_rows(tensors) == [hash_tensor(tensor) for tensor in tensors]

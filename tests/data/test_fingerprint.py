"""Fingerprints tell one data set from another, and say what they leave out."""

import numpy as np
import pytest
import torch

from runner.core.layouts import list_strided_parts, take_rows
from runner.data.bad_samples import BadSamples
from runner.data.fingerprint import compute_fingerprint
from runner.data.samples import Placement


class Samples:
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.make(index)


class Plain:
    def __init__(self, value):
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def dense(value):
    return torch.tensor([[0.0, value], [1.0, 0.0]])


KINDS = {
    "coo": lambda value: dense(value).to_sparse(),
    "csr": lambda value: dense(value).to_sparse_csr(),
    "csc": lambda value: dense(value).to_sparse_csc(),
    "bsr": lambda value: dense(value).to_sparse_bsr((2, 2)),
    "bsc": lambda value: dense(value).to_sparse_bsc((2, 2)),
    "nested": lambda value: torch.nested.nested_tensor([torch.ones(2), torch.full((3,), value)]),
    "jagged": lambda value: torch.nested.nested_tensor([torch.ones(2), torch.full((3,), value)], layout=torch.jagged),
    "mkldnn": lambda value: dense(value).to_mkldnn(),
    "conjugate": lambda value: torch.complex(torch.ones(2), torch.full((2,), value)).conj(),
    "gradient": lambda value: dense(value).requires_grad_(),
    "bfloat16": lambda value: dense(value).bfloat16(),
    "objects": lambda value: np.array([value, None], dtype=object),
    "plain": lambda value: Plain(dense(value)),
    "slotted": lambda value: Slotted(dense(value)),
    "set": lambda value: {str(value), "a", "b"},
    "deep": lambda value: [{"a": (Plain([dense(value).to_sparse()]),)}],
}


def fingerprint(make):
    return compute_fingerprint(Samples(make), np.arange(4))


@pytest.mark.filterwarnings("ignore:.*prototype:UserWarning", "ignore:.*beta state:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_of_the_content_whatever_holds_it(kind):
    """The same for the same numbers, another for others; where the values are alike, another label tells."""
    make = KINDS[kind]
    one, same, other = (fingerprint(lambda index, v=v: (make(v + index), index)) for v in (2.0, 2.0, 3.5))

    assert (one, one.left_out, one.sha256 == other.sha256) == (same, (), False)
    assert fingerprint(lambda index: (make(2.0 + index), -index)).sha256 != one.sha256


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_order_and_duplicates_of_a_sparse_tensor_do_not_count():
    at, back = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1, 0], [0, 1]])
    one = fingerprint(lambda _: torch.sparse_coo_tensor(at, torch.tensor([2.0, 1.0]), (2, 2)))

    assert one == fingerprint(lambda _: torch.sparse_coo_tensor(back, torch.tensor([1.0, 2.0]), (2, 2)))


def test_what_it_cannot_hash_is_said_and_no_error_is_hashed():
    """Samples that cannot be read are one fingerprint, whatever the error says; the label beside a handle counts."""

    def read(index):
        raise OSError(object())

    unreadable, handle = fingerprint(read), fingerprint(lambda index: (iter(()), index))

    assert unreadable.sha256 == fingerprint(read).sha256
    assert unreadable.left_out[0].startswith("sample 0, which cannot be read (OSError: <object object at 0x")
    assert handle.left_out == ("`sample[0]`, whose tuple_iterator cannot be hashed",)
    assert handle == fingerprint(lambda index: (iter(()), index))
    assert handle.sha256 != fingerprint(lambda index: (iter(()), index + 1)).sha256


@pytest.mark.filterwarnings("ignore:.*prototype:UserWarning", "ignore:.*beta state:UserWarning")
@pytest.mark.parametrize("kind", ["coo", "csr", "csc", "bsr", "bsc", "nested", "jagged", "mkldnn"])
def test_a_tensor_of_any_layout_is_checked_moved_and_cut(kind):
    good, bad = (KINDS[kind](value) for value in (2.0, float("nan")))
    rows = take_rows(good, slice(0, 1)) if kind not in ("bsr", "bsc") else good

    assert [BadSamples().wrong((tensor, 0)) for tensor in (good, bad)] == [
        "",
        "member 0 has NaN or infinite numbers",
    ]
    assert Placement(torch.device("cpu")).put([good])[0].layout == good.layout
    assert (rows.layout, rows.size(0)) == (good.layout, 1 if kind not in ("bsr", "bsc") else 2)
    assert all(part.layout is torch.strided for part in list_strided_parts(rows))

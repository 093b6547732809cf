"""Held-out sets, orders and noise are functions of keys and seeds, not of positions, batches or processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_ae.core.errors import UserError
from ldm_ae.core.seeding import mix, mix_seed
from ldm_ae.data import epoch_order, seeded_noise, split_keys

KEYS = st.lists(st.text(max_size=8), min_size=2, max_size=40, unique=True)
SEED = st.integers(0, 2**63 - 1)


@given(KEYS, st.data())
def test_holdout_split_is_a_partition(keys: list[str], data: st.DataObject) -> None:
    count, seed = data.draw(st.integers(0, len(keys) - 1)), data.draw(SEED)
    training, held_out = split_keys(keys, count, seed)
    assert len(held_out) == count
    assert sorted(training + held_out) == list(range(len(keys)))
    assert training == sorted(training)
    assert held_out == sorted(held_out)
    with pytest.raises(UserError, match="at least one"):
        split_keys(keys, len(keys), seed)


@given(KEYS, st.data())
def test_holdout_split_depends_only_on_keys(keys: list[str], data: st.DataObject) -> None:
    count, seed = data.draw(st.integers(0, len(keys) - 2)), data.draw(SEED)
    held_out = {keys[i] for i in split_keys(keys, count, seed)[1]}
    shuffled = data.draw(st.permutations(keys))
    assert {shuffled[i] for i in split_keys(shuffled, count, seed)[1]} == held_out
    # One image more in the set holds one more out; one image more in the data moves at most one.
    assert held_out < {keys[i] for i in split_keys(keys, count + 1, seed)[1]}
    grown = [*keys, "a key that no other has"]
    assert len(held_out - {grown[i] for i in split_keys(grown, count, seed)[1]}) <= 1


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=40, unique=True), SEED, st.integers(0, 1000), st.data())
def test_epoch_order_of_a_subset_is_a_subsequence(
    numbers: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    order = epoch_order(np.array(numbers), seed, epoch).tolist()
    assert sorted(order) == sorted(numbers)
    assert epoch_order(np.array(data.draw(st.permutations(numbers))), seed, epoch).tolist() == order
    some = data.draw(st.sets(st.sampled_from(numbers), min_size=1))
    assert epoch_order(np.array(sorted(some)), seed, epoch).tolist() == [number for number in order if number in some]


@given(st.lists(SEED, min_size=1, max_size=12), st.data())
def test_noise_does_not_depend_on_the_batch(seeds: list[int], data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(), (3,), (4, 2, 5)]))
    noise = seeded_noise(torch.tensor(seeds), shape)
    assert noise.shape == (len(seeds), *shape)
    cut = data.draw(st.integers(0, len(seeds)))
    parts = [seeded_noise(torch.tensor(part, dtype=torch.int64), shape) for part in (seeds[:cut], seeds[cut:])]
    assert torch.equal(torch.cat(parts), noise)


@given(st.lists(SEED, min_size=1, max_size=4), st.lists(st.integers(0, 2**40), min_size=1, max_size=10))
def test_mixing_arrays_equals_mixing_their_elements(numbers: list[int], last: list[int]) -> None:
    mixed = mix(*numbers, np.array(last)).tolist()
    assert mixed == [int(mix(*numbers, number)) for number in last]
    assert [mix_seed(*numbers, number) for number in last] == [value >> 1 for value in mixed]
    assert len(set(mixed)) == len(set(last))  # the mixing is a bijection of its last number

"""Random numbers of each sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldm_ae.core.draws import Draws

SEEDS = (7, 2**62, 0, 11)


def all_draws(draws: Draws) -> list[torch.Tensor]:
    return [draws.normal(3, 2), draws.uniform(5), draws.integers(2, 9, 40), draws.normal()]


def test_draws_of_a_sample_do_not_depend_on_its_batch() -> None:
    whole = all_draws(Draws(SEEDS, "a"))
    parts = [all_draws(Draws(SEEDS[start : start + 2], "a")) for start in (0, 2)]
    for together, *apart in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(apart))
    assert [tuple(values.shape) for values in whole] == [(4, 3, 2), (4, 5), (4, 40), (4,)]


def test_draws_lie_in_their_ranges() -> None:
    _, uniform, integers, _ = all_draws(Draws(range(200), "a"))
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    assert set(integers.flatten().tolist()) == set(range(2, 9))


def test_draws_differ_between_streams_seeds_and_calls() -> None:
    draws = Draws(SEEDS, "a")
    first = draws.uniform(8)
    rows = [*first, *draws.uniform(8), *Draws(SEEDS, "b").uniform(8)]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    state = torch.get_rng_state()
    Draws(SEEDS, "a").normal(4)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not used


def test_draws_of_a_step_depend_on_its_seed_alone() -> None:
    def first(seeds: Sequence[int], stream: str, step_seed: int, name: str = "size") -> float:
        return Draws(seeds, stream, step_seed).of_step(name).random()

    assert first((1, 2), "a", 7) == first((5,), "a", 7)
    others = [first((1, 2), "a", 8), first((1, 2), "b", 7), first((1, 2), "a", 7, "turn")]
    assert len({first((1, 2), "a", 7), *others}) == 4
    draws = Draws(SEEDS, "a", 7)
    assert draws.of_step("size").random() == draws.of_step("size").random() == first((1,), "a", 7)
    before = Draws(SEEDS, "a", 7).uniform(3)
    assert torch.equal(before, draws.uniform(3))  # those of the samples are not used up

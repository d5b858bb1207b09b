"""Which tokens merge in several rounds: neighbours stay partners, and a person within its share never merges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tore_fast.layers.mask_tome import MergeConfig, TokenState, match_tokens, merge_tokens, warn_if_over_budget
from tore_fast.ops import merge


def rounds(x, schedule, cfg, coverage=None, prefix=0):
    """The tokens themselves are the metric; returns what is left and its state."""
    state = TokenState(coverage)
    for r in schedule:
        x = merge_tokens(x, x, r, state, cfg, prefix)
    return x, state


def merged_person_tokens(state, person):
    """How many person tokens share a row with another token."""
    groups = state.source.bool() & (state.source.sum(-1, keepdim=True) > 1)
    return int((groups.any(1) & person).sum())


@pytest.mark.parametrize("take", [64, 48, 37])
def test_perfect_pairs_merge_without_loss_over_many_rounds(take):
    """256 pairs of equal neighbours: every row left is one of them, however many rounds it takes."""
    torch.manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(2, 256, 32), dim=-1)
    x = one.repeat_interleave(2, 1)
    config = dict(keep=256, per_block=take, rounds="paper", track_source=True)

    def worst(cfg):
        got, state = rounds(x, cfg.schedule(512, 8), cfg)
        assert got.shape[1] == 256 and torch.all(state.size.sum(1) == 512)
        back = state.source.mT @ got  # every token's group
        return float((back - x).norm() / x.norm())

    assert worst(MergeConfig(**config)) < 2e-6
    assert worst(MergeConfig.paper(**config)) > 0.1  # partners end up in the same half


def blob(seed, tokens, rows=16, columns=12):
    """Connected person mask of that many tokens: the nearest ones to a random centre, in a random ellipse's measure."""
    rng = torch.Generator().manual_seed(seed)
    centre, stretch = torch.rand(2, generator=rng) * 0.5 + 0.25, torch.rand(2, generator=rng) + 0.5
    y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    far = ((y - centre[0]) * stretch[0]) ** 2 + ((x - centre[1]) * stretch[1]) ** 2
    person = torch.zeros(rows * columns, dtype=torch.bool)
    person[far.flatten().argsort()[:tokens]] = True
    return person


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 76),
    src=st.sampled_from(["even", "odd"]),
    prefix=st.sampled_from([0, 1, 5]),
)
def test_no_token_of_a_person_within_its_share_merges(seed, tokens, src, prefix):
    torch.manual_seed(seed)
    person = torch.cat((torch.zeros(prefix, dtype=torch.bool), blob(seed, tokens)))[None]
    x = torch.randn(1, prefix + 192, 8)
    cfg = MergeConfig(keep=90 + prefix, per_block=40, src=src, track_source=True)
    schedule = cfg.schedule(192 + prefix, 8, prefix)
    assert sum(r > 0 for r in schedule) == 4 and cfg.person_limit(192 + prefix, 8, prefix) >= 76
    got, state = rounds(x, schedule, cfg, person.float() * 0.5, prefix)
    assert got.shape[1] == 90 + prefix and merged_person_tokens(state, person) == 0
    assert torch.all(state.size.sum(1) == 192 + prefix)
    assert torch.equal(state.source[:, :prefix, :prefix], torch.eye(prefix)[None])
    torch.testing.assert_close(got[:, :prefix], x[:, :prefix])


def test_the_printed_schedule_merges_a_person_within_the_budget():
    """76 person tokens, 90 kept: the paper's three rounds run out of background; the limit says so and warns."""
    torch.manual_seed(0)
    person = blob(0, 76)[None]
    paper = MergeConfig.paper(track_source=True)
    _, state = rounds(torch.randn(1, 192, 8), paper.schedule(192, 8), paper, person.float())
    assert merged_person_tokens(state, person) > 0 and paper.person_limit(192, 8) == 68
    with pytest.warns(UserWarning, match="more than 68"):
        assert warn_if_over_budget(person.float(), paper, 8)
    assert not warn_if_over_budget(person.float(), MergeConfig(), 8)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(2, 400), keep=st.integers(1, 300), per_block=st.integers(1, 200), share=st.floats(0, 0.99))
def test_capped_rounds_always_arrive(tokens, keep, per_block, share):
    cfg = MergeConfig(keep=keep, per_block=per_block, person_share=share)
    schedule = cfg.schedule(tokens, 400)
    assert tokens - sum(schedule) == min(tokens, keep) and all(0 <= r <= per_block for r in schedule)
    first = [r for r in schedule if r]
    assert schedule[: len(first)] == tuple(first)  # no pause in between


def test_rounds_of_the_specification():
    """1024 tokens, 213 a block, share 0.7: the tokens after every round."""
    for keep, want in {768: (811, 768), 640: (811, 640), 512: (811, 598, 512), 384: (811, 598, 433, 384)}.items():
        left, n = [], 1024
        for r in MergeConfig(keep=keep, per_block=213, person_share=0.7).schedule(1024, 32):
            n -= r
            left += [n] if r else []
        assert tuple(left) == want


def test_order_of_positions():
    torch.manual_seed(3)
    metric, coverage = torch.randn(3, 30, 4), (torch.rand(3, 30) > 0.5).float()
    place = torch.arange(30.0).expand(3, 30)
    for given_coverage in (None, coverage):
        plan = match_tokens(metric, 9, given_coverage, MergeConfig())
        assert torch.equal(plan.owner.amax(1), torch.full((3,), 20))
        kept = merge(plan, place[..., None], mode="amax")[..., 0]
        alone = merge(plan, torch.ones(3, 30, 1), mode="sum")[..., 0] == 1
        for row, single in zip(kept, alone):  # unmerged tokens keep their order
            assert torch.equal(row[single], row[single].sort().values)
    with pytest.raises(ValueError, match=r"person_share must be in \[0, 1\), got 1.0"):
        MergeConfig(person_share=1.0)
    with pytest.raises(ValueError, match="rounds must be one of"):
        MergeConfig(rounds="few")

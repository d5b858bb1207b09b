import pytest
import torch

from tore_fast.engine.staging import Bucket, HostStaging, bucket_sizes, join, pad, split, take


@pytest.mark.parametrize("largest, sizes", [(1, (1,)), (2, (1, 2)), (12, (1, 2, 4, 8, 12)), (16, (1, 2, 4, 8, 16))])
def test_bucket_sizes(largest, sizes):
    assert bucket_sizes(largest) == sizes


def test_no_bucket_below_one():
    with pytest.raises(ValueError, match="at least 1"):
        bucket_sizes(0)


@pytest.mark.parametrize("count", range(1, 30))
def test_split_covers_a_batch_once_with_the_smallest_sizes(count):
    steps = split(count, (1, 2, 4, 12))
    assert [first for first, _, _ in steps] == list(range(0, count, 12))
    assert sum(items for _, items, _ in steps) == count
    for _, items, bucket in steps:
        assert items <= bucket
        assert all(b < items for b in (1, 2, 4, 12) if b < bucket)


def test_pad_repeats_the_last_item_and_take_undoes_it():
    x = torch.arange(6.0).reshape(3, 2)
    padded = pad(x, 4)
    assert padded[3].equal(x[2]) and pad(x, 3) is x and pad(None, 4) is None
    back = take({"a": padded, "constant": torch.ones(7), "none": None}, 3, 4)
    assert back["a"].equal(x) and back["constant"].shape == (7,) and back["none"] is None


def test_join_keeps_what_has_no_batch_axis():
    parts = [(torch.ones(2, 3), torch.tensor(5.0), None), (torch.zeros(1, 3), torch.tensor(5.0), None)]
    out = join(parts, [2, 1])
    assert out[0].tolist() == [[1] * 3, [1] * 3, [0] * 3]
    assert out[1] == 5 and out[2] is None


def step(x, y=None):
    return {"twice": 2 * x, "sum": x.flatten(1).sum(1) + (0 if y is None else y)}


def test_results_stay_with_their_batch_however_many_are_in_flight():
    bucket = Bucket(step, (torch.zeros(4, 3),), 4, HostStaging())
    batches = [torch.full((n, 3), float(i)) for i, n in enumerate((4, 1, 3, 2, 4, 4))]
    tickets = [bucket.submit((x,), len(x)) for x in batches]  # three times as many as there are slots
    for x, ticket in zip(batches, tickets):
        assert ticket.result()["twice"].equal(2 * x)
    again = tickets[1].result()
    assert again["sum"].shape == (1,) and again is tickets[1].result()


def test_a_result_is_not_overwritten_by_later_steps():
    bucket = Bucket(step, (torch.zeros(2, 3), torch.zeros(2)), 2, HostStaging())
    first = bucket.submit((torch.ones(2, 3), torch.ones(2)), 2).result()
    for i in range(5):
        bucket.submit((torch.full((2, 3), 7.0 * i), torch.zeros(2)), 2)
    assert first["sum"].tolist() == [4.0, 4.0]


def test_optional_arguments_stay_none():
    bucket = Bucket(step, (torch.zeros(2, 3), None), 2, HostStaging())
    assert bucket.submit((torch.ones(1, 3), None), 1).result()["sum"].tolist() == [3.0]


def test_work_follows_the_copy_in_and_the_copy_out_follows_the_work():
    host = HostStaging()
    bucket = Bucket(step, (torch.zeros(2, 3),), 2, host)
    host.log.clear()
    ticket = bucket.submit((torch.ones(2, 3),), 2)
    order = ["copy_in", "work after copy_in", "work", "copy_out after work", "copy_out"]
    assert host.log == order  # nothing waited
    ticket.result()
    assert host.log[5:] == ["wait copy_out"]
    bucket.submit((torch.ones(2, 3),), 2)
    host.log.clear()
    bucket.submit((torch.ones(2, 3),), 2)  # the first slot again: its results were read, its copies are waited for
    assert host.log == ["wait copy_out", *order]

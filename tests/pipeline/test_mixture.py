"""Several data sets in one stream: shares, epochs of each, any position at once, any number of processes."""

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from bands import band_set, read_sample
from drawn import sharded
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Server, serving

from coma.errors import DataError, UsageError
from coma.pipeline import Stream
from coma.pipeline.faults import candidates
from coma.pipeline.mixture import MixedOrder, Pattern
from coma.pipeline.order import Planner
from coma.pipeline.reader import ShardReader
from coma.shards.manifest import Mixture, read_manifest, read_mixture

OPTIONS = {"batch_size": 12, "image_size": 32, "unit_size": 8, "workers": 1, "seed": 4}
COUNTS = {"red-shards": 40, "green-shards": 25, "blue-shards": 15}
SHARES = {"red-shards": "5", "green-shards": "3", "blue-shards": "2"}


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three data sets, in several shards each; the first has labels."""
    root = tmp_path_factory.mktemp("three")
    for number, (name, count) in enumerate(COUNTS.items()):
        classes = () if number else ("day", "night")
        data = sharded(root / f"making-{number}", count, shard_bytes=20_000, seed=number, classes=classes)
        data.rename(root / name)
    return root


@pytest.fixture
def named(three: Path) -> list[str]:
    return [f"{three / name}:{share}" for name, share in SHARES.items()]


@pytest.fixture
def server(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("COMA_CACHE", str(tmp_path / "cache"))
    with serving(three) as server:
        yield server


def order_of(lengths: list[int], weights: list[int], seed: int = 0) -> MixedOrder:
    return MixedOrder([np.array([length]) for length in lengths], weights, seed, [True] * len(lengths))


weights_lists = st.lists(st.integers(1, 10**6), min_size=2, max_size=9)


@settings(max_examples=100, deadline=None)
@given(weights=weights_lists, start=st.integers(0, 2**40))
def test_at_any_prefix_each_data_set_has_its_share(weights: list[int], start: int) -> None:
    slots = np.arange(start, start + 500)
    counts = Pattern(weights).counts(slots)
    assert (counts.sum(axis=0) == slots).all()
    steps = np.diff(counts, axis=1)
    assert steps.min() >= 0
    assert (steps.sum(axis=0) == 1).all()  # each slot is of one data set
    whole, most = sum(weights), {2: Fraction(1, 2), 3: Fraction(1)}.get(len(weights), Fraction(2))
    for number, weight in enumerate(weights):
        for at in range(0, 500, 7):
            assert abs(int(counts[number, at]) - Fraction(int(slots[at]) * weight, whole)) <= most


STEPS, BATCH = 10_000, 64


@pytest.mark.parametrize("weights", [[7, 3], [1, 1, 1], [70, 29, 1], [1_281_167, 50_000, 399, 10]])
def test_over_10_000_steps_the_shares_are_exact_to_a_thousandth(weights: list[int]) -> None:
    lengths = [1000 + 10 * number for number in range(len(weights))]
    order, first = order_of(lengths, weights), np.cumsum([0, *lengths])
    planner, counts = Planner(order, sum(lengths), BATCH), Pattern(weights).counts(np.arange(STEPS * BATCH + 1))
    for number in range(0, STEPS, 50):
        step = planner.at(BATCH * number)
        assert step is not None
        seen = np.histogram(step.samples, first)[0]
        assert (seen == counts[:, BATCH * (number + 1)] - counts[:, BATCH * number]).all()
    shares = np.array(weights) / sum(weights)
    assert np.abs(counts[:, -1] / (STEPS * BATCH) - shares).max() < 1e-5  # the bar is 1e-3


@pytest.mark.slow
def test_every_one_of_10_000_steps_counts() -> None:
    order, seen = order_of([1000, 200, 30], [70, 29, 1]), np.zeros(3, np.int64)
    for number in range(STEPS):
        samples, _ = order.global_batch(BATCH * number, BATCH)
        seen += np.histogram(samples, [0, 1000, 1200, 1230])[0]
    assert np.abs(seen / (STEPS * BATCH) - np.array([0.70, 0.29, 0.01])).max() < 1e-5


@settings(max_examples=15, deadline=None)
@given(
    sources=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 50)), min_size=2, max_size=5),
    seed=st.integers(0, 2**63 - 1),
    batch_size=st.integers(1, 17),
)
def test_each_epoch_of_a_data_set_holds_its_samples_once(
    sources: list[tuple[int, int]], seed: int, batch_size: int
) -> None:
    lengths, weights = map(list, zip(*sources, strict=True))
    order, first = order_of(lengths, weights, seed), np.cumsum([0, *lengths])
    seen: Counter[tuple[int, int]] = Counter()
    for start in range(0, 300, batch_size):
        samples, epochs = order.global_batch(start, batch_size)
        seen.update(zip(samples.tolist(), epochs.tolist(), strict=True))
    assert max(seen.values()) == 1
    for number, length in enumerate(lengths):
        epochs_of = Counter(epoch for sample, epoch in seen if first[number] <= sample < first[number + 1])
        for epoch in range(max(epochs_of, default=0)):  # all but the last are whole
            assert epochs_of[epoch] == length


@settings(max_examples=40, deadline=None)
@given(weights=weights_lists, start=st.integers(0, 2**40), batch_size=st.integers(1, 40), cut=st.integers(0, 40))
def test_a_batch_is_a_function_of_its_position(weights: list[int], start: int, batch_size: int, cut: int) -> None:
    order, cut = order_of([30] * len(weights), weights), min(cut, batch_size)
    whole = order.global_batch(start, batch_size)
    parts = [order.global_batch(start, cut), order.global_batch(start + cut, batch_size - cut)]
    for column, (one, other) in zip(whole, zip(*parts, strict=True), strict=True):
        assert column.tolist() == [*one.tolist(), *other.tolist()]


def test_equal_data_sets_are_not_in_step() -> None:
    samples, _ = order_of([1000, 1000], [1, 1]).global_batch(0, 2000)
    one, other = (samples[samples // 1000 == number] % 1000 for number in range(2))
    assert sorted(one) == sorted(other)
    assert (one == other).mean() < 0.01


def test_a_mixture_reads_as_its_data_sets(three: Path, named: list[str]) -> None:
    mixture, members = read_mixture(named), [read_manifest(three / name) for name in COUNTS]
    assert len(mixture) == 80
    assert mixture.names == tuple(COUNTS)
    assert mixture.weights == (5, 3, 2)
    images = [bytes(each) for each in ShardReader(mixture).read(np.arange(80))]
    assert images == [bytes(each) for member in members for each in ShardReader(member).read(np.arange(len(member)))]
    assert mixture.keys([0, 79, 41]) == [
        members[0].keys([0])[0],
        members[2].keys([14])[0],
        members[1].keys([1])[0],
    ]
    assert mixture.named([40])[0].startswith("green-shards/")
    assert mixture.width[np.arange(80)].tolist() == [int(side) for member in members for side in member.width]
    few = mixture.select(np.array([0, 39, 40, 79]))
    assert few.sources([0, 1, 2, 3]) == mixture.sources([0, 39, 40, 79])
    with pytest.raises(IndexError):
        mixture.size[80]


def test_the_fingerprint_is_of_data_sets_shares_and_order(named: list[str]) -> None:
    fingerprint = read_mixture(named).fingerprint
    assert read_mixture([each.replace(":5", ":0.50e1") for each in named]).fingerprint == fingerprint
    assert read_mixture([each.replace(":5", ":5.0001") for each in named]).fingerprint != fingerprint
    assert read_mixture(named[::-1]).fingerprint != fingerprint


def test_without_shares_each_is_shown_as_it_has_images(three: Path) -> None:
    with Stream([three / name for name in COUNTS], **OPTIONS) as stream:
        assert isinstance(stream.manifest, Mixture)
        assert stream.manifest.weights == (8, 5, 3)
        samples = np.concatenate([stream.plan(step).samples for step in range(1, 21)])  # 240 = three times all
    assert sorted(samples.tolist()) == sorted([*range(80)] * 3)


def test_one_data_set_in_a_list_is_that_data_set(three: Path) -> None:
    with Stream([three / "red-shards"], **OPTIONS) as one, Stream(three / "red-shards", **OPTIONS) as other:
        assert one.state_dict() == other.state_dict()
        assert torch.equal(next(one).images, next(other).images)


def test_one_two_and_one_process_see_the_same(named: list[str]) -> None:
    with Stream(named, **OPTIONS) as stream:
        whole = [next(stream) for _ in range(9)]
    first = Stream(named, **OPTIONS)
    batches = [next(first) for _ in range(3)]
    state = first.state_dict()
    first.close()
    ranks = [Stream(named, rank=rank, world_size=2, **OPTIONS) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    parts = [[next(rank) for rank in ranks] for _ in range(3)]
    last = Stream(named, start_samples=ranks[0].consumed, **OPTIONS)
    for rank in ranks:
        rank.close()
    after = [next(last) for _ in range(3)]
    last = pickle.loads(pickle.dumps(last))
    last.close()
    images = [
        *(batch.images for batch in batches),
        *(torch.cat([part.images for part in each]) for each in parts),
        *(batch.images for batch in after),
    ]
    assert all(torch.equal(ours, before.images) for ours, before in zip(images, whole, strict=True))
    samples = [torch.cat([part.samples for part in each]) for each in parts]
    assert all(torch.equal(ours, before.samples) for ours, before in zip(samples, whole[3:6], strict=True))


def test_other_shares_do_not_go_on(named: list[str]) -> None:
    with Stream(named, **OPTIONS) as stream:
        state = stream.state_dict()
    with (
        Stream([each.replace(":5", ":6") for each in named], **OPTIONS) as other,
        pytest.raises(DataError, match=r"red-shards:6 \+ green-shards:3 .* has fingerprint"),
    ):
        other.load_state_dict(state)


def test_local_and_remote_data_sets_mix(server: Server, three: Path, named: list[str]) -> None:
    remote = [f"{server.url}/green-shards/train:3" if "green" in each else each for each in named]
    with Stream(named, **OPTIONS) as local, Stream(remote, **OPTIONS) as stream:
        for _ in range(12):
            ours, theirs = next(stream), next(local)
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.units, theirs.units)
    green = read_manifest(three / "green-shards")
    assert len(green.shards) > 1
    assert server.downloads == dict.fromkeys(green.shards, 1)


def test_a_damaged_sample_is_replaced_from_its_own_data_set(three: Path, tmp_path: Path) -> None:
    names = ("green-shards", "blue-shards")
    for name in names:
        shutil.copytree(three / name, tmp_path / name)
    blue = read_manifest(tmp_path / "blue-shards")
    for sample in range(3):
        path = blue.shard_path(int(blue.shard_id[sample]))
        raw = bytearray(path.read_bytes())
        raw[int(blue.offset[sample])] ^= 0xFF
        path.write_bytes(raw)
    ledger = tmp_path / "ledger.jsonl"
    data = [(tmp_path / name, share) for name, share in zip(names, (0.25, 0.75), strict=True)]
    with Stream(data, ledger=ledger, **OPTIONS) as stream:
        for _ in range(6):
            next(stream)
        mixture = stream.manifest
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {line["data_set"] for line in lines} == {"blue-shards"}
    assert {line["key"] for line in lines} == set(blue.keys([0, 1, 2]))
    for line in lines:
        assert line["substitute"] in blue.keys(range(15))
    for candidate in candidates(mixture, 0, 0, 26):
        assert 25 <= candidate < 40
    told = r"green-shards:1 \+ blue-shards:3 .* coma verify \S+/blue-shards$"
    with Stream(data, fault_budget=2, **OPTIONS) as stream, pytest.raises(DataError, match=told):
        list(stream)


def test_labels_are_given_where_all_have_the_same_classes(three: Path) -> None:
    with Stream([three / "red-shards", three / "red-shards"], **OPTIONS) as stream:
        assert stream.manifest.names == ("red-shards", "red-shards-2")
        batch, label = next(stream), read_manifest(three / "red-shards").label
    assert batch.labels is not None
    assert label is not None
    assert batch.labels.tolist() == label[batch.samples.numpy() % 40].tolist()
    assert set(label.tolist()) == {0, 1}
    with Stream([three / "red-shards", three / "green-shards"], **OPTIONS) as stream:
        assert next(stream).labels is None


def test_images_of_other_kinds_mix_among_themselves(three: Path, tmp_path: Path) -> None:
    """Mean, deviation and quantiles are those of the pixels of both; another kind is refused."""
    one, other = (band_set(tmp_path / name, "npy", count, sides=(40,)) for name, count in (("one", 6), ("other", 3)))
    with Stream([one, other], **OPTIONS) as stream:
        pixels, batch = stream.manifest.pixels, next(stream)
        assert stream.manifest.names == ("data", "data-2")
    assert batch.images.shape == (12, 2, 32, 32)
    assert pixels is not None
    values = np.concatenate([read_sample(path) for path in sorted(tmp_path.rglob("images/*/*"))]).reshape(-1, 2)
    np.testing.assert_allclose(pixels.mean, values.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(pixels.std, values.std(axis=0), rtol=1e-5)
    assert (pixels.least, pixels.greatest) == (tuple(values.min(axis=0)), tuple(values.max(axis=0)))
    for channel in range(2):
        for percent in (2.0, 50.0, 98.0):
            below = (values[:, channel] <= pixels.quantile(channel, percent)).mean()
            assert 100 * below == pytest.approx(percent, abs=1.0)
    told = "red-shards/train has 8-bit RGB images and .* 2 channels of float32, and a network takes images of one kind"
    with pytest.raises(DataError, match=told):
        Stream([one, three / "red-shards"], **OPTIONS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no data set is named"),
        (["a:0.5"], "a:0.5 is the only data set"),
        (["a:0.5", "b"], "a:0.5 has a share and b has none"),
        (["a:1", "b:-2"], "the share of b is '-2'"),
        (["a:1", "b:nan"], "the share of b is 'nan'"),
        ([("a", 1), ("b", "much")], "the share of b is 'much'"),
        (["a:1", "b:1e-12"], "the share of b is 1e-12, less than a billionth of the whole"),
        ([":1", "b:1"], "data has ''; give a folder or a URL"),
        (["a", 5], "data has 5"),
    ],
)
def test_wrong_shares_are_refused_in_one_line(data: list[object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Stream(data, **OPTIONS)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)

"""The stream in other people's programs: processes, threads, copies, numbers of other libraries, torch's defaults."""

import copy
import json
import multiprocessing
import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from coma.errors import UsageError
from coma.pipeline import Batch, CropSizes, Stream, views
from coma.shards.manifest import Manifest

OPTIONS = {"batch_size": 8, "image_size": 64, "unit_size": 16, "workers": 2, "seed": 3}
HANGS_S = 60.0


def same(ours: Batch, theirs: Batch) -> bool:
    return torch.equal(ours.images, theirs.images) and torch.equal(ours.units, theirs.units)


@pytest.fixture(scope="module")
def expected(data: Path) -> list[Batch]:
    with Stream(data, **OPTIONS) as stream:
        return [next(stream) for _ in range(6)]


@pytest.fixture
def stream(data: Path) -> Iterator[Stream]:
    with Stream(data, **OPTIONS) as stream:
        yield stream


def check(stream: Stream, batches: list[Batch]) -> None:
    for batch in batches:
        assert same(next(stream), batch)


def test_forks() -> None:
    """In a process of its own: at a fork, libraries that other tests loaded may hold locks that nobody releases."""
    forks = Path(__file__).with_name("forks.py")
    done = run([sys.executable, "-m", "pytest", "-q", "--numprocesses=0", forks], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_gpu_that_was_used_before_a_fork_is_refused(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    stream._forked = True
    object.__setattr__(stream._options, "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(UsageError, match=r"cuda:0.*spawn"):
        next(stream)


def _take(stream: Stream, count: int) -> None:
    with stream:
        samples = [next(stream).samples.tolist() for _ in range(count)]
    assert samples == [stream.plan(stream.consumed // 8 - count + 1 + at).samples.tolist() for at in range(count)]


def test_a_spawned_process_is_given_the_stream(stream: Stream) -> None:
    next(stream)
    process = multiprocessing.get_context("spawn").Process(target=_take, args=(stream, 2))
    process.start()
    process.join(HANGS_S)
    assert process.exitcode == 0


def test_spawned_workers_of_a_data_loader_are_refused_in_words(stream: Stream) -> None:
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(UsageError, match="num_workers=0"):
        next(iter(loader))


def test_a_data_loader_without_workers_hands_the_batches_on(stream: Stream, expected: list[Batch]) -> None:
    for batch, before in zip(DataLoader(stream, batch_size=None), expected, strict=False):
        assert same(batch, before)
    assert iter(iter(stream)) is stream


@pytest.mark.parametrize("taken", [0, 2])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_by_itself(
    stream: Stream, expected: list[Batch], copied: Callable[[Stream], Stream], taken: int
) -> None:
    check(stream, expected[:taken])
    with copied(stream) as other:
        check(other, expected[taken:])
        assert other._ledger is not stream._ledger
        assert stream.consumed == 8 * taken
    check(stream, expected[taken:])
    stream.close()
    with pytest.raises(UsageError, match="closed"):
        next(copied(stream))


def test_threads_share_a_stream(data: Path) -> None:
    for _ in range(5):
        gate, got = threading.Barrier(3), list[list[int]]()
        with Stream(data, **OPTIONS) as stream:

            def take(stream: Stream = stream, gate: threading.Barrier = gate, got: list[list[int]] = got) -> None:
                gate.wait()
                got.extend(next(stream).samples.tolist() for _ in range(3))

            threads = [threading.Thread(target=take) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(HANGS_S)
            assert sorted(got) == sorted(stream.plan(step).samples.tolist() for step in range(1, 10))
            assert stream.consumed == 72


def test_a_closed_stream_says_so(stream: Stream) -> None:
    state = stream.state_dict()
    stream.close()
    assert stream.state_dict() == state
    for act in (lambda: next(stream), lambda: stream.load_state_dict(state)):
        with pytest.raises(UsageError, match="closed; make another"):
            act()


@pytest.mark.parametrize("scalar", [np.int64, np.uint8, torch.tensor])
def test_numbers_of_numpy_and_torch(manifest: Manifest, expected: list[Batch], scalar: Callable[..., int]) -> None:
    names = {
        **OPTIONS,
        "views": 2,
        "rank": 0,
        "world_size": 1,
        "start_samples": 8,
        "prefetch": 1,
        "fault_budget": 9,
    }
    numbers = {name: scalar(value) for name, value in names.items()}
    odd = {"training": np.bool_(True), "decode": np.str_("cpu"), "crop_scale": np.array([0.2, 1.0])}
    with Stream(manifest, **numbers, **odd) as stream:
        check(stream, expected[1:3])
        assert stream.plan(np.int64(1)).stop_sample == 8
        state = stream.state_dict()
        assert [type(value) for value in state.values()] == [str, int, int]
        stream.load_state_dict(json.loads(json.dumps(state)))
        check(stream, expected[3:4])
        stream.load_state_dict({**state, "seed": np.int64(3), "samples": torch.tensor(8)})
        assert type(stream.state_dict()["samples"]) is int
        check(stream, expected[1:2])
    sizes = CropSizes(*map(scalar, (32, 64, 16, 99)))
    assert {type(value) for value in vars(sizes).values()} == {int}


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: value} for name in ("batch_size", "image_size", "seed") for value in ("8", 8.0, None)),
        *({name: np.float32(8)} for name in OPTIONS),
        {"training": "False"},
        {"crop_scale": 0.5},
        {"crop_scale": (0.2, float("nan"))},
        {"start_samples": 2**63},
        {"fault_budget": -1},
        {"world_size": None},
        {"device": "gpu"},
        {"device": "meta"},
        {"image_size": (224, 224)},
        {"seed": np.arange(999)},
    ],
)
def test_what_is_no_number_is_refused_in_a_line(manifest: Manifest, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError) as refusal:
        Stream(manifest, **{**OPTIONS, **wrong})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("state", [None, {}, [], "path", {"fingerprint": "", "seed": 3.5, "samples": 1}])
def test_a_state_that_is_none_is_refused_in_a_line(stream: Stream, state: object) -> None:
    with pytest.raises(UsageError, match="state"):
        stream.load_state_dict(state)


def test_data_of_no_kind_and_a_folder_left_behind(
    data: Path, expected: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="data is None"):
        Stream(None, **OPTIONS)
    monkeypatch.chdir(data.parent)
    with Stream(data.name, **OPTIONS) as stream:
        monkeypatch.chdir(tmp_path)
        check(stream, expected[:1])


@pytest.fixture
def _defaults() -> Iterator[None]:
    threads, dtype, errors = torch.get_num_threads(), torch.get_default_dtype(), np.geterr()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)
    np.seterr(**errors)


@pytest.mark.usefixtures("_defaults")
@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.bfloat16),
        lambda: torch.set_default_device("meta"),
        lambda: torch.set_num_threads(3),
        lambda: torch.use_deterministic_algorithms(True),
        lambda: np.seterr(all="raise"),
    ],
)
def test_defaults_of_the_program_change_nothing(
    manifest: Manifest, expected: list[Batch], change: Callable[[], object]
) -> None:
    change()
    with Stream(manifest, **OPTIONS) as stream:
        check(stream, expected[:2])


def test_batches_of_inference_mode_can_be_trained_on(stream: Stream) -> None:
    with torch.inference_mode():
        images = next(stream).images
    assert not images.is_inference()


def test_the_programs_own_random_numbers_stay(data: Path) -> None:
    def state() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    with Stream(data, **OPTIONS) as stream:
        next(stream)
    assert state() == before


def test_views_take_other_integers() -> None:
    samples = torch.tensor([5, 2**31 - 1])
    plain = views.partition_units(samples, samples, seed=3, units=16)
    assert torch.equal(plain, views.partition_units(samples.int(), samples.int(), seed=np.int64(3), units=np.int64(16)))

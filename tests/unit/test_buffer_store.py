"""The store: sealing changes where steps lie and nothing else."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_stack.buffer.images import ImageCodec, decode_image, encode_image
from robot_stack.buffer.locations import NOT_SEALED, Locations, from_ranges, to_ranges
from robot_stack.buffer.log import DurableLog
from robot_stack.buffer.steps import SequenceSet, SessionKey, StepLog
from robot_stack.buffer.store import StepStore, StoreSettings
from robot_stack.core.codec import pack, unpack
from robot_stack.core.errors import MessageError, StorageError
from robot_stack.core.messages import Step
from tests.buffer_kit import IMAGE, MANUAL, STATE, Traffic, contents, episode_of, image_of, make_step, sealed_paths


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), segment_bytes=st.sampled_from((1500, 6000, 100_000)))
def test_sealing_restarts_and_rebuilds_change_nothing_that_is_read(seed: int, segment_bytes: int) -> None:
    """Against a plain list: random interleaving, repetitions, restarts, sealing and loss of the catalog."""
    rng, expected = random.Random(seed), list[bytes]()
    manual = StoreSettings(segment_bytes=segment_bytes, background=False)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "store"
        store = StepStore(directory, "process", manual)
        store.open()
        for batch in Traffic(seed).batches(40):
            fresh = [record for record in dict.fromkeys(batch) if record not in expected]
            assert store.append(batch) == (len(fresh), len(batch) - len(fresh))
            expected += fresh
            if rng.random() < 0.4:
                store.seal(rng.randint(1, 4))
            if rng.random() < 0.1:
                store.release()
            if rng.random() < 0.15:
                store.close()
                if rng.random() < 0.4:
                    (directory / "catalog").unlink()
                store.open()
                assert store.next_index == len(store) == len(expected)
            if rng.random() < 0.2:
                start = rng.randint(0, len(expected))
                assert contents(store, start) == {i: expected[i] for i in range(start, len(expected))}
        store.seal(1000)
        assert contents(store) == dict(enumerate(expected))
        assert store.append(expected) == (0, len(expected))
        assert sum(store.sessions().values()) == len(expected)
        assert sum(info.steps for info in store.episodes()) > 0
        assert store.verify().is_good
        store.close()
        shutil.rmtree(directory / "log")  # every step that is sealed is still there, and no index is given twice
        (directory / "catalog").unlink()
        with StepStore(directory, "process", manual) as again:
            sealed = again.episodes()
            assert again.next_index == max((info.last_index for info in sealed), default=-1) + 1
            left = contents(again)
            assert len(left) == sum(info.steps for info in sealed)
            assert all(expected[index] == record for index, record in left.items())


def test_a_sealed_file_holds_one_stretch_and_says_which(tmp_path: Path) -> None:
    with StepStore(tmp_path, "process", MANUAL) as store:
        store.append(episode_of("a", "s", 0, 5) + episode_of("b", "t", 0, 3) + episode_of("a", "s", 1, 5)[:2])
        assert store.seal(10) == 2
        assert [(i.robot, i.session, i.episode, i.first_index, i.last_index, i.ended) for i in store.episodes()] == [
            ("a", "s", 0, 0, 4, True),
            ("b", "t", 0, 5, 7, True),
        ]
        store.append([pack(make_step("a", "new", 0, 0))])
        assert store.seal(10) == 1
        last = store.episodes()[-1]
        assert (last.session, last.episode, last.steps, last.ended) == ("s", 1, 2, False)
        assert store.seal(10) == 0


def test_a_stretch_that_goes_on_after_all_gives_a_second_file(tmp_path: Path) -> None:
    records = episode_of("a", "s", 0, 6)
    with StepStore(tmp_path, "process", MANUAL) as store:
        store.append([*records[:3], pack(make_step("a", "other", 0, 0)), *records[3:]])
        assert store.seal(10) == 3
        assert [info.steps for info in store.episodes()] == [3, 1, 3]
        assert list(contents(store).values()) == [*records[:3], pack(make_step("a", "other", 0, 0)), *records[3:]]


def test_a_stretch_is_split_where_its_features_change_and_at_the_size_of_a_file(tmp_path: Path) -> None:
    steps = [make_step("a", "s", seq, 0) for seq in range(8)]
    other = unpack(pack(make_step("a", "s", 8, 0)), Step)
    del other.observation[IMAGE]
    with StepStore(tmp_path, "process", StoreSettings(background=False, max_file_bytes=600)) as store:
        store.append([pack(step) for step in [*steps, other]] + [pack(make_step("a", "s", 9, 1))])
        before = contents(store)
        while store.seal(1):
            pass
        sizes = [info.steps for info in store.episodes()]
        assert sum(sizes) == 9 and len(sizes) > 3 and sizes[-1] == 1
        assert contents(store) == before
    with StepStore(tmp_path, "process", MANUAL) as store:
        assert contents(store) == before


def test_segments_of_the_log_go_only_when_every_step_in_them_is_sealed(tmp_path: Path) -> None:
    with StepStore(tmp_path, "process", StoreSettings(segment_bytes=2000, background=False)) as store:
        store.append([pack(make_step("slow", "s", 0, 0))])
        for episode in range(10):
            store.append(episode_of("quick", "s", episode, 8))
        assert store.seal(100) == 10
        assert len(list((tmp_path / "log").glob("*.log"))) > 5
        assert not store.release()
        store.append([pack(make_step("slow", "s", 1, 1))])
        assert store.seal(100) == 1
        assert len(list((tmp_path / "log").glob("*.log"))) == 1
        assert len(contents(store)) == 82


def test_an_idle_store_with_everything_sealed_empties_its_log(tmp_path: Path) -> None:
    with StepStore(tmp_path, "power", StoreSettings(background=False)) as store:
        store.append(episode_of("a", "s", 0, 8))
        store.seal()
        assert store.release()
        assert sum(path.stat().st_size for path in (tmp_path / "log").glob("*.log")) < 100
        before = contents(store)
        assert len(before) == 8
        assert store.append(episode_of("a", "s", 0, 8)) == (0, 8)
    with StepStore(tmp_path, "power", StoreSettings(background=False)) as store:
        assert contents(store) == before
        store.append(episode_of("a", "s", 1, 8))
        assert list(contents(store, 8)) == list(range(8, 16))


def test_the_background_thread_seals_what_is_complete_and_what_went_stale(tmp_path: Path) -> None:
    quick = StoreSettings(segment_bytes=4000, stale_s=0.2, idle_s=0.2)
    with StepStore(tmp_path, "process", quick) as store:
        store.append(episode_of("a", "s", 0, 8) + episode_of("a", "s", 1, 8)[:3])
        deadline = time.monotonic() + 20.0
        while len(store.episodes()) < 2 or store._log.first_index < 11:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert [(info.steps, info.ended) for info in store.episodes()] == [(8, True), (3, False)]
        assert (store.seal_errors, store.waiting_stretches, len(contents(store))) == (0, 0, 11)


def test_nothing_is_sealed_unasked_where_that_is_switched_off(tmp_path: Path) -> None:
    with StepStore(tmp_path, "process", StoreSettings(seal=False)) as store:
        store.append(episode_of("a", "s", 0, 8))
        assert store._background is None and store.waiting_stretches == 1 and store.episodes() == []


@pytest.mark.parametrize("codec", list(ImageCodec))
def test_images_come_from_files_and_from_the_log_alike(tmp_path: Path, codec: ImageCodec) -> None:
    steps = [unpack(record, Step) for episode in range(4) for record in episode_of("a", "s", episode, 10)]
    for step in steps:
        step.observation[IMAGE] = encode_image(step.observation[IMAGE], codec)
        if step.final_observation:
            step.final_observation[IMAGE] = encode_image(step.final_observation[IMAGE], codec)
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 40, 200)
    final = (indices % 10 == 9) & (rng.random(200) < 0.5)
    expected = [
        decode_image((steps[i].final_observation if last else steps[i].observation)[IMAGE])  # type: ignore[index]
        for i, last in zip(indices, final, strict=True)
    ]
    with StepStore(tmp_path, "process", StoreSettings(background=False, segment_bytes=3000, open_files=2)) as store:
        store.append([pack(step) for step in steps])
        for sealed in (0, 2, 1, 1):
            assert store.seal(sealed) == sealed
            out = np.zeros((200, 4, 6, 3), np.uint8)
            store.read_images(IMAGE, indices, final, out)
            np.testing.assert_array_equal(out, expected)


def test_what_cannot_be_read_is_an_error_that_says_why(tmp_path: Path) -> None:
    out, no = np.zeros((1, 4, 6, 3), np.uint8), np.zeros(1, np.bool_)
    with StepStore(tmp_path, "process", MANUAL) as store:
        store.append(episode_of("a", "s", 0, 4))
        for _ in range(2):  # in the log, then sealed
            with pytest.raises(StorageError, match=r"observation\.images\.none"):
                store.read_images("observation.images.none", np.array([0]), no, out)
            with pytest.raises(StorageError, match="final"):
                store.read_images(IMAGE, np.array([1]), ~no, out)
            with pytest.raises(StorageError):
                store.read_images(IMAGE, np.array([1]), no, np.zeros((1, 5, 6, 3), np.uint8))
            with pytest.raises(StorageError, match="0 to 3"):
                store.read_images(IMAGE, np.array([4]), no, out)
            store.seal()
        with pytest.raises(StorageError, match="first dimension"):
            store.read_images(IMAGE, np.array([1, 2]), no, out)
        with pytest.raises(StorageError, match="cannot be read from 5"):
            store.iterate(5)
        assert list(store.iterate(4)) == []


def test_reading_images_and_steps_goes_on_while_sealing_moves_them(tmp_path: Path) -> None:
    quick = StoreSettings(segment_bytes=3000, stale_s=0.05, idle_s=0.05, open_files=4)
    failures: list[BaseException] = []
    done = threading.Event()
    with StepStore(tmp_path, "process", quick) as store:
        store.append(episode_of("a", "s", 0, 10))

        def read_images() -> None:
            rng = np.random.default_rng(1)
            while not done.is_set():
                indices = rng.integers(0, store.next_index, 32)
                out = np.zeros((32, 4, 6, 3), np.uint8)
                store.read_images(IMAGE, indices, indices % 10 == 9, out)
                for index, image in zip(indices.tolist(), out, strict=True):
                    assert (image == image_of("a", "s", index, final=index % 10 == 9)).all()

        def read_steps() -> None:
            while not done.is_set():
                stop = store.next_index
                seen = [(index, step.seq) for index, step in store.iterate(max(0, stop - 150))]
                assert seen[: min(150, stop)] == [(index, index) for index in range(max(0, stop - 150), stop)]

        def guarded(work: object) -> None:
            try:
                work()  # type: ignore[operator]
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(work,)) for work in (read_images, read_steps, read_images)]
        for thread in threads:
            thread.start()
        for episode in range(1, 60):
            store.append(episode_of("a", "s", episode, 10))
            time.sleep(0.02)
        deadline = time.monotonic() + 20.0
        while store._log.first_index < 600 and time.monotonic() < deadline:
            time.sleep(0.02)
        done.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert (store._log.first_index, store.seal_errors) == (600, 0)


def test_a_step_log_of_before_is_taken_over(tmp_path: Path) -> None:
    records = [record for episode in range(5) for record in episode_of("a", "s", episode, 8)]
    with StepLog(tmp_path / "steps") as log:
        log.append(records)
    with StepStore(tmp_path / "steps", "process", MANUAL) as store:
        assert list(contents(store).values()) == records
        assert store.append(records) == (0, 40)
        assert store.seal(10) == 5


def test_a_malformed_batch_stores_nothing_and_a_second_store_is_refused(tmp_path: Path) -> None:
    with StepStore(tmp_path, "process", MANUAL) as store:
        with pytest.raises(MessageError, match="record 1 of 2"):
            store.append([pack(make_step("a", "s", 0, 0)), b"rubbish"])
        assert (len(store), store.next_index, store.first_index, list(store.iterate(0))) == (0, 0, 0, [])
        with pytest.raises(StorageError, match="another process"):
            StepStore(tmp_path, "process", MANUAL).open()
        with pytest.raises(StorageError, match="already open"):
            store.open()
        assert store.append([pack(make_step("a", "s", 0, 0))]) == (1, 0)
        assert store.sessions() == {SessionKey("run", "a", "s"): 1}


def test_a_log_that_lost_its_end_with_the_power_gives_no_index_twice(tmp_path: Path) -> None:
    """Durability `process`: files are on the disk, what the log held beyond them is not."""
    with StepStore(tmp_path, "process", StoreSettings(background=False)) as store:
        store.append([pack(make_step("b", "t", 0, 0)), *episode_of("a", "s", 0, 6)])
        store.seal()
    with DurableLog(tmp_path / "log") as log:
        first = log.read(0)
    for path in (tmp_path / "log").glob("*.log"):
        path.unlink()
    with DurableLog(tmp_path / "log") as log:
        log.append(first)
        log.sync()
    with StepStore(tmp_path, "process", MANUAL) as store:
        assert store.next_index == 7
        assert [info.first_index for info in store.episodes()] == [0, 1]
        store.append([pack(make_step("b", "t", 1, 0))])
        assert list(contents(store)) == list(range(8))


# ---- parts ------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=30))
def test_ranges_can_be_added_to_a_sequence_set(ranges: list[tuple[int, int]]) -> None:
    compact, plain = SequenceSet(), set[int]()
    for start, size in ranges:
        compact.add_range(start, start + size)
        plain.update(range(start, start + size))
        assert len(compact) == len(plain)
        assert {value for first, stop in compact.ranges() for value in range(first, stop)} == plain
        assert all(a[1] < b[0] for a, b in zip(compact.ranges(), compact.ranges()[1:], strict=False))


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 300), min_size=1), st.integers(0, 2**32 - 1))
def test_locations_are_a_dictionary(values: set[int], seed: int) -> None:
    rng = random.Random(seed)
    locations, plain, files = Locations(), dict[int, tuple[int, int]](), dict[int, np.ndarray]()
    rest = sorted(values)
    while rest or files:
        if rest and (rng.random() < 0.6 or not files):
            chosen = np.array(sorted(rng.sample(rest, rng.randint(1, len(rest)))))
            number = len(plain) + 1000 * len(rest)
            assert np.array_equal(from_ranges(to_ranges(chosen)), chosen)
            assert locations.add(chosen, number)
            assert not locations.add(chosen[-1:], number + 1)
            files[number] = chosen
            plain |= {int(index): (number, position) for position, index in enumerate(chosen)}
            rest = [value for value in rest if value not in plain]
        else:
            gone = files.pop(rng.choice(list(files)))
            locations.remove(gone)
            for index in gone.tolist():
                del plain[index]
        numbers, positions = locations.find(np.arange(-2, 310))
        found = {i - 2: (int(n), int(p)) for i, (n, p) in enumerate(zip(numbers, positions, strict=True)) if n >= 0}
        assert found == plain
        assert locations.first() == min(plain, default=None)
        assert all(locations.file_of(i) == plain.get(i, (NOT_SEALED,))[0] for i in range(-2, 310))


def test_a_final_observation_of_a_step_that_did_not_end_its_episode_is_refused(tmp_path: Path) -> None:
    ended = unpack(episode_of("a", "s", 0, 1)[0], Step)
    for changes in ({"final_observation": ended.observation}, {"final_action_base": ended.action_base}):
        going_on = {name: getattr(ended, name) for name in Step.__struct_fields__}
        going_on |= {"truncated": False, "final_observation": None, "final_action_base": None} | changes
        with StepStore(tmp_path, "process", MANUAL) as store, pytest.raises(MessageError, match="did not end"):
            store.append([pack(Step(**going_on))])
    assert STATE in ended.observation and sealed_paths(tmp_path) == []

"""The cache file: torn writes stay invisible, one writer at a time, readers of every kind, merge, info, verify."""

import hashlib
import multiprocessing
import os
import pickle
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import pipeline.cache
from pipeline.cache import (
    CacheError,
    CacheWriter,
    FeatureCache,
    MissingClipError,
    Source,
    main,
    merge,
    verify,
)
from pipeline.mouths import source_digest, source_stat
from tests.pipeline.fakes import DIM, FakeFrontEnd, write_mouths

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = FakeFrontEnd().identity


def clip(name, frames=3, version=0):
    """id, source and rows that follow from id and version alone."""
    digest = hashlib.sha256(f"{name} {version}".encode()).digest()
    rows = np.random.default_rng(list(digest)).standard_normal((frames, DIM)).astype(np.float16)
    return name, Source(digest, 100 + version, 200 + version, 300), rows


def make(path, names, frames=3, identity=IDENTITY):
    with CacheWriter(path, identity) as writer:
        writer.commit([clip(name, frames) for name in names])
        writer.complete()
    return path


def assert_whole(path):
    """Opens with h5py, and every entry has the rows that its id says."""
    with h5py.File(path, "r") as file:
        assert file["embeddings"].shape[1] == DIM
    assert verify(path) == []
    cache = FeatureCache(path)
    for name in cache.ids():
        expected = [clip(name, len(cache[name]), version)[2] for version in range(4)]
        assert any(np.array_equal(cache[name], rows) for rows in expected), name
    return cache.ids()


def test_what_is_written_is_read_and_the_identity_with_it(tmp_path):
    path = make(tmp_path / "a.h5", ["0012", "12", "ümläut_7"])
    cache = FeatureCache(path)
    assert cache.ids() == list(cache) == ["0012", "12", "ümläut_7"] and len(cache) == 3
    for name in cache:
        np.testing.assert_array_equal(cache[name], clip(name)[2])
    assert cache["12"].dtype == np.float16 and cache.num_frames("12") == 3 and cache.dim == DIM
    assert cache.identity == {**IDENTITY, "weights": "one.pt"}
    cache["12"][:] = 0
    np.testing.assert_array_equal(cache["12"], clip("12")[2])


def test_a_missing_id_names_the_nearest_the_file_and_the_remedy(tmp_path):
    path = make(tmp_path / "a.h5", ["00012345", "77"])
    with pytest.raises(MissingClipError, match=r"nearest is 00012345.*precompute_visual") as caught:
        FeatureCache(path)["0012345"]
    assert isinstance(caught.value, KeyError) and str(path) in str(caught.value)
    assert "0012345" not in FeatureCache(path)
    assert FeatureCache(path).get("0012345") is None


def test_files_that_are_no_cache_are_refused(tmp_path):
    with pytest.raises(CacheError, match=r"no such cache.*precompute_visual\.py"):
        len(FeatureCache(tmp_path / "absent.h5"))
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(CacheError, match="cannot be read as a cache"):
        len(FeatureCache(tmp_path / "text.h5"))
    with pytest.raises(CacheError, match="cannot be read as a cache"):
        len(FeatureCache(tmp_path))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(CacheError, match="no embedding cache"):
        len(FeatureCache(tmp_path / "other.h5"))
    with pytest.raises(CacheError, match="no embedding cache"):
        CacheWriter(tmp_path / "other.h5", IDENTITY).__enter__()
    assert not (tmp_path / "other.h5.lock").exists()
    with h5py.File(make(tmp_path / "next.h5", ["1"]), "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(CacheError, match="format version 99"):
        len(FeatureCache(tmp_path / "next.h5"))


def test_every_possible_torn_write_stays_invisible(tmp_path, monkeypatch):
    """Stop at each write in turn, half of it done; what was there stays, the batch is there clip by clip or not."""
    stage = {"left": 0}
    original = os.pwrite

    def tear(descriptor, block, offset):
        if stage["left"] == 0:
            original(descriptor, block[: len(block) // 2], offset)
            raise InterruptedByTest
        stage["left"] -= 1
        return original(descriptor, block, offset)

    class InterruptedByTest(BaseException):
        pass

    outcomes = set()
    for writes in range(100):
        path = tmp_path / f"{writes}.h5"
        with CacheWriter(path, IDENTITY) as writer:
            writer.reserve(["a", "b"], 6)
            writer.commit([clip("a"), clip("b")])
        monkeypatch.setattr(pipeline.cache.os, "pwrite", tear)
        # The first write of all is the lock's own note.
        stage["left"] = writes + 1
        torn = False
        try:
            with CacheWriter(path, IDENTITY) as writer:
                writer.reserve(["a", "b", "c", "d", "e"], 12)
                writer.commit([clip("c"), clip("b", 3, 1), clip("d")])
                writer.remove(["c"])
                writer.refresh([("a", Source(clip("a")[1].sha256, 1, 2, 3))])
                writer.commit([clip("e", 40)])  # beyond what was reserved: the file grows
                writer.complete()
        except InterruptedByTest:
            torn = True
        monkeypatch.setattr(pipeline.cache.os, "pwrite", original)
        ids = assert_whole(path)
        assert {"a", "b"} <= set(ids)
        outcomes.add(tuple(ids))
        # The next run finishes the job, whatever was left behind.
        with CacheWriter(path, IDENTITY) as writer:
            writer.commit([clip("c"), clip("d"), clip("e")])
            writer.complete()
        assert assert_whole(path) == ["a", "b", "c", "d", "e"]
        assert sorted(os.listdir(tmp_path))[-1].endswith(".h5"), "nothing temporary is left"
        if not torn:
            break
    assert not torn and writes > 10
    assert outcomes == {
        ("a", "b"),
        ("a", "b", "c"),
        ("a", "b", "c", "d"),
        ("a", "b", "d"),
        ("a", "b", "d", "e"),
    }


def test_a_power_cut_that_loses_all_but_the_marks_leaves_whole_entries(tmp_path, monkeypatch):
    """Of what was not synced the kernel may keep any part: here only the single bytes that make a record count."""
    path, cut = make(tmp_path / "a.h5", ["a"]), tmp_path / "cut.h5"
    on_disk, marks, original_write, original_sync = bytearray(), [], os.pwrite, os.fsync

    def sync(descriptor):
        original_sync(descriptor)
        on_disk[:] = path.read_bytes()
        marks.clear()

    def write(descriptor, block, offset):
        count = original_write(descriptor, block, offset)
        if len(block) == 1:
            marks.append(offset)
            image = bytearray(on_disk)
            for place in marks:
                image[place] = 1
            cut.write_bytes(image)
            seen.append(assert_whole(cut))
        return count

    seen = []
    with CacheWriter(path, IDENTITY) as writer:
        writer.reserve(["b", "c", "d"], 9)
        on_disk[:] = path.read_bytes()
        monkeypatch.setattr(pipeline.cache.os, "pwrite", write)
        monkeypatch.setattr(pipeline.cache.os, "fsync", sync)
        writer.commit([clip("b"), clip("c")])
        writer.remove(["b"])
        writer.commit([clip("d")])
        monkeypatch.undo()
    assert seen == [["a", "b"], ["a", "b", "c"], ["a", "c"], ["a", "c", "d"]]


def test_the_last_entry_of_an_id_wins_and_stale_rows_are_given_back(tmp_path):
    path = make(tmp_path / "a.h5", [f"{n}" for n in range(20)])
    before = path.stat().st_size
    with CacheWriter(path, IDENTITY) as writer:
        writer.commit([clip(f"{n}", 3, 1) for n in range(20)])
        assert FeatureCache(path)["7"].tolist() == clip("7", 3, 1)[2].tolist()
        writer.complete()
    assert path.stat().st_size < 1.2 * before
    np.testing.assert_array_equal(FeatureCache(path)["7"], clip("7", 3, 1)[2])


def test_another_identity_replaces_the_file_only_when_there_is_something_to_write(tmp_path):
    path = make(tmp_path / "a.h5", ["1", "2"])
    other = FakeFrontEnd("two").identity
    with CacheWriter(path, other) as writer:
        assert writer.entries == {} and writer.outdated == {"1", "2"}
        assert "weights_sha256" in writer.mismatch
    assert FeatureCache(path).ids() == ["1", "2"]
    with CacheWriter(path, other) as writer:
        writer.commit([clip("3")])
    assert FeatureCache(path).ids() == ["3"]
    assert FeatureCache(path).identity["weights_sha256"] == other["weights_sha256"]


@pytest.mark.parametrize("key", ["network", "weights_sha256", "preprocessing_version", "features", "dtype"])
def test_each_part_of_the_identity_counts(tmp_path, key):
    path = make(tmp_path / "a.h5", ["1"])
    with CacheWriter(path, {**IDENTITY, key: 2 if key == "preprocessing_version" else "other"}) as writer:
        assert key in writer.mismatch and not writer.entries
    with CacheWriter(path, {**IDENTITY, "weights": "renamed.pt"}) as writer:
        assert not writer.mismatch and "1" in writer.entries


def test_a_second_writer_is_told_who_writes(tmp_path):
    path = tmp_path / "a.h5"
    with CacheWriter(path, IDENTITY) as writer:
        writer.commit([clip("1")])
        with pytest.raises(CacheError, match=f"is being written by process {os.getpid()} on ") as caught:
            CacheWriter(path, IDENTITY).__enter__()
        assert str(path) in str(caught.value) and "--out" in str(caught.value)
        writer.commit([clip("2")])
    assert os.listdir(tmp_path) == ["a.h5"]
    assert make(path, ["3"]) and FeatureCache(path).ids() == ["1", "2", "3"]


def test_the_lock_of_a_dead_process_is_no_obstacle(tmp_path):
    (tmp_path / "a.h5.lock").write_text("process 1 on elsewhere\n")
    (tmp_path / "a.h5.part").write_text("half a file")
    make(tmp_path / "a.h5", ["1"])
    assert os.listdir(tmp_path) == ["a.h5"]


def test_many_threads_racing_for_the_lock_never_write_together(tmp_path):
    path, inside, failures = tmp_path / "a.h5", [], []

    def write(number):
        for attempt in range(40):
            try:
                with CacheWriter(path, IDENTITY) as writer:
                    inside.append(number)
                    if len(inside) > 1:
                        failures.append(list(inside))
                    writer.commit([clip(f"{number}-{attempt}", 1)])
                    inside.remove(number)
            except CacheError as error:
                if "is being written" not in str(error):
                    failures.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert assert_whole(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written"):
        CacheWriter(tmp_path / "file" / "a.h5", IDENTITY).__enter__()


def test_a_longer_id_than_any_before_makes_room_for_itself(tmp_path):
    path = make(tmp_path / "a.h5", ["1"])
    make(path, ["x" * 300])
    assert FeatureCache(path).ids() == ["1", "x" * 300]


def test_a_reader_keeps_its_file_while_a_writer_replaces_it(tmp_path):
    path = make(tmp_path / "a.h5", ["1", "2"])
    cache = FeatureCache(path)
    assert len(cache) == 2
    with CacheWriter(path, FakeFrontEnd("two").identity) as writer:
        writer.commit([clip("1", 3, 1)])
        np.testing.assert_array_equal(cache["1"], clip("1")[2])
        np.testing.assert_array_equal(cache["2"], clip("2")[2])
    cache.close()
    assert cache.ids() == ["1"]
    np.testing.assert_array_equal(cache["1"], clip("1", 3, 1)[2])


def read_all(cache, names, results):
    for name in names:
        if not np.array_equal(cache[name], clip(name)[2]):
            results.put(f"{name} differs")
            return
    results.put(None)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("opened_before", [False, True])
def test_many_processes_read_at_once(tmp_path, method, opened_before):
    names = [f"{n}" for n in range(50)]
    cache = FeatureCache(make(tmp_path / "a.h5", names))
    if opened_before:
        assert len(cache) == 50
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    count = 4 if method == "fork" else 2
    processes = [context.Process(target=read_all, args=(cache, names, results)) for _ in range(count)]
    for process in processes:
        process.start()
    read_all(cache, names, results)
    for process in processes:
        process.join()
    assert [results.get() for _ in range(count + 1)] == [None] * (count + 1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader_workers_read(tmp_path, method):
    data = pytest.importorskip("torch.utils.data")
    names = [f"{n}" for n in range(24)]
    cache = FeatureCache(make(tmp_path / "a.h5", names))
    loader = data.DataLoader(Clips(cache, names), batch_size=4, num_workers=2, multiprocessing_context=method)
    rows = np.concatenate([batch.numpy() for batch in loader])
    np.testing.assert_array_equal(rows, np.stack([clip(name)[2] for name in names]))


class Clips:
    """A data set of cached clips."""

    def __init__(self, cache, names):
        self.cache, self.names = cache, names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.cache[self.names[index]]


def test_pickled_it_is_its_path(tmp_path):
    cache = FeatureCache(make(tmp_path / "a.h5", [f"{n}" for n in range(1000)]))
    assert len(cache) == 1000
    assert len(pickle.dumps(cache)) < 500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache))["7"], clip("7")[2])


def test_one_clip_is_read_in_a_fraction_of_a_millisecond(tmp_path):
    names = [f"{n:05d}" for n in range(400)]
    with CacheWriter(tmp_path / "a.h5", {**IDENTITY, "dim": 512}) as writer:
        rows = np.ones((50, 512), np.float16)
        writer.commit([(name, clip(name)[1], rows) for name in names])
    cache = FeatureCache(tmp_path / "a.h5")
    assert len(cache) == 400
    seconds = []
    for index in np.random.default_rng(0).integers(0, 400, 400):
        began = time.perf_counter()
        cache[names[index]]
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) < 1e-3, f"{1e3 * statistics.median(seconds):.3f} ms"


def test_damaged_rows_are_found(tmp_path):
    path = make(tmp_path / "a.h5", ["1", "2"])
    with h5py.File(path, "r+") as file:
        file["embeddings"][4, 0] += np.float16(1)
    assert verify(path) == [("2", "the rows are damaged")]
    with (
        CacheWriter(path, IDENTITY) as writer,
        pytest.raises(CacheError, match=r"entry 2 is damaged.*--verify"),
    ):
        writer.commit([clip("3", 100)])
    assert FeatureCache(path).ids() == ["1", "2"], "a copy that fails leaves the file as it was"


def test_damaged_rows_can_be_taken_out_even_when_the_file_must_grow_for_it(tmp_path):
    path = make(tmp_path / "a.h5", ["1", "2"])
    with h5py.File(path, "r+") as file:
        file["embeddings"][4, 0] += np.float16(1)
        records = len(file["entries"])
    with CacheWriter(path, IDENTITY) as writer:
        for version in range(records - 2):  # fill the log to its last record
            writer.refresh([("1", clip("1", 3, version % 4)[1])])
        assert not writer.is_sound("2")
        writer.remove(["2"])
        writer.commit([clip("3")])
    assert FeatureCache(path).ids() == ["1", "3"] and verify(path) == []


def test_a_clip_of_the_last_rows_can_be_taken_out_when_the_file_shrinks_for_it(tmp_path):
    path = make(tmp_path / "a.h5", [f"{n:02}" for n in range(40)], frames=100)
    with CacheWriter(path, IDENTITY) as writer:
        writer.commit([clip(f"{n:02}", 100, 1) for n in range(3)])
        with h5py.File(path, "r") as file:
            log = file["entries"]["whole"]
        for _ in range(len(log) - int(log.sum())):  # fill the log to its last record
            writer.refresh([("39", clip("39")[1])])
        rows_before = FeatureCache(path).path.stat().st_size
        writer.remove(["02"])
    assert path.stat().st_size < rows_before, "stale rows were not given back: nothing was tested"
    assert len(FeatureCache(path)) == 39 and verify(path) == []


def test_a_cut_off_file_is_refused(tmp_path):
    path = make(tmp_path / "a.h5", ["1", "2"])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(CacheError, match="cannot be read as a cache"):
        len(FeatureCache(path))


def test_shards_are_merged(tmp_path, capsys):
    first, second = make(tmp_path / "1.h5", ["a", "c"]), make(tmp_path / "2.h5", ["b", "c"])
    assert merge(tmp_path / "all.h5", [first, second]) == 3
    assert assert_whole(tmp_path / "all.h5") == ["a", "b", "c"]
    with pytest.raises(CacheError, match="exists already"):
        merge(tmp_path / "all.h5", [first])
    third = make(tmp_path / "3.h5", ["d"])
    assert main(["merge", str(tmp_path / "all.h5"), str(tmp_path / "all.h5"), str(third)]) == 0
    assert "4 clips" in capsys.readouterr().out
    assert assert_whole(tmp_path / "all.h5") == ["a", "b", "c", "d"]
    assert not list(tmp_path.glob("*.lock"))


def test_what_does_not_belong_together_is_not_merged(tmp_path, capsys):
    first = make(tmp_path / "1.h5", ["a"])
    second = make(tmp_path / "2.h5", ["b"], identity={**IDENTITY, "features": "tcn"})
    assert main(["merge", str(tmp_path / "all.h5"), str(first), str(second)]) == 2
    message = capsys.readouterr().err
    assert "1.h5" in message and "2.h5" in message and "features frontend -> tcn" in message
    with CacheWriter(tmp_path / "3.h5", IDENTITY) as writer:
        writer.commit([clip("a", 3, 1)])
        with pytest.raises(CacheError, match="is being written"):
            merge(tmp_path / "all.h5", [tmp_path / "3.h5"])
    with pytest.raises(CacheError, match=r"a was computed from different contents in .*1\.h5 and .*3\.h5"):
        merge(tmp_path / "all.h5", [first, tmp_path / "3.h5"])
    assert not (tmp_path / "all.h5").exists()


def test_sources_that_are_others_now_are_found_by_content_where_only_times_differ(tmp_path):
    names = [f"{n:03}" for n in range(3 * pipeline.cache.COMPARED_FIRST)]
    files = {name: tmp_path / f"{name}.npz" for name in names}
    for name, file in files.items():
        file.write_bytes(f"content {name}".encode())
    with CacheWriter(tmp_path / "a.h5", IDENTITY) as writer:
        writer.commit(
            [
                (name, Source(source_digest(file), *source_stat(file)), clip(name)[2])
                for name, file in files.items()
            ]
        )
    cache = FeatureCache(tmp_path / "a.h5")
    assert cache.changed(files) == []
    for file in files.values():  # as of a copy
        os.utime(file, ns=(0, 0))
    assert cache.changed(files) == []
    files["000"].write_bytes(b"CONTENT 000")
    files["001"].write_bytes(b"CONTENT 001")
    assert cache.changed(files) == ["000", "001"], "one that is found has the others looked for"
    files["002"].write_bytes(b"longer than it was")
    files["003"].unlink()
    sources = {**files, "of no entry": tmp_path / "none"}
    assert cache.changed(sources) == ["000", "001", "002"], "an absent file is for others to report"


def test_info_and_verify_on_the_command_line(tmp_path, capsys):
    path = make(tmp_path / "a.h5", ["000", "009"])
    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    for word in ("fake, for tests", "one.pt", IDENTITY["weights_sha256"], "frontend", "float32", "created"):
        assert word in shown
    assert main(["verify", str(path)]) == 0
    write_mouths(tmp_path / "data", 2)
    assert main(["verify", str(path), "--root", str(tmp_path / "data")]) == 3
    shown = capsys.readouterr().out
    assert "000: the source has changed" in shown
    assert "001: not in the cache" in shown and "009: no source under" in shown
    assert main(["verify", str(path), "--root", str(tmp_path / "nowhere")]) == 2
    assert main(["info", str(tmp_path / "absent.h5")]) == 2
    assert "no such cache" in capsys.readouterr().err


def test_reading_the_cache_needs_no_pytorch():
    code = (
        "import sys, pipeline.cache, pipeline.layout, pipeline.mouths, pipeline.extract, pipeline.decode; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0

"""Precomputing: kills at random instants, full disks, stale and touched sources, shards, bad inputs, workers."""

import csv
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import pipeline.extract
from pipeline.cache import CacheError, CacheWriter, FeatureCache, main, verify
from pipeline.extract import ExtractError, cache_path, failures_path, parse_shard, precompute
from pipeline.layout import LayoutError
from pipeline.mouths import read_mouth
from tests.pipeline.fakes import BATCH_FRAMES, FakeFrontEnd, write_mouth, write_mouths
from tests.pipeline.interrupts import heed_interrupts

ROOT = Path(__file__).resolve().parents[2]


def driver(*arguments, wrap=(), **options):
    command = [*wrap, sys.executable, "-m", "tests.pipeline.fakes", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
        **options,
    )


def assert_sound(out, root, front_end=None):
    """Opens with h5py, checksums hold, and every entry is what its source gives now."""
    with h5py.File(out, "r") as file:
        assert "embeddings" in file and "entries" in file
    assert verify(out) == []
    cache, front_end = FeatureCache(out), front_end or FakeFrontEnd()
    for name in cache.ids():
        expected = front_end.embed_clips([read_mouth(root / "mouths" / f"{name}.npz")])[0]
        np.testing.assert_array_equal(cache[name], expected)
    return cache.ids()


def state(summary):
    return summary.done, summary.reused, summary.stale, len(summary.failures)


def test_a_second_run_reuses_everything(tmp_path):
    write_mouths(tmp_path, 30)
    front_end = FakeFrontEnd()
    out = tmp_path / "cache" / "a.h5"
    assert state(precompute(tmp_path, out, front_end, workers=0)) == (30, 0, 0, 0)
    assert all(sum(lengths) <= BATCH_FRAMES for lengths in front_end.batches)
    assert 1 < len(front_end.batches) < 10, "clips share batches"
    before = out.read_bytes()
    assert state(precompute(tmp_path, out, front_end, workers=0)) == (0, 30, 0, 0)
    assert out.read_bytes() == before
    assert len(assert_sound(out, tmp_path)) == 30
    assert sorted(os.listdir(tmp_path)) == ["cache", "mouths"] and os.listdir(tmp_path / "cache") == ["a.h5"]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing_but_the_time(tmp_path, workers):
    write_mouths(tmp_path, 40)
    write_mouth(tmp_path / "mouths" / "long.npz", 99, 3 * BATCH_FRAMES)
    before = multiprocessing.active_children()
    summary = precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd(), workers=workers)
    assert state(summary) == (41, 0, 0, 0) and summary.frames == total_frames(tmp_path)
    assert len(assert_sound(tmp_path / "a.h5", tmp_path)) == 41
    assert multiprocessing.active_children() == before


def total_frames(root):
    return sum(len(read_mouth(path)) for path in (root / "mouths").glob("*.npz"))


def test_killed_at_random_instants_it_loses_one_batch_at_most(tmp_path):
    """25 kills by SIGKILL, from the making of the file to its completion; each time the file must be sound.

    More of them where a busy machine needs them to get to the end.
    """
    count, kills, completed, chance = 60, 0, 0, random.Random(0)
    write_mouths(tmp_path, count)
    out, log = tmp_path / "a.h5", tmp_path / "log"
    log.touch()
    embedded_at_kill = []
    while kills < 25 or (not completed and kills < 100):
        started = len(log.read_text().splitlines())
        before = set(FeatureCache(out).ids()) if out.exists() else set()
        workers = kills % 5 == 4
        run = driver(tmp_path, out, log, "--nap", "0.02", "--workers", int(workers))
        deadline = time.monotonic() + 60
        while len(log.read_text().splitlines()) == started:
            assert run.poll() is None and time.monotonic() < deadline, run.communicate()
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.12) + 0.4 * workers)
        run.kill()
        finished = run.wait() == 0
        run.communicate()
        kills += not finished
        if not out.exists():
            assert not before
            continue
        ids = set(assert_sound(out, tmp_path))
        assert before <= ids, "what was whole stays"
        batches = [
            [int(frames) for frames in line.split()]
            for line in log.read_text().splitlines()[started:]
            if not line.startswith("start")
        ]
        embedded = sum(map(len, batches))
        lost = embedded - len(ids - before)
        assert 0 <= lost <= (len(batches[-1]) if batches else 0), f"{lost} clips to do again after {batches}"
        embedded_at_kill.append(embedded)
        if len(ids) == count:
            completed += 1
            out.unlink()
    assert completed >= 1, "no sequence of runs reached the end"
    assert len(set(embedded_at_kill)) > 4, f"the kills all came at the same place: {embedded_at_kill}"
    assert precompute(tmp_path, out, FakeFrontEnd(), workers=0).failures == []
    assert len(assert_sound(out, tmp_path)) == count
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "log", "mouths"], "no leftovers"


def test_workers_end_with_a_killed_parent(tmp_path):
    write_mouths(tmp_path, 60)
    run = driver(tmp_path, tmp_path / "a.h5", tmp_path / "log", "--nap", "0.3", "--workers", 2)
    children = wait_for(lambda: processes_of(run.pid, at_least=2), run)
    run.kill()
    run.communicate()
    wait_for(lambda: not any(os.path.exists(f"/proc/{child}") for child in children) or None)


def processes_of(parent, at_least):
    """Worker processes of a run; without multiprocessing's resource tracker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                status, command = (entry / "stat").read_text(), (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(status.rsplit(")", 1)[1].split()[1]) == parent and "spawn_main" in command:
                found.append(int(entry.name))
    return found if len(found) >= at_least else None


def wait_for(condition, run=None, seconds=30):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        assert run is None or run.poll() is None, run.communicate()
        time.sleep(0.02)
    return result


@pytest.mark.parametrize("wait_s", [0.0, 0.002, 0.02])
def test_a_worker_that_dies_is_an_error_with_a_remedy(tmp_path, monkeypatch, wait_s):
    """Killed while it sends a message much larger than a pipe holds, or before, or after."""
    write_mouths(tmp_path, 40, lambda _: 200)
    front_end, original = FakeFrontEnd(), FakeFrontEnd().embed_clips

    def embed_then_kill_the_workers(clips):
        time.sleep(wait_s)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        return original(clips)

    monkeypatch.setattr(front_end, "embed_clips", embed_then_kill_the_workers)
    with pytest.raises(ExtractError, match=r"worker died.*--workers"):
        precompute(tmp_path, tmp_path / "a.h5", front_end, workers=2, batch_frames=200)
    assert multiprocessing.active_children() == []
    assert 0 < len(assert_sound(tmp_path / "a.h5", tmp_path)) < 40
    assert state(precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd(), workers=0, batch_frames=200))[
        2:
    ] == (0, 0)
    assert len(assert_sound(tmp_path / "a.h5", tmp_path)) == 40


def test_an_interrupt_keeps_what_is_done_and_leaves_nothing_behind(tmp_path):
    write_mouths(tmp_path, 60)
    log = tmp_path / "log"
    run = driver(tmp_path, tmp_path / "a.h5", log, "--nap", "0.1", "--workers", 1, start_new_session=True)
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3, run)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130, (out, err)
    assert "Traceback" not in err
    ids = assert_sound(tmp_path / "a.h5", tmp_path)
    assert 0 < len(ids) < 60
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "log", "mouths"]
    assert state(precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd(), workers=0)) == (
        60 - len(ids),
        len(ids),
        0,
        0,
    )


def test_new_weights_make_everything_stale(tmp_path, caplog):
    write_mouths(tmp_path, 10)
    out = tmp_path / "a.h5"
    precompute(tmp_path, out, FakeFrontEnd("one"), workers=0)
    assert state(precompute(tmp_path, out, FakeFrontEnd("two"), workers=0)) == (10, 0, 10, 0)
    assert "weights_sha256" in caplog.text and "10 entries are stale" in caplog.text
    assert len(assert_sound(out, tmp_path, FakeFrontEnd("two"))) == 10
    assert FeatureCache(out).identity["weights"] == "two.pt"


def test_a_changed_file_is_computed_anew_and_a_touched_one_is_not(tmp_path):
    files = write_mouths(tmp_path, 10)
    out, front_end = tmp_path / "a.h5", FakeFrontEnd()
    precompute(tmp_path, out, front_end, workers=0)
    write_mouth(files[3], 1003, 7)
    os.utime(files[4])
    # Same size and time, other content: only its ctime gives it away.
    stat = files[5].stat()
    content = bytearray(files[5].read_bytes())
    content[10] ^= 1  # the archive's time stamp, which nobody reads
    files[5].write_bytes(content)
    os.utime(files[5], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    del front_end.batches[:]
    assert state(precompute(tmp_path, out, front_end, workers=0)) == (2, 8, 2, 0)
    assert front_end.batches == [[7, 10]]
    assert len(assert_sound(out, tmp_path)) == 10


def test_touching_again_and_again_reads_contents_once_each_time(tmp_path, monkeypatch):
    files = write_mouths(tmp_path, 5)
    out = tmp_path / "a.h5"
    precompute(tmp_path, out, FakeFrontEnd(), workers=0)
    for round_ in range(60):
        for file in files:
            os.utime(file, ns=(round_, round_))
        assert state(precompute(tmp_path, out, FakeFrontEnd(), workers=0)) == (0, 5, 0, 0)
        monkeypatch.setattr(pipeline.extract, "decode", None)  # nothing may be decoded or hashed now
        assert state(precompute(tmp_path, out, FakeFrontEnd(), workers=0)) == (0, 5, 0, 0)
        monkeypatch.undo()
    assert len(assert_sound(out, tmp_path)) == 5
    assert out.stat().st_size < 60_000


def test_verify_looks_at_every_content_and_checksum(tmp_path):
    files = write_mouths(tmp_path, 6)
    out = tmp_path / "a.h5"
    precompute(tmp_path, out, FakeFrontEnd(), workers=0)
    with h5py.File(out, "r+") as file:
        file["embeddings"][0, 0] += np.float16(1)
        entry = file["entries"][3]
    # A content that changed behind its file times, as a restored backup may: the record says it is unchanged.
    write_mouth(files[3], 77, 9)
    with CacheWriter(out, FakeFrontEnd().identity) as writer:
        name = entry["id"].decode()
        stat = files[3].stat()
        known = writer.entries[name].source
        source = type(known)(known.sha256, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        writer.refresh([(name, source)])
    assert state(precompute(tmp_path, out, FakeFrontEnd(), workers=0)) == (0, 6, 0, 0)
    assert state(precompute(tmp_path, out, FakeFrontEnd(), workers=0, verify=True)) == (2, 4, 2, 0)
    assert len(assert_sound(out, tmp_path)) == 6
    assert state(precompute(tmp_path, out, FakeFrontEnd(), workers=0, verify=True)) == (0, 6, 0, 0)


def test_bad_inputs_are_listed_and_the_rest_goes_on(tmp_path):
    write_mouths(tmp_path, 20)
    folder = tmp_path / "mouths"
    whole = (folder / "003.npz").read_bytes()
    (folder / "bad_directory.npz").mkdir()
    (folder / "bad_empty.npz").touch()
    (folder / "bad_truncated.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "bad_link.npz").symlink_to(folder / "nowhere")
    np.savez(folder / "bad_zero.npz", data=np.zeros((0, 96, 96), np.uint8))
    np.savez(folder / "bad_nan.npz", data=np.full((3, 96, 96), np.nan))
    np.savez(folder / "bad_objects.npz", data=np.array([None]))
    np.savez(folder / "bad_keys.npz", a=np.zeros(1), b=np.zeros(1))
    np.savez(folder / "bad_axes.npz", data=np.zeros((96, 96), np.uint8))
    out = tmp_path / "a.h5"
    summary = precompute(tmp_path, out, FakeFrontEnd(), workers=1)
    assert state(summary) == (20, 0, 0, 9)
    rows = list(csv.DictReader(failures_path(out).open()))
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    reasons = {row["id"]: row["reason"] for row in rows}
    assert reasons.keys() == {f"bad_{kind}" for kind in (
        "directory", "empty", "truncated", "link", "zero", "nan", "objects", "keys", "axes"
    )}  # fmt: skip
    assert all(Path(row["file"]).name == f"{row['id']}.npz" and row["file"] in row["reason"] for row in rows)
    assert "zero frames" in reasons["bad_zero"] and "is a directory" in reasons["bad_directory"]
    assert len(assert_sound(out, tmp_path)) == 20
    for path in folder.glob("bad_*"):
        path.rmdir() if path.is_dir() else path.unlink()
    assert state(precompute(tmp_path, out, FakeFrontEnd(), workers=0)) == (0, 20, 0, 0)
    assert not failures_path(out).exists()


def test_a_file_that_turned_bad_leaves_the_cache(tmp_path):
    files = write_mouths(tmp_path, 4)
    out = tmp_path / "a.h5"
    precompute(tmp_path, out, FakeFrontEnd(), workers=0)
    files[2].write_bytes(b"")
    assert state(precompute(tmp_path, out, FakeFrontEnd(), workers=0)) == (0, 3, 1, 1)
    assert FeatureCache(out).ids() == ["000", "001", "003"], (
        "nobody reads embeddings of a content that is no more"
    )


def test_ids_that_are_no_unicode_are_ids_like_any(tmp_path):
    write_mouths(tmp_path, 1)
    name = os.fsdecode(b"caf\xe9")  # Latin-1 in a file name
    (tmp_path / "mouths" / "000.npz").rename(tmp_path / "mouths" / f"{name}.npz")
    (tmp_path / "mouths" / f"{name}2.npz").touch()
    out = tmp_path / "a.h5"
    assert state(precompute(tmp_path, out, FakeFrontEnd(), workers=0)) == (1, 0, 0, 1)
    assert assert_sound(out, tmp_path) == [name]
    assert b"caf\xe92" in failures_path(out).read_bytes()
    assert state(precompute(tmp_path, out, FakeFrontEnd(), workers=0)) == (0, 1, 0, 1)


def test_embeddings_that_overflow_are_failures(tmp_path, monkeypatch):
    write_mouths(tmp_path, 3)
    front_end = FakeFrontEnd()
    monkeypatch.setattr(
        front_end, "embed_clips", lambda clips: [np.full((len(c), 64), np.inf, "f2") for c in clips]
    )
    summary = precompute(tmp_path, tmp_path / "a.h5", front_end, workers=0)
    assert state(summary) == (0, 0, 0, 3) and "not finite" in summary.failures[0][2]


def test_a_file_that_is_written_meanwhile_is_a_failure(tmp_path, monkeypatch):
    (file,) = write_mouths(tmp_path, 1)

    def read_while_written(path):
        frames = read_mouth(path)
        os.utime(path)
        return frames

    monkeypatch.setattr(pipeline.decode, "read_mouth", read_while_written)
    summary = precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd(), workers=0)
    assert "changed while it was read" in summary.failures[0][2] and summary.failures[0][1] == file


def test_odd_sizes_are_warned_of_but_not_endlessly(tmp_path, caplog):
    (tmp_path / "mouths").mkdir()
    for index in range(12):
        np.savez(tmp_path / "mouths" / f"{index:02d}.npz", data=np.zeros((2, 64, 64), np.uint8))
    assert state(precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd(), workers=1)) == (12, 0, 0, 0)
    assert caplog.text.count("are resized") == 5 and "not shown" in caplog.text


def test_shards_cover_everything_once_and_merge(tmp_path):
    write_mouths(tmp_path, 23)
    outs = []
    for part in (1, 2, 3):
        outs.append(cache_path(tmp_path, tmp_path / "a.h5", tmp_path, "fake", "frontend", (part, 3)))
        summary = precompute(tmp_path, outs[-1], FakeFrontEnd(), workers=0, shard=(part, 3))
        assert summary.total in (7, 8)
    assert [out.name for out in outs] == [f"a.shard-{part}-of-3.h5" for part in (1, 2, 3)]
    assert main(["merge", str(tmp_path / "a.h5"), *map(str, outs)]) == 0
    assert len(assert_sound(tmp_path / "a.h5", tmp_path)) == 23
    assert state(precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd(), workers=0)) == (0, 23, 0, 0)


def test_shards_are_counted_from_one():
    assert parse_shard("1/1") == (1, 1) and parse_shard("3/7") == (3, 7)
    for text in ("0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", ""):
        with pytest.raises(ValueError, match="is not i/n"):
            parse_shard(text)


def test_a_cache_never_lies_in_the_users_data(tmp_path):
    path = cache_path(tmp_path / "saved", None, tmp_path / "course", "net", "tcn", (2, 4))
    assert path == tmp_path / "saved" / "course.net.tcn.shard-2-of-4.h5"
    assert cache_path(tmp_path, None, Path(".."), "net", "frontend", (1, 1)).name != "...net.h5"


def test_a_second_writer_stops_at_once(tmp_path):
    write_mouths(tmp_path, 60)
    out, log = tmp_path / "a.h5", tmp_path / "log"
    first = driver(tmp_path, out, log, "--nap", "0.05")
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 1, first)
    second = driver(tmp_path, out, tmp_path / "log2")
    _, message = second.communicate(timeout=30)
    assert second.returncode == 1
    assert f"is being written by process {first.pid}" in message and "Traceback" not in message
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert len(assert_sound(out, tmp_path)) == 60


def test_a_limit_on_the_file_size_is_a_clear_error(tmp_path):
    write_mouths(tmp_path, 40)
    out, log = tmp_path / "a.h5", tmp_path / "log"
    precompute(tmp_path, out, FakeFrontEnd(), workers=0)
    size = out.stat().st_size
    shutil.copytree(tmp_path / "mouths", tmp_path / "more" / "mouths")
    for index in range(40):
        write_mouth(tmp_path / "more" / "mouths" / f"new{index}.npz", index, 30)
    run = driver(tmp_path / "more", out, log, "--file-limit", size + 10_000)
    _, message = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "the disk is full" in message and str(out) in message and "Traceback" not in message
    assert len(assert_sound(out, tmp_path)) == 40 and out.stat().st_size == size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "log", "more", "mouths"]


def test_a_limit_met_in_the_middle_keeps_what_came_before(tmp_path):
    write_mouths(tmp_path, 60)
    out = tmp_path / "a.h5"
    with CacheWriter(out, FakeFrontEnd().identity) as writer:
        writer.reserve([f"{n:03d}" for n in range(60)], total_frames(tmp_path))
    rows = out.stat().st_size - 128 * total_frames(tmp_path)
    run = driver(tmp_path, out, tmp_path / "log", "--file-limit", rows + 128 * 300)
    _, message = run.communicate(timeout=60)
    assert run.returncode == 1 and "the disk is full" in message, message
    assert 10 < len(assert_sound(out, tmp_path)) < 60
    assert state(precompute(tmp_path, out, FakeFrontEnd(), workers=0))[2:] == (0, 0)
    assert len(assert_sound(out, tmp_path)) == 60


@pytest.mark.parametrize("pages", [1, 3, 6, 24])
def test_a_disk_that_is_really_full_is_a_clear_error(tmp_path, pages):
    """A file system of some pages of its own, in a private mount namespace, filled up to the last of them."""
    write_mouths(tmp_path, 60, lambda _: 30)
    disk, kept = tmp_path / "disk", tmp_path / "kept.h5"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size={4 * pages}k none {disk} || exit 77; "
        f'"$@"; code=$?; cp {disk}/a.h5 {kept}; ls {disk}; exit $code'
    )
    wrap = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    run = driver(tmp_path, disk / "a.h5", tmp_path / "log", wrap=wrap)
    listing, message = run.communicate(timeout=60)
    if run.returncode == 77 or "unshare" in message:
        pytest.skip(f"no private file system here: {message.strip()}")
    assert run.returncode == 1 and "the disk is full (No space left" in message, message
    assert "Traceback" not in message
    assert listing.split() in ([], ["a.h5"])
    if kept.exists():
        assert len(assert_sound(kept, tmp_path)) < 60
    assert kept.exists() and len(FeatureCache(kept)) > 2 if pages > 20 else True


def test_a_file_that_is_no_cache_is_left_alone(tmp_path):
    write_mouths(tmp_path, 2)
    (tmp_path / "notes.h5").write_text("my notes")
    with pytest.raises(CacheError, match="cannot be read as a cache"):
        precompute(tmp_path, tmp_path / "notes.h5", FakeFrontEnd(), workers=0)
    assert (tmp_path / "notes.h5").read_text() == "my notes"


def test_a_directory_without_mouths_says_what_is_expected(tmp_path):
    with pytest.raises(LayoutError, match=r"expected mouths/<id>\.npz"):
        precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd())


def test_valid_entries_cost_well_under_a_millisecond_each(tmp_path):
    write_mouths(tmp_path, 400, lambda _: 1)
    precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd(), workers=0)
    summary = precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd(), workers=4)
    assert summary.reused == 400
    assert summary.planning_s / 400 < 1e-3, f"{1e6 * summary.planning_s / 400:.0f} us per clip"


def test_growing_past_the_estimate_loses_nothing(tmp_path, monkeypatch):
    """The frames of a few files stand for all; a wrong estimate only costs a copy of the file."""
    monkeypatch.setattr(pipeline.extract, "_expected_frames", lambda tasks: 1.0)
    write_mouths(tmp_path, 50)
    assert state(precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd(), workers=0)) == (50, 0, 0, 0)
    assert len(assert_sound(tmp_path / "a.h5", tmp_path)) == 50


def test_the_open_file_limit_is_no_problem(tmp_path):
    write_mouths(tmp_path, 100, lambda _: 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        assert state(precompute(tmp_path, tmp_path / "a.h5", FakeFrontEnd(), workers=0)) == (100, 0, 0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

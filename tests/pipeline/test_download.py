"""The downloader against a real HTTP server on this machine."""

import hashlib
import http.server
import socket
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from pipeline import download as downloader
from pipeline.download import DownloadError, download, main
from pipeline.lipreading import NETWORKS, build

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Remote:
    """What the server hands out, how it misbehaves, and what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"one"'
    content_type: str = "application/octet-stream"
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)  # answers to give before behaving
    cuts: list[int] = field(default_factory=list)  # bytes after which to break off, per transfer
    asked: list[str | None] = field(default_factory=list)  # Range header of every request


@pytest.fixture
def remote():
    state = Remote()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            same = self.headers.get("If-Range") in (None, state.etag)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges and same else 0
            if start >= len(state.content) > 0:
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", state.content_type)
            self.send_header("Content-Length", str(len(body)))
            if start:
                end = len(state.content)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/models/weights.pth"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def get(remote, target, **options):
    return download(remote.url, target, **{"backoff_s": 0.0, "attempts": 3, "timeout_s": 5.0, **options})


def test_whole_file_arrives_under_its_name_with_its_digest(remote, tmp_path):
    target = tmp_path / "deep" / "weights.pth"
    assert get(remote, target, sha256=DIGEST.upper()) == DIGEST
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["weights.pth"]


def test_a_link_may_have_letters_beyond_ascii(remote, tmp_path):
    remote.url = remote.url.replace("weights", "модель")
    get(remote, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == remote.content


def test_broken_transfer_is_kept_and_continued_by_the_next_call(remote, tmp_path):
    target = tmp_path / "weights.pth"
    remote.cuts = [100_000]
    with pytest.raises(DownloadError, match=r"broke off after 100,000 of 300,000 bytes.*kept in .*\.part"):
        get(remote, target, attempts=1)
    assert not target.exists()
    assert get(remote, target) == DIGEST
    assert remote.asked == [None, "bytes=100000-"]
    assert target.read_bytes() == CONTENT


def test_broken_transfers_are_retried_within_a_call_as_long_as_bytes_come(remote, tmp_path):
    remote.cuts = [50_000] * 5  # more breaks than attempts, but each brings something
    assert get(remote, tmp_path / "weights.pth", attempts=2) == DIGEST
    assert remote.asked[-1] == "bytes=250000-"


def test_server_that_ignores_ranges_makes_it_start_over(remote, tmp_path):
    remote.ranges, remote.cuts = False, [100_000]
    target = tmp_path / "weights.pth"
    assert get(remote, target) == DIGEST
    assert remote.asked == [None, "bytes=100000-"]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("etags", [('"one"', '"two"'), ('W/"one"', 'W/"two"')], ids=["strong", "weak"])
def test_changed_remote_file_is_not_glued_to_the_old_part(remote, tmp_path, etags):
    target = tmp_path / "weights.pth"
    remote.etag, remote.cuts = etags[0], [100_000]
    with pytest.raises(DownloadError):
        get(remote, target, attempts=1)
    remote.etag, remote.content = etags[1], CONTENT[::-1]
    get(remote, target)
    assert target.read_bytes() == CONTENT[::-1]


def test_remote_file_that_shrank_below_the_part_is_fetched_anew(remote, tmp_path):
    target = tmp_path / "weights.pth"
    remote.etag, remote.cuts = None, [100_000]
    with pytest.raises(DownloadError):
        get(remote, target, attempts=1)
    remote.content = CONTENT[:60_000]
    get(remote, target)
    assert target.read_bytes() == CONTENT[:60_000]


def test_part_of_another_link_is_not_continued(remote, tmp_path):
    target = tmp_path / "weights.pth"
    remote.cuts = [100_000]
    with pytest.raises(DownloadError):
        get(remote, target, attempts=1)
    download(remote.url + "?other", target, backoff_s=0.0)
    assert remote.asked == [None, None]


def test_part_without_a_note_is_not_trusted(remote, tmp_path):
    target = tmp_path / "weights.pth"
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1000)
    assert get(remote, target) == DIGEST
    assert remote.asked == [None]


def test_wrong_checksum_leaves_nothing_behind(remote, tmp_path):
    with pytest.raises(DownloadError, match=f"SHA-256 is {DIGEST}, expected {'0' * 64}"):
        get(remote, tmp_path / "weights.pth", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_missing_page_is_named_at_once_with_the_page_to_look_at(remote, tmp_path):
    remote.statuses = [404, 404]
    with pytest.raises(DownloadError, match=r"404 Not Found.*github.com/mpc001.*--url"):
        get(remote, tmp_path / "weights.pth")
    assert len(remote.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_passing_server_trouble_is_retried(remote, tmp_path):
    remote.statuses = [503, 500]
    assert get(remote, tmp_path / "weights.pth") == DIGEST


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("text/html; charset=utf-8", b"Sign in"),
        ("application/octet-stream", b"\n <!DOCTYPE html><html>Sign in"),
    ],
    ids=["by type", "by leading bytes"],
)
def test_web_page_is_refused(remote, tmp_path, content_type, content):
    remote.content_type, remote.content = content_type, content
    with pytest.raises(DownloadError, match="is a web page, not a file"):
        get(remote, tmp_path / "weights.pth")
    assert list(tmp_path.iterdir()) == []


def test_empty_file_is_refused(remote, tmp_path):
    remote.content = b""
    with pytest.raises(DownloadError, match="empty file"):
        get(remote, tmp_path / "weights.pth")
    assert list(tmp_path.iterdir()) == []


def test_dead_host_and_silent_host_are_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        port = silent.getsockname()[1]
        with pytest.raises(DownloadError, match=r"no answer within 0.2 s|timed out"):
            download(f"http://127.0.0.1:{port}/f", tmp_path / "f", attempts=1, timeout_s=0.2)
    with pytest.raises(DownloadError, match=r"connection failed .*refused.*2 attempts"):
        download(f"http://127.0.0.1:{port}/f", tmp_path / "f", attempts=2, backoff_s=0.0)
    with pytest.raises(DownloadError, match="only http and https"):
        download("file:///etc/hostname", tmp_path / "f")


def test_command_checks_that_the_file_loads_in_the_named_network(remote, tmp_path, capsys):
    checkpoint = tmp_path / "made.pth"
    torch.save({"model_state_dict": build("lrw_snv05x_tcn1x").state_dict()}, checkpoint)
    remote.content = checkpoint.read_bytes()
    digest = hashlib.sha256(remote.content).hexdigest()
    out = tmp_path / "weights"

    assert main(["lrw_snv1x_tcn1x", "--url", remote.url, "--out", str(out)]) == 1
    assert "They fit lrw_snv05x_tcn1x" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["lrw_snv1x_tcn1x.pth.rejected"]

    command = ["lrw_snv05x_tcn1x", "--url", remote.url, "--out", str(out), "--sha256", digest]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert digest in said
    assert "loads as lrw_snv05x_tcn1x" in said
    assert "non-commercial" in said

    num_requests = len(remote.asked)
    assert main(command) == 0
    assert "is there already" in capsys.readouterr().out
    assert len(remote.asked) == num_requests

    target = out / "lrw_snv05x_tcn1x.pth"
    target.write_bytes(target.read_bytes()[:-1000])
    assert main(command[:-2]) == 1
    assert "cut off" in capsys.readouterr().err


def test_command_without_a_link_says_where_to_look(tmp_path, capsys):
    assert main(["lrw_resnet18_mstcn", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "no direct link is known" in said
    assert downloader.PAGE in said
    assert "resnet18_mstcn_video" in said


def test_command_refuses_wrong_usage(capsys):
    for arguments in ([], ["lrw_nothing"], ["lrw_snv1x_tcn1x", "--sha256", "123"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "64 hexadecimal digits" in capsys.readouterr().err


def test_table_covers_every_network(capsys):
    readers = {name for name, config in NETWORKS.items() if config.words}
    assert set(downloader.PUBLISHED) == readers
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in readers)

"""Fetches weights files: resumable, checked, and honest about what is not known.

    python -m pipeline.download --list
    python -m pipeline.download lrw_resnet18_dctcn --url URL

The authors publish their models through share pages whose links change, so no direct link is kept here: the table
names the page that lists them, and ``--url`` takes the link found there. Weights of this project come with a clone and
are known by their hashes.
"""

import argparse
import hashlib
import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.default_weights import SHIPPED

PAGE = "https://github.com/mpc001/Lipreading_using_Temporal_Convolutional_Networks"
LICENCE_NOTE = (
    "Licence: these weights were trained on LRW (BBC). Their authors allow non-commercial use, for research "
    "and comparison, only; read the LICENSE on their page before you use or pass them on."
)
DEFAULT_FOLDER = Path("saved/weights")
_CHUNK_BYTES = 1 << 16
_URL_CHARACTERS = (
    "%/:=&?~#+!$,;'@()*[]"  # beside letters and digits; others are quoted, what is quoted stays so
)
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    ConnectionError,
    TimeoutError,
)
_SUFFIXES = (".pth.tar", ".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Published:
    """A row of the authors' model table.

    Attributes:
        row: what the table calls the model.
        size_mb: the file's size by that table.
        accuracy_percent: on LRW's test words, by that table.
    """

    row: str
    size_mb: int
    accuracy_percent: float


PUBLISHED = {
    "lrw_resnet18_dctcn": Published("resnet18_dctcn_video", 201, 89.6),
    "lrw_resnet18_dctcn_boundary": Published("resnet18_dctcn_video_boundary", 201, 92.1),
    "lrw_resnet18_mstcn": Published("resnet18_mstcn_video", 139, 88.9),
    "lrw_snv1x_tcn1x": Published("snv1x_tcn1x", 15, 82.7),
    "lrw_snv1x_tcn2x": Published("snv1x_tcn2x", 35, 84.6),
    "lrw_snv1x_dsmstcn3x": Published("snv1x_dsmstcn3x", 36, 85.3),
    "lrw_snv05x_tcn1x": Published("snv05x_tcn1x", 11, 79.9),
    "lrw_snv05x_tcn2x": Published("snv05x_tcn2x", 32, 82.5),
}


@dataclass(frozen=True)
class Ours:
    """Weights of this project, which lie in `weights/` of a clone.

    Attributes:
        file: its name.
        what: in a few words.
        sha256: of the file.
    """

    file: str
    what: str
    sha256: str


OURS = {
    "lips": Ours(
        "lips.safetensors",
        "lip encoder sync_light",
        "f0011a43ad62ebfceb2507337b5a2b56b18cc3c2cb2bd41da663cb7773278068",
    ),
    "sound": Ours(
        "sound.safetensors",
        "its other half, for voices",
        "883b7f31bf46a6a44da9e3aa9030cdb19eb73db9a149a76de874f00da28adc08",
    ),
    "small": Ours(
        "small.safetensors",
        "separator on sync_light",
        "cc9c2ce51768b281a0ec43af944d819a68f1b03330e3946f3e497282605c4f6b",
    ),
}


class DownloadError(ValueError):
    """A file that could not be fetched, or that is not what was asked for."""


class _Interrupted(Exception):
    """The connection failed in a way that another attempt may cure."""


@dataclass
class _Resume:
    """What is remembered about a partial file, so that only the same remote file is continued."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    total_bytes: int | None = None

    @property
    def validator(self) -> str | None:
        """For If-Range, which allows strong validators only."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


def download(
    url: str,
    target: str | Path,
    *,
    sha256: str | None = None,
    network: str | None = None,
    attempts: int = 5,
    timeout_s: float = 30.0,
    backoff_s: float = 1.0,
) -> str:
    """Fetches `url` to `target`, which appears only when the file is whole and has passed its checks.

    Bytes gather in ``<target>.part``; a later call continues there if the remote file is still the same.

    Args:
        url: http or https.
        sha256: expected digest in hex; unchecked when left out.
        network: a lip-reading network that the file must load into; unchecked when left out.
        attempts: how often in a row the connection may fail without a new byte.
        timeout_s: of a silent connection.
        backoff_s: pause before the second attempt; doubles with each further one.

    Returns:
        The file's SHA-256 in hex.

    Raises:
        DownloadError: no such page, a dead host, a web page instead of a file, a wrong checksum, a file
            that does not load; the message says what to do.
    """
    target = Path(target)
    url = urllib.parse.quote(url, safe=_URL_CHARACTERS)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: only http and https links can be fetched")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _fetch(url, target, attempts=attempts, timeout_s=timeout_s, backoff_s=backoff_s)
        digest = _digest(part)
    except OSError as error:  # the network's failures have become DownloadErrors by now
        raise DownloadError(f"{target}: cannot be written ({error.strerror})") from error
    if sha256 is not None and digest != sha256.lower():
        _forget(target)
        raise DownloadError(
            f"{url}: SHA-256 is {digest}, expected {sha256.lower()}; the file was deleted. Either the transfer "
            "was damaged (try again) or the remote file is another one (look at the page that names it)"
        )
    if network is not None:
        _check_loads(network, part, target, url)
    os.replace(part, target)
    _forget(target)
    return digest


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _note(target: Path) -> Path:
    return target.with_name(target.name + ".part.json")


def _forget(target: Path) -> None:
    _part(target).unlink(missing_ok=True)
    _note(target).unlink(missing_ok=True)


def _fetch(url: str, target: Path, *, attempts: int, timeout_s: float, backoff_s: float) -> Path:
    """Transfers until the partial file is whole, however often the connection breaks in between."""
    part, failures = _part(target), 0
    while True:
        size = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, target, timeout_s)
            return part
        except _Interrupted as error:
            grown = part.exists() and part.stat().st_size > size
            failures = 1 if grown else failures + 1
            if failures >= attempts:
                have = part.stat().st_size if part.exists() else 0
                kept = f"; {have:,} bytes are kept in {part}, the next call continues there" if have else ""
                raise DownloadError(
                    f"{url}: {error} ({failures} attempts in a row); check the link and the connection{kept}"
                ) from error
            tqdm.write(f"{url}: {error}; trying again", file=sys.stderr)
            time.sleep(backoff_s * 2 ** (failures - 1))


def _transfer(url: str, target: Path, timeout_s: float) -> None:
    """One connection: continues or starts the partial file; returns when it is whole."""
    part = _part(target)
    resume = _load_note(target, url)
    start = part.stat().st_size if resume else 0
    if resume and start == resume.total_bytes:
        return
    headers = {"User-Agent": "lip-cued-separation", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if resume.validator:
            headers["If-Range"] = resume.validator
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout_s
        ) as response:
            _receive(response, url, target, resume, start)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # the remote file is shorter than what we have: another file
            _forget(target)
            raise _Interrupted("the remote file has changed, starting over") from error
        if error.code >= 500 or error.code in (408, 429):
            raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
        raise DownloadError(
            f"{url}: the server answers {error.code} {error.reason}. The link is dead or closed; look for a "
            f"current one at {PAGE} and pass it with --url"
        ) from error
    except _NETWORK_ERRORS as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            reason = f"no answer within {timeout_s:g} s"
        raise _Interrupted(f"the connection failed ({reason})") from error


def _receive(
    response: http.client.HTTPResponse, url: str, target: Path, resume: _Resume | None, start: int
) -> None:
    headers = response.headers
    told = _Resume(url, headers.get("ETag"), headers.get("Last-Modified"))
    length = int(headers["Content-Length"]) if headers.get("Content-Length", "").isdigit() else None
    if response.status == 206 and resume is not None:
        first, told.total_bytes = _content_range(headers.get("Content-Range", ""))
        if first != start or _differ(resume, told):
            _forget(target)
            raise _Interrupted("the remote file has changed, starting over")
        told.total_bytes = told.total_bytes or resume.total_bytes
        mode = "ab"
    else:  # a whole file: the server knows no ranges, or If-Range found another file
        told.total_bytes, start, mode = length, 0, "wb"
    first_chunk = response.read(_CHUNK_BYTES)
    if not start:
        _refuse_web_page(url, headers.get_content_type(), first_chunk)
    bar = tqdm(
        total=told.total_bytes, initial=start, unit="B", unit_scale=True, desc=target.name, disable=None
    )
    have = start
    with bar, _part(target).open(mode) as file:
        # Only now, with foreign bytes cut off, may the note speak of this remote file.
        _note(target).write_text(json.dumps(asdict(told)))
        chunk = first_chunk
        while chunk:
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
            chunk = response.read(_CHUNK_BYTES)
    if told.total_bytes is not None and have < told.total_bytes:
        raise _Interrupted(f"the connection broke off after {have:,} of {told.total_bytes:,} bytes")
    if told.total_bytes is not None and have > told.total_bytes:
        _forget(target)
        raise _Interrupted(f"the server sent {have:,} bytes but announced {told.total_bytes:,}")
    if not have:
        _forget(target)
        raise DownloadError(f"{url}: the server sent an empty file")


def _load_note(target: Path, url: str) -> _Resume | None:
    """What is known about the partial file; None when there is none, or none that this link continues."""
    try:
        note = _Resume(**json.loads(_note(target).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # without a readable note a partial file has no known origin
    usable = note.url == url and _part(target).exists() and _part(target).stat().st_size > 0
    return note if usable else None


def _content_range(value: str) -> tuple[int | None, int | None]:
    """``bytes 100-199/200`` -> (100, 200); None for what is not told."""
    span, _, total = value.removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    return (int(first) if first.isdigit() else None, int(total) if total.isdigit() else None)


def _differ(old: _Resume, new: _Resume) -> bool:
    """Whether any property that both know differs."""
    pairs = (
        (old.etag, new.etag),
        (old.last_modified, new.last_modified),
        (old.total_bytes, new.total_bytes),
    )
    return any(a is not None and b is not None and a != b for a, b in pairs)


def _refuse_web_page(url: str, content_type: str, head: bytes) -> None:
    from pipeline.lipreading.weights import looks_like_web_page

    if content_type in ("text/html", "application/xhtml+xml") or looks_like_web_page(head):
        raise DownloadError(
            f"{url}: is a web page, not a file. Share pages (Google Drive, Baidu, bit.ly) show a page first: "
            "download the file in a browser and pass it with --weights, or give the direct link with --url"
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_loads(network: str, path: Path, target: Path, url: str) -> None:
    from pipeline.lipreading.weights import WeightsError, load_network

    try:
        load_network(network, path)
    except WeightsError as error:
        # Kept under another name: it may be the right file for another network, and fetching it was work.
        rejected = target.with_name(target.name + ".rejected")
        os.replace(path, rejected)
        _forget(target)
        raise DownloadError(f"{url}: {error}\nThe file is kept as {rejected}") from error


def _target(folder: Path, name: str | None, url: str) -> Path:
    remote = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    suffix = next((suffix for suffix in _SUFFIXES if remote.endswith(suffix)), ".pth")
    if name is not None:
        return folder / f"{name}{suffix}"
    if not remote:
        raise DownloadError(f"{url}: the link names no file; say which network it is for")
    return folder / remote


def _print_ours() -> None:
    print(f"{'ours':28s} {'file':30s} {'SHA-256':16s}  what")
    for name, weights in OURS.items():
        there = (
            "" if (SHIPPED.parent / weights.file).is_file() else ", not in this clone: fetch it with --url"
        )
        print(f"{name:28s} {weights.file:30s} {weights.sha256[:16]}  {weights.what}{there}")
    print()


def _print_table() -> None:
    _print_ours()
    print(f"{'network':28s} {'row in the table':30s} {'size':>7s} {'LRW accuracy':>13s}")
    for name, row in PUBLISHED.items():
        print(f"{name:28s} {row.row:30s} {row.size_mb:4d} MB {row.accuracy_percent:11.1f} %")
    print(f"\nThe table with the links: {PAGE}\nPass a link with --url.\n{LICENCE_NOTE}")


def _get(name: str | None, args: argparse.Namespace) -> None:
    if name in OURS:
        _get_ours(name, args)
        return
    if args.url is None:
        row = PUBLISHED[name]
        raise DownloadError(
            f"{name}: no direct link is known for certain. Open {PAGE}, find {row.row!r} ({row.size_mb} MB) in its "
            f"model table, and pass its link: python -m pipeline.download {name} --url LINK\n"
            "(a file that was downloaded by hand needs no download here: pass it with --weights)"
        )
    target = _target(args.out, name, args.url)
    if target.exists():
        digest = _check_existing(target, name, args.sha256)
    else:
        digest = download(args.url, target, sha256=args.sha256, network=name)
    state = f"loads as {name}" if name else "not checked against a network, none was named"
    known = "as expected" if args.sha256 else "compare it with another source, none was given with --sha256"
    print(f"{target}: {state}\nSHA-256 {digest} ({known})")


def _get_ours(name: str, args: argparse.Namespace) -> None:
    """Weights of this project: those of the clone are checked, others are fetched and must have the known hash."""
    weights = OURS[name]
    target = SHIPPED.parent / weights.file
    if target.exists():
        _check_existing(target, None, weights.sha256)
    elif args.url is None:
        raise DownloadError(
            f"{name}: weights/{weights.file} is not in this clone; get it from where the clone came from, or pass a "
            f"link to it: python -m pipeline.download {name} --url LINK"
        )
    else:
        download(args.url, target, sha256=weights.sha256)
    print(f"{target}: {weights.what}\nSHA-256 {weights.sha256} (as expected)")


def _check_existing(target: Path, name: str | None, sha256: str | None) -> str:
    from pipeline.lipreading.weights import WeightsError, load_network

    print(f"{target}: is there already, nothing is fetched")
    digest = _digest(target)
    if sha256 is not None and digest != sha256.lower():
        raise DownloadError(
            f"{target}: SHA-256 is {digest}, expected {sha256}; move the file away to fetch it"
        )
    if name is not None:
        try:
            load_network(name, target)
        except WeightsError as error:
            raise DownloadError(f"{error}\nMove the file away to fetch it again") from error
    return digest


def main(argv: list[str] | None = None) -> int:
    """Runs the command; exit codes: 0 all there, 1 something could not be had, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.download", description="Fetch weights of the lip-reading networks."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks, see --list")
    parser.add_argument("--list", action="store_true", help="show the published weights and where they are")
    parser.add_argument("--url", help="direct link to the one file")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--sha256", metavar="HEX", help="the one file's expected SHA-256")
    args = parser.parse_args(argv)
    if args.list:
        _print_table()
        return 0
    known = [*PUBLISHED, *OURS]
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"unknown network {', '.join(unknown)}; known are: {', '.join(known)}")
    if not args.names and not args.url:
        parser.error("name a network, or give --url; --list shows what there is")
    if len(args.names) > 1 and (args.url or args.sha256):
        parser.error("--url and --sha256 are for one file; name one network at a time")
    if args.sha256 and (len(args.sha256) != 64 or set(args.sha256.lower()) - set("0123456789abcdef")):
        parser.error(f"--sha256 {args.sha256}: a SHA-256 has 64 hexadecimal digits")
    if not set(args.names) <= set(OURS) or not args.names:
        print(LICENCE_NOTE)
    failed = 0
    for name in args.names or [None]:
        try:
            _get(name, args)
        except DownloadError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            failed = 1
        except KeyboardInterrupt:
            print(f"\n{parser.prog}: stopped; the same command continues the transfer", file=sys.stderr)
            return 130
    return failed


if __name__ == "__main__":
    sys.exit(main())

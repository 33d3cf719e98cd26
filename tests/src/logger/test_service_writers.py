"""W&B and Comet writers, run offline for real and read back from what their clients left on disk."""

import csv
import io
import json
import logging
import socket
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread

from src.logger import CometMLWriter, WandBWriter
from src.logger.base_writer import WriterError, choose_mode
from src.logger.wandb import has_api_key

CONFIG = {"model": {"width": 8}, "lr": 1e-3}
BASE_URL = "https://wandb.example.org"


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """A user without any account: no keys, an empty home, nobody to answer a prompt, no way out of this machine."""
    home = tmp_path / "home"
    home.mkdir()
    for name in (
        "HOME",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
        "WANDB_CONFIG_DIR",
        "COMET_CONFIG",
    ):
        monkeypatch.setenv(name, str(home))
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_BASE_URL",
        "NETRC",
        "COMET_API_KEY",
        "COMET_EXPERIMENT_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for something"))
    # The sockets of this process; the services' own processes get a proxy where nobody listens.
    connect = socket.socket.connect

    def local_connect(sock, address):
        if sock.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            pytest.fail(f"network: {address}")
        return connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect", local_connect)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return home


def log_everything(writer, save_dir: Path) -> None:
    writer.set_step(10, "train")
    writer.add_scalar("loss", -1.5)
    writer.add_scalar("grad_norm", torch.tensor(2.5))
    writer.set_step(10, "val")
    writer.add_scalars("si_snr", {"s1": 4.25, "s2": 0.5})
    writer.add_image("spectrogram", np.full((8, 8, 3), 200, dtype=np.uint8))
    writer.add_audio("estimate", 0.25 * torch.ones(1, 1600), sample_rate=16_000)
    writer.add_text("note", "hello")
    writer.add_histogram("weights", torch.tensor([0.0, 1.0, float("nan")]), num_bins=4)
    writer.add_table("scores", [{"utt_id": "a_b", "si_snr": 1.5}])
    checkpoint = save_dir / "model_best.pth"
    checkpoint.write_bytes(b"weights")
    writer.add_checkpoint(checkpoint, save_dir)
    writer.set_step(20, "train")
    writer.add_scalar("loss", -2.5)
    writer.finish()
    writer.add_scalar("loss", 0.0)  # after the end: lost, but no error


def read_wandb_records(run_dir: Path) -> list:
    """All records of a finished run. W&B's own process may still be writing when ``finish`` returns."""
    deadline = time.monotonic() + 20
    while True:
        records = parse_wandb_log(run_dir)
        if records and records[-1].HasField("exit"):
            return records
        assert time.monotonic() < deadline, f"no end of the run in {len(records)} records"
        time.sleep(0.05)


def parse_wandb_log(run_dir: Path) -> list:
    """The records of a LevelDB log: blocks of 32 KiB; chunks of crc32, length, type (1 whole; 2, 3.., 4 in parts)."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = run_dir.glob("*.wandb")
    data = path.read_bytes()
    records, parts, position, block = [], b"", len(b":W&B") + 3, 32768
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(parts))
            parts = b""
    return records


def items_of(history) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}


def test_wandb_offline_run_reads_back(no_account, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save_dir = tmp_path / "run"
    writer = WandBWriter(logging.getLogger("run"), CONFIG, "project", "first", save_dir=save_dir)
    log_everything(writer, save_dir)

    (run_dir,) = (save_dir / "wandb").glob("offline-run-*")
    assert [message for message in caplog.messages if f"wandb sync {run_dir}" in message]
    records = read_wandb_records(run_dir)
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.display_name, run.run_id) == ("project", "first", writer.run_id)
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (config["model"], config["lr"]) == ({"width": 8}, 1e-3)
    rows = [items_of(record.history) for record in records if record.HasField("history")]
    assert len(rows) == 2
    first, second = rows
    assert {key: first[key] for key in ("global_step", "loss_train", "grad_norm_train")} == {
        "global_step": 10,
        "loss_train": -1.5,
        "grad_norm_train": 2.5,
    }
    assert (first["si_snr/s1_val"], first["si_snr/s2_val"]) == (4.25, 0.5)
    assert first["weights_val/values"] == [1, 0, 0, 1]
    assert (second["global_step"], second["loss_train"]) == (20, -2.5)
    samples, rate_hz = soundfile.read(run_dir / "files" / first["audio/estimate_val/path"])
    assert rate_hz == 16_000
    np.testing.assert_allclose(samples, 0.25, atol=1e-4)
    table = json.loads((run_dir / "files" / first["scores_val/path"]).read_text())
    assert (table["columns"], table["data"]) == (["utt_id", "si_snr"], [["a_b", 1.5]])
    for media in ("image/spectrogram_val", "note_val"):
        assert (run_dir / "files" / first[f"{media}/path"]).stat().st_size > 0
    assert (run_dir / "files" / "model_best.pth").read_bytes() == b"weights"


def test_wandb_resumed_run_keeps_its_id_and_what_it_logs_again(no_account, tmp_path):
    for last_step in (30, 20):  # the second run resumes from a checkpoint before the first one's end
        writer = WandBWriter(None, CONFIG, "project", save_dir=tmp_path)
        writer.set_step(last_step, "train")
        writer.add_scalar("loss", float(last_step))
        writer.finish()
    runs = [read_wandb_records(path) for path in sorted((tmp_path / "wandb").glob("offline-run-*"))]
    assert len(runs) == 2
    assert len({record.run.run_id for records in runs for record in records if record.HasField("run")}) == 1
    rows = [items_of(record.history) for record in runs[1] if record.HasField("history")]
    assert [(row["global_step"], row["loss_train"]) for row in rows] == [(20, 20.0)]


def file_name(parameters: dict) -> str:
    return parameters.get("fileName") or parameters["figName"]


def test_comet_offline_run_reads_back(no_account, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save_dir = tmp_path / "run"
    writer = CometMLWriter(logging.getLogger("run"), CONFIG, "project", "first", save_dir=save_dir)
    log_everything(writer, save_dir)

    assert [message for message in caplog.messages if f"comet upload {save_dir}" in message]
    (archive,) = (save_dir / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as content:
        messages = [json.loads(line) for line in content.read("messages.json").splitlines()]
        experiment = json.loads(content.read("experiment.json"))
        assets = {
            file_name(message["payload"]["additional_params"]): content.read(message["payload"]["file_path"])
            for message in messages
            if message["type"] == "file_upload"
        }
    assert (experiment["project_name"], experiment["offline_id"]) == ("project", writer.run_id)
    metrics = {
        (message["payload"]["metric"]["metricName"], message["payload"]["metric"]["step"]): message[
            "payload"
        ]["metric"]["metricValue"]
        for message in messages
        if message["type"] == "metric_msg"
    }
    expected = {
        ("loss_train", 10): -1.5,
        ("grad_norm_train", 10): 2.5,
        ("si_snr/s1_val", 10): 4.25,
        ("si_snr/s2_val", 10): 0.5,
        ("loss_train", 20): -2.5,
    }
    assert {key: metrics[key] for key in expected} == expected
    parameters = {
        message["payload"]["param"]["paramName"]: message["payload"]["param"]["paramValue"]
        for message in messages
        if message["type"] == "parameter_msg"
    }
    assert (parameters["model|width"], parameters["lr"]) == (8, 1e-3)
    samples, rate_hz = soundfile.read(io.BytesIO(assets["estimate_val.wav"]))
    assert rate_hz == 16_000
    np.testing.assert_allclose(samples, 0.25, atol=1e-4)
    rows = list(csv.reader(io.StringIO(assets["scores_val_10.csv"].decode())))
    assert rows == [["utt_id", "si_snr"], ["a_b", "1.5"]]
    pixels = imread(io.BytesIO(assets["spectrogram_val"]))
    assert pixels.shape[:2] == (8, 8)
    np.testing.assert_allclose(pixels[..., :3], 200 / 255, atol=1e-3)
    assert assets["model_best.pth"] == b"weights"
    assert b"hello" in assets.values()


def test_comet_refuses_a_run_id_it_cannot_use(no_account, tmp_path):
    with pytest.raises(WriterError, match=r"writer\.run_id='abc'.*32 to 50"):
        CometMLWriter(None, CONFIG, "project", run_id="abc", save_dir=tmp_path)


def test_wandb_goes_offline_when_the_service_does_not_answer(no_account, tmp_path, monkeypatch, caplog):
    import wandb

    init = wandb.init
    modes = []

    def unreachable(**options):
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("no route to host")
        return init(**options)

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    writer = WandBWriter(logging.getLogger("run"), CONFIG, "project", save_dir=tmp_path)
    writer.set_step(1)
    writer.add_scalar("loss", 1.0)
    writer.finish()
    assert modes == ["online", "offline"]
    assert "no route to host" in caplog.text
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_comet_goes_offline_when_the_service_does_not_answer(no_account, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("COMET_API_KEY", "a" * 25)
    monkeypatch.setenv("COMET_URL_OVERRIDE", "http://127.0.0.1:9/clientlib/")
    monkeypatch.setenv("COMET_HTTP_SESSION_RETRY_TOTAL", "0")
    monkeypatch.setenv("COMET_GET_OR_ADD_EXPERIMENT_RETRY_TOTAL", "0")
    writer = CometMLWriter(logging.getLogger("run"), CONFIG, "project", save_dir=tmp_path)
    writer.set_step(1)
    writer.add_scalar("loss", 1.0)
    writer.finish()
    assert "does not answer" in caplog.text
    assert len(list((tmp_path / "comet").glob("*.zip"))) == 1


@pytest.mark.parametrize(
    ("mode", "key", "expected"),
    [
        ("auto", False, "offline"),
        ("auto", True, "online"),
        ("online", True, "online"),
        ("online", False, "offline"),
        ("offline", True, "offline"),
    ],
)
def test_mode_follows_the_key_and_never_demands_one(mode, key, expected, caplog):
    chosen = choose_mode(mode, key_configured=key, service="W&B", logger=logging.getLogger("run"))
    assert chosen == expected
    assert ("no API key" in caplog.text) == (mode == "online" and not key)


def test_wandb_key_is_found_where_the_client_keeps_it(no_account, monkeypatch):
    assert not has_api_key(BASE_URL)
    netrc = no_account / ".netrc"
    netrc.write_text("machine elsewhere.org login user password secret\n")
    assert not has_api_key(BASE_URL)
    netrc.write_text("machine wandb.example.org login user password secret\n")
    assert has_api_key(BASE_URL)
    netrc.write_text("no netrc at all\n")
    assert not has_api_key(BASE_URL)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_api_key(BASE_URL)


def test_disabled_services_touch_nothing(no_account, tmp_path):
    for kind in (WandBWriter, CometMLWriter):
        save_dir = tmp_path / kind.__name__
        save_dir.mkdir()
        writer = kind(None, CONFIG, "project", save_dir=save_dir, mode="disabled")
        log_everything(writer, save_dir)
        assert [path.name for path in save_dir.iterdir()] == ["model_best.pth"]

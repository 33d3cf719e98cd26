"""Metric wrappers (batch in, mean out) and the tracker that averages them."""

import math

import pytest
import torch

from src.metrics import functional as F
from src.metrics.base_metric import BaseMetric, BatchMean
from src.metrics.pesq import PESQMetric
from src.metrics.sdr import SDRMetric
from src.metrics.si_snr import SISNRMetric
from src.metrics.stoi import STOIMetric
from src.metrics.tracker import MetricTracker

ALL = [SISNRMetric, SDRMetric, PESQMetric, STOIMetric]


def batch(seed=0, size=2, num_samples=16_000):
    generator = torch.Generator().manual_seed(seed)
    envelope = torch.clamp(torch.sin(torch.arange(num_samples) / 1000), min=0.01)
    sources = 0.2 * envelope * torch.randn(size, 2, num_samples, generator=generator)
    mix = sources.sum(1)
    leak = 0.2 * sources.flip(1)
    return {"sources": sources, "mix": mix, "estimates": sources + leak}


FUNCTIONS = {SISNRMetric: F.si_snr, SDRMetric: F.sdr, PESQMetric: F.pesq_score, STOIMetric: F.stoi_score}


@pytest.mark.parametrize("metric_class", ALL)
def test_value_is_the_mean_over_items_and_voices(metric_class):
    data = batch()
    expected = [
        float(FUNCTIONS[metric_class](estimate=e.double(), target=t.double()))
        for e, t in zip(data["estimates"].flatten(0, 1), data["sources"].flatten(0, 1))
    ]
    value = metric_class("m")(**data)
    assert value == pytest.approx(sum(expected) / 4, abs=1e-6)
    assert (value.count, value.undefined) == (4, 0)


def test_improvement_is_relative_to_the_mix():
    data = batch()
    plain = SISNRMetric()(**data)
    of_mix = SISNRMetric()(**{**data, "estimates": data["mix"].unsqueeze(1).expand_as(data["sources"])})
    assert SISNRMetric(improvement=True)(**data) == pytest.approx(plain - of_mix, abs=1e-9)
    assert SDRMetric(improvement=True)(**{**data, "estimates": data["mix"].unsqueeze(1).repeat(1, 2, 1)}) == 0
    with pytest.raises(ValueError, match="'mix'"):
        SISNRMetric(improvement=True)(estimates=data["estimates"], sources=data["sources"])


@pytest.mark.parametrize("metric_class", ALL)
def test_padding_has_no_influence(metric_class):
    data = batch()
    lengths = torch.tensor([16_000, 12_000])
    expected = [
        float(metric_class()(**{key: value[[item], ..., :end] for key, value in data.items()}))
        for item, end in enumerate(lengths.tolist())
    ]
    for value in data.values():
        value[1, ..., 12_000:] = 7.0
    assert metric_class()(**data, lengths=lengths) == pytest.approx(sum(expected) / 2, abs=1e-9)


def test_lips_fix_the_order_where_there_are_some_and_only_there():
    data = batch()
    exchanged = {**data, "estimates": data["estimates"].flip(1)}
    metric, right, wrong = SISNRMetric(order="lips"), SISNRMetric()(**data), SISNRMetric()(**exchanged)
    mask = torch.ones(data["sources"].shape[:2], dtype=torch.bool)
    assert metric(**exchanged, visual_mask=mask) == pytest.approx(wrong, abs=1e-9)
    assert metric(**exchanged, visual_mask=~mask) == pytest.approx(right, abs=1e-9)
    assert metric(**exchanged) == pytest.approx(right, abs=1e-9)
    with pytest.raises(ValueError, match="fixed, pit, lips"):
        SISNRMetric(order="sorted")


@pytest.mark.parametrize("metric_class", ALL)
def test_pit_finds_exchanged_voices_and_its_absence_does_not(metric_class):
    data = batch()
    exchanged = {**data, "estimates": data["estimates"].flip(1)}
    assert metric_class(order="pit")(**exchanged) == pytest.approx(metric_class()(**data), abs=1e-9)
    assert metric_class()(**exchanged) < metric_class()(**data) - 0.01


def test_without_truth_there_is_nothing_to_count():
    data = batch()
    value = SISNRMetric()(estimates=data["estimates"], mix=data["mix"])
    assert math.isnan(value) and (value.count, value.undefined) == (0, 0)
    data["sources"][0, 1] = 0
    mask = torch.tensor([[True, False], [True, True]])
    value = SISNRMetric()(**data, sources_mask=mask)
    assert (value.count, value.undefined) == (3, 0)


@pytest.mark.parametrize("metric_class", ALL)
@pytest.mark.parametrize("key", ["sources", "estimates"])
def test_silent_voices_are_counted_and_not_averaged(metric_class, key):
    data = batch()
    expected = metric_class()(**{name: value[[1]] for name, value in data.items()})
    data[key][0] = 0
    value = metric_class()(**data)
    assert value == pytest.approx(expected, abs=1e-9)
    assert (value.count, value.undefined) == (2, 2)


def test_pesq_without_utterances_reaches_the_tracker_as_a_count():
    data = batch()
    burst = torch.zeros(16_000)
    burst[8000:8800] = 0.5 * torch.randn(800, generator=torch.Generator().manual_seed(0))
    for value in data.values():
        value[0] = burst
    tracker = MetricTracker("PESQ", "SI-SNR")
    for metric in (PESQMetric("PESQ"), SISNRMetric("SI-SNR")):
        tracker.update(metric.name, metric(**data), n=2)
    assert tracker.undefined() == {"PESQ": 2}
    alone = PESQMetric()(**{name: value[[1]] for name, value in data.items()})
    assert tracker.result()["PESQ"] == pytest.approx(alone)


def test_metrics_are_abstract_and_named_by_class_unless_told():
    with pytest.raises(TypeError):
        BaseMetric()
    assert SISNRMetric().name == "SISNRMetric"
    assert SISNRMetric("SI-SNRi", improvement=True).name == "SI-SNRi"


def test_tracker_weighs_by_the_number_of_items():
    tracker = MetricTracker("loss")
    tracker.update("loss", 1.0, n=10)
    tracker.update("loss", 4.0, n=5)
    assert tracker.avg("loss") == pytest.approx(2.0)
    # A batch of which half of the voices have a value weighs half.
    tracker.update("metric", BatchMean([3.0, 3.0], undefined=2), n=4)
    tracker.update("metric", BatchMean([6.0, 6.0, 6.0, 6.0]), n=4)
    assert tracker.avg("metric") == pytest.approx(5.0)
    assert tracker.undefined() == {"metric": 2}


def test_tracker_averages_never_hold_nan():
    tracker = MetricTracker("loss", "SDR")
    tracker.update("loss", 2.0)
    tracker.update("loss", math.nan)
    tracker.update("SDR", BatchMean([], undefined=3), n=8)
    assert tracker.result() == {"loss": 2.0}
    assert tracker.undefined() == {"loss": 1, "SDR": 3}
    assert tracker.keys() == ["loss", "SDR"]
    assert math.isnan(tracker.avg("SDR"))
    with pytest.raises(KeyError, match="known: loss, SDR"):
        tracker.avg("SDRi")


def test_tracker_reset_forgets_values_and_keeps_keys():
    tracker = MetricTracker("loss")
    tracker.update("loss", 5.0)
    tracker.update("other", 5.0)
    tracker.reset()
    assert tracker.keys() == ["loss"] and tracker.result() == {}


def test_tracker_writes_each_update_when_it_has_a_writer():
    class Writer:
        def __init__(self):
            self.scalars = []

        def add_scalar(self, name, value):
            self.scalars.append((name, value))

    writer = Writer()
    tracker = MetricTracker("loss", writer=writer)
    tracker.update("loss", 1.0)
    tracker.update("loss", 2.0)
    assert writer.scalars == [("loss", 1.0), ("loss", 2.0)]


def _rank(rank, rendezvous, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    tracker = MetricTracker("loss")
    tracker.update("loss", [1.0, 4.0][rank], n=[10, 5][rank])
    if rank == 1:
        tracker.update("PESQ", BatchMean([2.0], undefined=1), n=2)
    tracker.all_reduce()
    results.put((rank, tracker.result(), tracker.undefined()))
    torch.distributed.destroy_process_group()


def test_tracker_combines_ranks_as_if_they_were_one(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, tmp_path / "rendezvous", results)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    for _, result, undefined in outcomes:
        assert result == {"loss": pytest.approx(2.0), "PESQ": pytest.approx(2.0)}
        assert undefined == {"PESQ": 1}
    tracker = MetricTracker("loss")
    tracker.update("loss", 3.0)
    tracker.all_reduce()
    assert tracker.result() == {"loss": 3.0}

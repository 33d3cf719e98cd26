"""Separation losses: values, order of voices, silence, padding, precision."""

import itertools

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from src.loss.multi_resolution_stft import MultiResolutionSTFT
from src.loss.separation import SeparationLoss
from src.loss.si_snr import NegativeSISNR
from src.loss.snr import NegativeSNR
from src.metrics import functional as F
from src.utils.io_utils import ROOT_PATH


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_loss(order="fixed", max_db=None):
    terms = {"si_snr": NegativeSISNR(max_db=max_db), "stft": MultiResolutionSTFT(window_samples=[64, 128])}
    return SeparationLoss(terms=terms, weights={"si_snr": 1.0, "stft": 2.0}, order=order)


def test_loss_is_the_weighted_sum_of_its_terms():
    sources, estimates = randn(3, 2, 2000), randn(3, 2, 2000, seed=1).requires_grad_()
    result = make_loss()(estimates, sources)
    expected = -F.si_snr(estimate=estimates, target=sources).mean()
    torch.testing.assert_close(result["si_snr_loss"], expected.detach())
    torch.testing.assert_close(result["loss"], (result["si_snr_loss"] + 2 * result["stft_loss"]))
    assert result["loss"].requires_grad and not result["si_snr_loss"].requires_grad


@pytest.mark.parametrize("num_speakers", [2, 3])
def test_pit_equals_brute_force_over_all_orders(num_speakers):
    sources, estimates = randn(5, num_speakers, 800), randn(5, num_speakers, 800, seed=2)
    estimates = (
        estimates + 0.5 * sources[:, torch.randperm(num_speakers, generator=torch.Generator().manual_seed(3))]
    )
    fixed, pit = make_loss("fixed"), make_loss("pit")
    expected = torch.stack(
        [
            torch.stack(
                [
                    fixed(estimates[[item]][:, list(order)], sources[[item]])["loss"]
                    for order in itertools.permutations(range(num_speakers))
                ]
            ).min()
            for item in range(5)
        ]
    ).mean()
    torch.testing.assert_close(pit(estimates, sources)["loss"], expected)
    for order in itertools.permutations(range(num_speakers)):
        torch.testing.assert_close(pit(estimates[:, list(order)], sources)["loss"], expected)


def test_lips_fix_the_order_of_items_with_a_mouth_and_pit_orders_the_others():
    sources = randn(3, 2, 2000)
    right = sources + 0.3 * randn(3, 2, 2000, seed=4)
    exchanged = right.flip(1)
    mask = torch.tensor([[True, True], [False, True], [False, False]])
    loss = make_loss("lips")
    values = [float(loss(exchanged[[i]], sources[[i]], visual_mask=mask[[i]])["loss"]) for i in range(3)]
    fixed = [float(make_loss("fixed")(exchanged[[i]], sources[[i]])["loss"]) for i in range(3)]
    pit = [float(make_loss("pit")(exchanged[[i]], sources[[i]])["loss"]) for i in range(3)]
    assert values == pytest.approx([fixed[0], fixed[1], pit[2]])
    assert pit[2] < fixed[2] - 10
    whole = float(loss(exchanged, sources, visual_mask=mask)["loss"])
    assert whole == pytest.approx(sum(values) / 3, rel=1e-5)
    # Batches of audio-only data hold no mask at all.
    assert float(loss(exchanged, sources)["loss"]) == pytest.approx(
        float(make_loss("pit")(exchanged, sources)["loss"])
    )


def test_gradient_of_permuted_voices_reaches_the_right_estimate():
    sources = randn(1, 2, 1000)
    estimates = (sources.flip(1) + 0.3 * randn(1, 2, 1000, seed=5)).requires_grad_()
    make_loss("pit")(estimates, sources)["loss"].backward()
    other = estimates.detach().flip(1).requires_grad_()
    make_loss("fixed")(other, sources)["loss"].backward()
    torch.testing.assert_close(estimates.grad, other.grad.flip(1))


@pytest.mark.parametrize("level", [0.0, 1e-9, 1e-5])
@pytest.mark.parametrize("term", [NegativeSISNR(), NegativeSNR(), MultiResolutionSTFT()])
@pytest.mark.parametrize("silent", ["sources", "estimates", "both"])
def test_silent_and_near_silent_signals_give_finite_values_and_gradients(level, term, silent):
    sources, estimates = randn(2, 2, 4000), randn(2, 2, 4000, seed=6)
    if silent != "estimates":
        sources[0] *= level
    if silent != "sources":
        estimates[0] *= level
    for order in ("fixed", "pit"):
        leaf = estimates.clone().requires_grad_()
        loss = SeparationLoss(terms={"term": term}, weights={"term": 1.0}, order=order)(leaf, sources)["loss"]
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


def test_voices_without_reference_change_neither_value_nor_gradient_of_the_others():
    sources, estimates = randn(2, 2, 1000), randn(2, 2, 1000, seed=7)
    expected = make_loss()(estimates[1:], sources[1:])["loss"]
    sources[0] = 0
    leaf = estimates.clone().requires_grad_()
    silent = make_loss()(leaf, sources)["loss"]
    torch.testing.assert_close(silent, expected)
    silent.backward()
    assert leaf.grad[0].abs().max() == 0 and leaf.grad[1].abs().max() > 0
    sources[0] = randn(2, 1000, seed=8)
    mask = torch.tensor([[False, False], [True, True]])
    torch.testing.assert_close(make_loss()(estimates, sources, sources_mask=mask)["loss"], expected)
    all_silent = make_loss()(leaf, torch.zeros_like(sources))["loss"]
    all_silent.backward()
    assert all_silent.item() == 0


def test_max_db_stops_the_gradient_of_good_voices_only():
    sources = randn(2, 1, 2000)
    estimates = (
        sources + torch.tensor([0.001, 0.5])[:, None, None] * randn(2, 1, 2000, seed=9)
    ).requires_grad_()
    loss = SeparationLoss(terms={"si_snr": NegativeSISNR(max_db=30)}, weights={"si_snr": 1.0})
    loss(estimates, sources)["loss"].backward()
    assert estimates.grad[0].abs().max() == 0 and estimates.grad[1].abs().max() > 0


@pytest.mark.parametrize(
    "term", [NegativeSISNR(), NegativeSNR(), MultiResolutionSTFT(window_samples=[64, 256])]
)
def test_padding_has_no_influence_when_lengths_are_given(term):
    sources, estimates = randn(2, 2, 1600), randn(2, 2, 1600, seed=10)
    lengths = torch.tensor([1600, 900])
    values = term(estimate=estimates, target=sources, lengths=lengths)
    short = term(estimate=estimates[1:, :, :900], target=sources[1:, :, :900])
    torch.testing.assert_close(values[1:], short)
    sources[1, :, 900:] = 5
    torch.testing.assert_close(term(estimate=estimates, target=sources, lengths=lengths), values)


def test_loss_is_computed_in_float32_under_autocast():
    sources, estimates = randn(2, 2, 2000), randn(2, 2, 2000, seed=11).bfloat16()
    expected = make_loss("pit")(estimates.float(), sources)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = make_loss("pit")(estimates, sources)["loss"]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_stft_term_hand_values():
    """Half the amplitude: every spectral convergence is 1/2 and every log ratio log 2."""
    target = randn(1, 4000) + 1
    term = MultiResolutionSTFT(window_samples=[256])
    assert float(term(estimate=target, target=target)) == pytest.approx(0, abs=1e-3)
    value = float(term(estimate=0.5 * target, target=target))
    assert value == pytest.approx(0.5 + torch.log(torch.tensor(2.0)).item(), abs=1e-4)


def test_user_errors_name_value_and_remedy():
    with pytest.raises(ValueError, match="order='upit': choose one of fixed, pit, lips"):
        make_loss("upit")
    with pytest.raises(ValueError, match=r"terms \['snr'\] and weights \['si_snr'\]"):
        SeparationLoss(terms={"snr": NegativeSNR()}, weights={"si_snr": 1.0})
    with pytest.raises(ValueError, match="multiple of 4"):
        MultiResolutionSTFT(window_samples=[100, 30])
    with pytest.raises(ValueError, match=r"\(1, 2, 100\) and sources \(1, 2, 99\)"):
        make_loss()(torch.ones(1, 2, 100), torch.ones(1, 2, 99))


def test_all_loss_and_metric_configs_instantiate_and_run():
    folder = ROOT_PATH / "src" / "configs"
    losses = sorted(path.stem for path in (folder / "loss").glob("*.yaml"))
    metrics = sorted(path.stem for path in (folder / "metrics").glob("*.yaml"))
    assert losses == ["si_snr", "snr", "snr_stft"] and metrics == ["default", "full", "si_snr_only"]
    sources = randn(1, 2, 16_000)
    batch = {
        "sources": sources,
        "estimates": sources + 0.1 * randn(1, 2, 16_000, seed=12),
        "mix": sources.sum(1),
    }
    with initialize_config_dir(str(folder), version_base=None):
        for name in losses:
            loss = instantiate(compose(overrides=[f"+loss={name}"]).loss)
            assert float(loss(**batch)["loss"]) < 0
        for name in metrics:
            chosen = instantiate(compose(overrides=[f"+metrics={name}", "metrics.order=pit"]).metrics)
            for metric in [*chosen["train"], *chosen["inference"]]:
                assert metric.order == "pit" and metric(**batch) > 0


class TestBeforeMatching:
    """Anonymous voices, and the odds of their order by the lips."""

    sources = randn(3, 2, 2000)
    near = sources + 0.3 * randn(3, 2, 2000, seed=4)
    anonymous = torch.stack([near[0], near[1].flip(0), near[2]])
    mask = torch.tensor([[True, True], [False, True], [False, False]])
    right = torch.tensor([3.0, -3.0, 0.0])

    # Lips (columns) of the first mixture, and the second of the second, under six voices.
    likelihood = torch.zeros(6, 6)
    likelihood[[0, 1, 2], [0, 1, 3]] = 4.0  # those of the second mixture come exchanged

    def loss(self, anonymous=0.5, matching=2.0, contrast=0.1):
        terms, factors = {"si_snr": NegativeSISNR()}, {"anonymous": anonymous, "matching": matching}
        return SeparationLoss(terms, {"si_snr": 1.0}, order="lips", contrast=contrast, **factors)

    def values(self, order, likelihood=likelihood, **factors):
        return self.loss(**factors)(
            self.near,
            self.sources,
            visual_mask=self.mask,
            anonymous=self.anonymous,
            order=order,
            likelihood=likelihood,
        )

    def test_adds_all_to_the_loss(self):
        values = self.values(self.right)
        own = make_value(self.near, self.sources)
        torch.testing.assert_close(values["anonymous_loss"], own)
        expected = torch.nn.functional.softplus(torch.tensor(-3.0))
        torch.testing.assert_close(values["matching_loss"], expected)
        among = -torch.log_softmax(torch.tensor([4.0, 0, 0, 0, 0, 0]), 0)[0]
        torch.testing.assert_close(values["contrast_loss"], among)
        torch.testing.assert_close(values["loss"], own + 0.5 * own + 2 * expected + 0.1 * among)

    def test_a_mouth_is_looked_for_among_all_voices_of_the_batch(self):
        confused = self.likelihood.clone()
        confused[4, 0] = 6  # a voice of the third mixture
        assert (
            self.values(self.right, confused)["contrast_loss"]
            > self.values(self.right)["contrast_loss"] + 0.5
        )
        absent = self.likelihood.clone()
        absent[:, [2, 4, 5]] = torch.randn(6, 3)  # columns of mouths that are not there
        assert self.values(self.right, absent)["contrast_loss"] == self.values(self.right)["contrast_loss"]

    def test_the_order_of_least_loss_is_the_right_one_and_mixtures_without_lips_have_none(self):
        values = {name: self.values(order)["matching_loss"] for name, order in self.orders().items()}
        assert values["right"] < values["unsure"] < values["one wrong"] < values["wrong"]
        assert values["odd without lips"] == values["right"]

    def orders(self):
        return {
            "right": self.right,
            "unsure": torch.zeros(3),
            "one wrong": torch.tensor([3.0, 3.0, 0.0]),
            "wrong": -self.right,
            "odd without lips": torch.tensor([3.0, -3.0, -50.0]),
        }

    def test_gradients_reach_the_order_and_the_anonymous_voices(self):
        order, anonymous = torch.zeros(3, requires_grad=True), self.anonymous.clone().requires_grad_()
        likelihood = self.likelihood.clone().requires_grad_()
        values = self.loss()(
            self.near,
            self.sources,
            visual_mask=self.mask,
            anonymous=anonymous,
            order=order,
            likelihood=likelihood,
        )
        values["loss"].backward()
        assert likelihood.grad[0, 0] < 0 < likelihood.grad[1, 0] and not likelihood.grad[:, 4].any()
        assert order.grad[0] < 0 < order.grad[1] and order.grad[2] == 0
        assert (anonymous.grad.flatten(1).norm(dim=1) > 0).all()

    def test_models_without_anonymous_voices_and_factors_of_zero_change_nothing(self):
        plain = self.loss()(self.near, self.sources, visual_mask=self.mask)
        assert set(plain) == {"loss", "si_snr_loss"}
        off = self.values(self.right, anonymous=0.0, matching=0.0, contrast=0.0)
        assert off["loss"] == plain["loss"]


def make_value(estimates, sources):
    return -F.si_snr(estimate=estimates, target=sources).mean()

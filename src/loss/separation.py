"""The training objective: weighted terms over voices, in fixed or permuted order.

Axes: B batch, S speakers, T samples.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.metrics import functional as F

ORDERS = ("fixed", "pit", "lips")


class SeparationLoss(nn.Module):
    """Weighted sum of per-voice terms, averaged over the voices of a batch.

    Voices whose reference is silent are left out of the mean: no ratio is defined there, and its gradient
    would drown that of the rest. Computed in float32 whatever autocast says.
    """

    def __init__(
        self,
        terms: Mapping[str, nn.Module],
        weights: Mapping[str, float],
        order: str = "fixed",
        anonymous: float = 0.0,
        matching: float = 0.0,
        contrast: float = 0.0,
    ):
        """
        Args:
            terms: named modules, called as ``term(estimate=, target=, lengths=)`` and returning one loss a
                voice.
            weights: factor of each term, the same names.
            order: how estimates and sources are paired.
                "fixed": estimate i is source i, for models that are told the order (by lips).
                "pit": the order of least loss, found per item, for audio-only models.
                "lips": fixed for every item that has at least one mouth, PIT for items that have none.
            anonymous: factor of the same terms, in the order of least loss, for the estimates of voices that are not
                yet matched to lips; of no effect on models that give none.
            matching: factor of the cross-entropy of the order that such a model sees in the lips, that of least loss
                being the right one.
            contrast: factor of the cross-entropy of a mouth's voice among all voices of the batch.

        Raises:
            ValueError: an unknown order, no terms, or names of terms and weights that differ.
        """
        super().__init__()
        if order not in ORDERS:
            raise ValueError(f"loss order={order!r}: choose one of {', '.join(ORDERS)}")
        if not terms or set(terms) != set(weights):
            raise ValueError(
                f"loss terms {sorted(terms)} and weights {sorted(weights)} must name the same terms"
            )
        self.terms = nn.ModuleDict(dict(terms))
        self.weights = dict(weights)
        self.order = order
        self.before_matching = {"anonymous": anonymous, "matching": matching, "contrast": contrast}

    def forward(
        self,
        estimates: Tensor,
        sources: Tensor,
        visual_mask: Tensor | None = None,
        lengths: Tensor | None = None,
        sources_mask: Tensor | None = None,
        anonymous: Tensor | None = None,
        order: Tensor | None = None,
        likelihood: Tensor | None = None,
        **batch,
    ) -> dict[str, Tensor]:
        """
        Shape:
            estimates, sources, anonymous (B, S, T)
            order (B,) log odds that the anonymous voices are in the order of the sources
            likelihood (B S, B S) log likelihood of lips (columns) under anonymous voices (rows)
            visual_mask (B, S) bool, True where the lips of a speaker exist; absent means no lips at all.
            The order "lips" and the losses before the matching read it.
            lengths (B,) valid samples
            sources_mask (B, S) bool, True where a true voice exists; the others are left out like silent ones

        Returns:
            "loss": the scalar to minimise; "<term>_loss": the unweighted terms, detached.

        Raises:
            ValueError: estimates and sources have different shapes.
        """
        if estimates.shape != sources.shape:
            raise ValueError(
                f"estimates {tuple(estimates.shape)} and sources {tuple(sources.shape)} must have one shape (B, S, T)"
            )
        with torch.autocast(estimates.device.type, enabled=False):
            estimates, sources = estimates.float(), sources.float()
            if self.order != "fixed":
                estimates = self._reorder(estimates, sources, visual_mask, lengths)
            active = ~F.is_silent(sources, lengths=lengths)  # (B, S)
            if sources_mask is not None:
                active = active & sources_mask
            losses = self._terms(estimates, sources, active, lengths)
            total = sum(self.weights[name] * loss for name, loss in losses.items())
            if anonymous is not None and any(self.before_matching.values()):
                best = self._order_of_least_loss(anonymous.float(), sources, lengths)
                apart = self._terms(F.permute(anonymous.float(), best), sources, active, lengths)
                extra = {
                    "anonymous": sum(self.weights[name] * loss for name, loss in apart.items()),
                    "matching": _order_entropy(order.float(), best, visual_mask),
                    "contrast": _contrast(likelihood.float(), best, visual_mask),
                }
                total = total + sum(self.before_matching[name] * loss for name, loss in extra.items())
                losses |= extra
        return {"loss": total, **{f"{name}_loss": loss.detach() for name, loss in losses.items()}}

    def _terms(
        self, estimates: Tensor, sources: Tensor, active: Tensor, lengths: Tensor | None
    ) -> dict[str, Tensor]:
        return {
            name: _mean_where(term(estimate=estimates, target=sources, lengths=lengths), active)
            for name, term in self.terms.items()
        }

    @torch.no_grad()
    def _order_of_least_loss(self, estimates: Tensor, sources: Tensor, lengths: Tensor | None) -> Tensor:
        """Shape: estimates, sources (B, S, T) -> (B, S), as `functional.best_permutation`."""
        # (B, S, S, T)
        estimate, target = torch.broadcast_tensors(estimates.unsqueeze(2), sources.unsqueeze(1))
        cost = sum(
            self.weights[name] * term(estimate=estimate, target=target, lengths=lengths)
            for name, term in self.terms.items()
        )
        active = ~F.is_silent(sources, lengths=lengths)
        return F.best_assignment(-torch.where(active.unsqueeze(1), cost, 0.0))

    def _reorder(
        self, estimates: Tensor, sources: Tensor, visual_mask: Tensor | None, lengths: Tensor | None
    ) -> Tensor:
        permuted = torch.ones(len(estimates), dtype=torch.bool, device=estimates.device)
        if self.order == "lips" and visual_mask is not None:
            permuted = ~visual_mask.any(dim=1)
        if not permuted.any():
            return estimates
        order = self._order_of_least_loss(estimates, sources, lengths)
        fixed = torch.arange(estimates.shape[1], device=estimates.device)
        return F.permute(estimates, torch.where(permuted.unsqueeze(1), order, fixed))


def _order_entropy(order: Tensor, best: Tensor, visual_mask: Tensor) -> Tensor:
    """Cross-entropy of the order, over the mixtures with lips. Shape: (B,), (B, S), (B, S)."""
    same = (best[:, 0] == 0).float()
    entropy = functional.binary_cross_entropy_with_logits(order, same, reduction="none")
    return _mean_where(entropy, visual_mask.any(dim=1))


def _contrast(likelihood: Tensor, best: Tensor, visual_mask: Tensor) -> Tensor:
    """Cross-entropy of the voice of each mouth among all of the batch. Shape: (B S, B S), (B, S), (B, S)."""
    size, voices = best.shape
    target = (torch.arange(size, device=best.device)[:, None] * voices + best).flatten()
    entropy = functional.cross_entropy(likelihood.T, target, reduction="none")
    return _mean_where(entropy, visual_mask.flatten())


def _mean_where(values: Tensor, keep: Tensor) -> Tensor:
    """Mean of the kept values; 0 with a gradient path when there is none."""
    return torch.where(keep, values, 0.0).sum() / keep.sum().clamp(min=1)

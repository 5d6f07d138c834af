"""When the auxiliary objective is used and how many meta-labels it has; needs no torch."""

from __future__ import annotations

from engine.config import Auxiliary

AUTO_WEIGHT, AUTO_SPARSITY = 0.3, 0.9
AUTO_LABELS_A_META_LABEL, AUTO_MOST = 64, 10_000


def first_weight(auxiliary: Auxiliary, sparsity: float, has_trainable_features: bool) -> float:
    """The weight at step 0; 0 where the encoder is frozen and there is no intermediate layer that would learn from it.

    What it gives an adapter was not tried.
    """
    if not has_trainable_features:
        return 0.0
    if auxiliary.weight == "auto":
        return AUTO_WEIGHT if sparsity >= AUTO_SPARSITY else 0.0
    return auxiliary.weight


def wanted_meta_labels(auxiliary: Auxiliary, labels: int) -> int:
    """About how many; the tree decides."""
    if auxiliary.meta_labels == "auto":
        return max(2, min(labels // AUTO_LABELS_A_META_LABEL, AUTO_MOST))
    return auxiliary.meta_labels

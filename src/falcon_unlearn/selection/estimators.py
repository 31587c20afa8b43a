"""Score layers by the information between forget and retain activations, or by gradient conflict (eq. 2-7).

Shapes: N samples, D hidden, K components, W bootstrap resamples, P permutations.

What the two information estimators mean:

* `paired` is the paper's form, I(F;R) between the activations of forget sample i and retain sample i.
  Unrelated texts form no pairs, so with `pairs="random"` the true value is 0 at every layer; the estimate is
  averaged over random pairings and its permutation null has the same distribution. It shows the estimator's
  bias, which grows with the number of PCA components, and is offered for comparison with the paper. With
  genuinely paired data (`pairs="given"`: row i of the forget set belongs to row i of the retain set) it is an
  information.
* `pooled` asks how much an activation tells about the domain it came from, 0 to ln 2 for equal halves. It
  needs no pairs. Low means that both domains use this layer alike.

Eq. 5 adds eta times the information between forget domains. The paper minimises the sum for eta > 0, which
rewards layers that tell the domains apart from each other, although it wants one layer to serve all of them;
hence eta is 0 unless asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from falcon_unlearn.errors import NumericalError
from falcon_unlearn.linalg.information import permuted_information, reweighted_information
from falcon_unlearn.linalg.intervals import percentile_interval
from falcon_unlearn.linalg.labels import label_entropy, label_information
from falcon_unlearn.linalg.pca import PrincipalComponents, fit_shared_pca
from falcon_unlearn.linalg.streaming import require_finite
from falcon_unlearn.selection import score as flags
from falcon_unlearn.selection.sampling import RETAIN, Activations, SamplingPlan, plan_sampling
from falcon_unlearn.selection.score import LayerScore, LayerScores
from falcon_unlearn.selection.settings import InformationSettings

_FEW_SAMPLES = 64
# A covariance of K coordinates needs a few samples per coordinate; the joint of a pair has twice as many.
_SAMPLES_PER_COMPONENT = 4


class _Estimate(NamedTuple):
    """Hold the information of one pair of sample sets: value, replicates (W), null (P), upper bound."""

    value: float
    replicates: Tensor
    null: Tensor
    upper_bound: float


def score_layers(
    forget: Mapping[str, Activations], retain: Activations, settings: InformationSettings | None = None
) -> LayerScores:
    """Score every layer by `paired` or `pooled` information (eq. 2, 5 and 7).

    Rows may come in any order: samples are first sorted by content, and all random choices follow from the
    seed. Row i of a set must be the same text at every layer.

    Args:
        forget: by domain name and layer, activations (N x D, float32 suffices).
        retain: by layer, activations (N x D).
        settings: see `InformationSettings`.

    Raises:
        DataError: no domain, fewer than 8 samples, layers that differ, or given pairs of unequal number.
        NumericalError: constant or non-finite activations (with `on_failure="raise"`).
    """
    settings = settings or InformationSettings()
    plan = plan_sampling(forget, retain, settings)
    scores: list[LayerScore] = []
    missing: dict[int, str] = {}
    for layer in sorted(retain):
        sets = {name: activations[layer] for name, activations in forget.items()}
        try:
            scores.append(score_layer(layer, {**sets, RETAIN: retain[layer]}, plan, settings))
        except NumericalError as failure:
            if settings.on_failure == "raise":
                raise NumericalError(f"layer {layer}: {failure.message}", hint=failure.hint) from failure
            missing[layer] = failure.message
    if not scores:
        raise NumericalError(
            f"no layer could be scored; layer {min(missing)}: {missing[min(missing)]}",
            hint="Check that the texts differ and that activations are finite.",
        )
    return LayerScores(settings.estimator, tuple(scores), missing, plan.num_samples)


def score_layer(
    layer: int, sets: Mapping[str, Tensor], plan: SamplingPlan, settings: InformationSettings
) -> LayerScore:
    """Score one layer from the activations (N x D) of every domain and of "retain"; see `score_layers`."""
    ordered = {}
    for name in plan.num_samples:
        ordered[name] = sets[name][torch.from_numpy(plan.orders[name]).to(sets[name].device)]
        _check_varies(ordered[name], name)
    components = _shared_components(ordered, settings)
    coordinates = {name: components.transform(samples_ND) for name, samples_ND in ordered.items()}
    domains = [name for name in plan.num_samples if name != RETAIN]
    terms = [(1.0, name, RETAIN) for name in domains]
    if settings.eta:
        terms += [(settings.eta, *pair) for pair in itertools.combinations(domains, 2)]
    parts = [
        (weight, _estimate_pair(coordinates, first, second, plan, settings))
        for weight, first, second in terms
    ]
    estimate = _Estimate(
        value=sum(weight * part.value for weight, part in parts),
        replicates=torch.stack([weight * part.replicates.cpu() for weight, part in parts]).sum(dim=0),
        null=torch.stack([weight * part.null.cpu() for weight, part in parts]).sum(dim=0),
        upper_bound=sum(max(weight, 0.0) * part.upper_bound for weight, part in parts),
    )
    return _as_score(layer, estimate, components, plan, settings)


def _check_varies(samples_ND: Tensor, name: str) -> None:
    require_finite(samples_ND, f"activations of {name!r}")
    spread = float(samples_ND.double().std(dim=0).norm())
    # Equal texts in different batches differ by float32 rounding; that is not variation.
    if spread <= 1e-6 * float(samples_ND.double().norm(dim=1).mean()):
        raise NumericalError(
            f"the activations of {name!r} are constant.",
            hint="Pool over more tokens (selection.pooling=mean), or leave this layer out of the candidates.",
        )


def _shared_components(sets: Mapping[str, Tensor], settings: InformationSettings) -> PrincipalComponents:
    smallest = min(samples_ND.shape[0] for samples_ND in sets.values())
    limit = smallest // _SAMPLES_PER_COMPONENT
    if settings.maximum_components is not None:
        limit = min(limit, settings.maximum_components)
    stacked_ND = torch.cat([samples_ND.to(torch.float64) for samples_ND in sets.values()])
    return fit_shared_pca(stacked_ND, settings.minimum_explained_variance, limit)


def _estimate_pair(
    coordinates: Mapping[str, Tensor],
    first: str,
    second: str,
    plan: SamplingPlan,
    settings: InformationSettings,
) -> _Estimate:
    first_NK, second_NK = coordinates[first], coordinates[second]
    weights = (plan.weights[first], plan.weights[second])
    if settings.estimator == "pooled":
        pooled = label_information(
            first_NK,
            second_NK,
            forget_weights_FW=weights[0],
            retain_weights_RW=weights[1],
            relabellings_PN=plan.shuffles[first, second],
        )
        bound = label_entropy(first_NK.shape[0], second_NK.shape[0])
        return _Estimate(pooled.value, _centred(pooled.replicates, pooled.value), pooled.null, bound)
    return _estimate_paired(first_NK, second_NK, weights, plan, (first, second), settings)


def _estimate_paired(
    first_NK: Tensor,
    second_NK: Tensor,
    weights: tuple[Tensor, Tensor],
    plan: SamplingPlan,
    names: tuple[str, str],
    settings: InformationSettings,
) -> _Estimate:
    num_pairs = min(first_NK.shape[0], second_NK.shape[0])
    first_NK, second_NK = first_NK[:num_pairs], second_NK[:num_pairs]
    pairings_PN = plan.pairings[names]
    values = permuted_information(first_NK, second_NK, pairings_PN, estimator=settings.density)
    null = permuted_information(first_NK, second_NK, plan.shuffles[names], estimator=settings.density)
    replicates = []
    for pairing_N in pairings_PN:
        weights_NW = weights[0][:num_pairs]
        if settings.pairs == "random":
            # Both sides are independent samples, so each is resampled by itself.
            weights_NW = weights_NW * weights[1][:num_pairs][pairing_N]
        replicates.append(
            reweighted_information(
                first_NK, second_NK, weights_NW, pairing_N=pairing_N, estimator=settings.density
            )
        )
    value = float(values.mean())
    return _Estimate(value, _centred(torch.stack(replicates).mean(dim=0), value), null, float("inf"))


def _centred(replicates_W: Tensor, value: float) -> Tensor:
    """Shift replicates so that their mean is the value: reweighting thins the sample and so adds bias."""
    return replicates_W - replicates_W.mean() + value


def _as_score(
    layer: int,
    estimate: _Estimate,
    components: PrincipalComponents,
    plan: SamplingPlan,
    settings: InformationSettings,
) -> LayerScore:
    interval = percentile_interval(estimate.replicates.tolist(), settings.confidence)
    null_interval = percentile_interval(estimate.null.tolist(), settings.confidence)
    sizes = plan.num_samples.values()
    remarks = {
        flags.RANDOM_PAIRING: settings.estimator == "paired" and settings.pairs == "random",
        flags.COMPONENTS_CAPPED: components.explained_share < settings.minimum_explained_variance,
        flags.SUBSAMPLED: settings.estimator == "paired" and min(sizes) != max(sizes),
        flags.FEW_SAMPLES: min(sizes) < _FEW_SAMPLES,
        flags.INSIDE_NULL: null_interval.contains(estimate.value),
        flags.SATURATED: estimate.value >= 0.99 * estimate.upper_bound,
    }
    return LayerScore(
        layer=layer,
        value=estimate.value,
        low=interval.low,
        high=interval.high,
        null_mean=float(estimate.null.mean()),
        null_low=null_interval.low,
        null_high=null_interval.high,
        num_components=components.num_components,
        explained_share=components.explained_share,
        flags=tuple(name for name, applies in remarks.items() if applies),
        replicates=tuple(estimate.replicates.tolist()),
    )

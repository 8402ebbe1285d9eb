"""Labels that disagree with what similar films are called: confident learning (Northcutt et al., JAIR 2021).

Predictions are out of fold, by group: nothing speaks for a film that has seen it or another film of its patient. What
is suspected is listed for a reader, and never removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.trust.linear_probe import FOLDS, fold_of

#: Principal components that the probabilities are fitted on.
COMPONENTS = 128

Floats = NDArray[np.float64]


def probabilities_out_of_fold(
    features: NDArray[Any], truth: NDArray[Any], groups: Sequence[str], *, seed: int, folds: int = FOLDS
) -> Floats:
    """Probabilities of every film from a logistic regression that saw nothing of its group.

    Logistic and not ridge, as the ladder's probe is: confident learning compares probabilities, which ridge has not.

    Args:
        features: (N, D).
        truth: (N,) int, 0 to K - 1.
        groups: (N,).
        seed: Of folds and components.
        folds: Of the cross-validation.

    Returns:
        (N, K), rows adding up to 1.

    Raises:
        UserError: A class cannot stand in every fold.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    number = fold_of(truth, groups, folds=folds, seed=seed)
    out = np.zeros((len(truth), int(truth.max()) + 1))
    for fold in range(1, folds + 1):
        test = number == fold
        count = min(COMPONENTS, features.shape[1], max(2, int((~test).sum()) // 3))
        model = make_pipeline(
            StandardScaler(),
            PCA(count, svd_solver="covariance_eigh", whiten=True),
            LogisticRegression(C=0.1, max_iter=300),
        )
        model.fit(features[~test], truth[~test])
        out[test] = model.predict_proba(features[test])
    return out


def suspected(truth: NDArray[Any], probabilities: Floats) -> NDArray[np.int64]:
    """Films whose label is probably another's.

    A film counts as confidently of class j when its probability of j reaches the mean probability of j among films
    that are labelled j; of several such classes the most probable. Those that are confidently of another class than
    their label make up the off-diagonal of the confident joint, and are the ones found.

    Args:
        truth: (N,) int, 0 to K - 1, every class with films.
        probabilities: (N, K) out of fold.

    Returns:
        Rows, the least self-confident (probability of the given label) first. The same as cleanlab's
        ``find_label_issues(filter_by="confident_learning", return_indices_ranked_by="self_confidence")``.
    """
    truth = np.asarray(truth, dtype=np.int64)
    classes = probabilities.shape[1]
    threshold = np.array([probabilities[truth == k, k].mean() for k in range(classes)])
    # As cleanlab: a hair below, so that a probability equal to its class's mean counts as reaching it.
    reaches = probabilities >= threshold - 1e-6
    most_probable = probabilities.argmax(axis=1)
    confident = np.where(reaches.sum(axis=1) > 1, most_probable, reaches.argmax(axis=1))
    found = np.flatnonzero(reaches.any(axis=1) & (confident != truth) & (most_probable != truth))
    own = probabilities[found, truth[found]]
    return found[np.argsort(own, kind="stable")]

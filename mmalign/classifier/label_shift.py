"""Classes from domains: the same classes in several domains, more frequent in one than in another (latent label shift, arXiv:2207.13179).

p(x | class) is shared by all domains and p(class | domain) is not, so that the domain an image looks like tells of its class.

Shape legend: N = images, D = domains, M = cells, K = classes that are looked for, C = classes that have names.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment, nnls

from mmalign.classifier.splits import Indices
from mmalign.errors import UserError

Array = NDArray[np.float64]
_LLOYD_STEPS = 100
# Rounds of least squares. More fit the noise: the factors of counts are not unique, and drift to where shares are 0 or 1.
_ROUNDS = 3
# Below this share of the largest one a singular value is rounding.
_EXACT = 1e-9
# A class that nobody saw; what the floor of a classifier's mixture is too.
_FLOOR = 1e-12


class Mixture(NamedTuple):
    """Cells by domains, factored: X = C W."""

    cells: Array
    """C, (M, K): p(cell | class)."""
    shares: Array
    """W, (K, D): p(class | domain)."""


def assign_cells(probabilities: Array, *, num_cells: int, seed: int) -> Indices:
    """Put each image into a cell: k-means on what the domain classifier says of it, (N, D) to (N,) in 0 to M - 1.

    Raises:
        ValueError: If there are fewer different images than cells.
    """
    different = len(np.unique(probabilities, axis=0))
    if not 1 <= num_cells <= different:
        raise UserError(f"num_cells is {num_cells}; expected 1 to {different}, as many as the domain classifier tells images apart")
    return kmeans2(probabilities, num_cells, iter=_LLOYD_STEPS, minit="++", missing="warn", rng=seed)[1].astype(np.int64)


def balance_domains(probabilities: Array, numbers: Indices) -> Array:
    """p(domain | x) (N, D) as if every domain were equally frequent, of a classifier that saw so many images of each, (D,)."""
    found = probabilities / numbers.clip(min=1)
    return found / found.sum(1, keepdims=True)


def count_cells(cells: Indices, domains: Indices, *, num_domains: int) -> tuple[Array, Indices]:
    """Count images by cell and domain: X (M, D) with columns that sum to 1, without empty cells, and the images of each cell (M,)."""
    counts = np.zeros((cells.max() + 1, num_domains))
    np.add.at(counts, (cells, domains), 1)
    counts = counts[counts.sum(1) > 0]
    return counts / counts.sum(0), counts.sum(1).astype(np.int64)


def factorise(shares: Array, num_classes: int, *, sizes: Indices | None = None) -> Mixture:
    """Factor X (M, D) as C W without negative numbers, columns summing to 1 (arXiv:2207.13179, Sec. 5).

    Such factors are unique only where every class has a cell of its own. The search starts at cells that are taken to be so: the rows that
    are no mixture of others (successive projection, arXiv:1208.1237), an exact X's very factors; a few rounds of least squares follow.

    Args:
        shares: X.
        num_classes: K.
        sizes: (M,) images of each cell; the smaller half, whose rows are the least certain, is no start.

    Raises:
        ValueError: If X has no K classes in it.
    """
    values = np.linalg.svd(shares, compute_uv=False)
    rank = int((values > _EXACT * values[0]).sum())
    anchors = _find_anchors(shares, num_classes, sizes)
    if len(anchors) < num_classes:
        shown = ", ".join(f"{value:.3g}" for value in values)
        raise UserError(
            f"cells by domains have rank {rank} (singular values {shown}), and {num_classes} classes are looked for; expected as many "
            "domains as classes or more, each with shares of its own, and twice as many cells"
        )
    rows = shares[anchors] / shares[anchors].sum(1, keepdims=True)
    mixture = _normalise(np.stack([nnls(rows.T, row)[0] for row in shares]), rows)
    for _ in range(_ROUNDS):
        mixture = _normalise(mixture.cells, np.stack([nnls(mixture.cells, column)[0] for column in shares.T], 1))
        mixture = _normalise(np.stack([nnls(mixture.shares.T, row)[0] for row in shares]), mixture.shares)
    return mixture


def _find_anchors(shares: Array, number: int, sizes: Indices | None) -> list[int]:
    """The rows that are farthest from being mixtures of those before, by direction alone; fewer where no more are independent."""
    left = shares / shares.sum(1, keepdims=True)
    if sizes is not None:
        left = left * (sizes >= np.median(sizes))[:, None]
    anchors: list[int] = []
    while len(anchors) < number and np.abs(left).max() > _EXACT:
        anchors.append(int(np.square(left).sum(1).argmax()))
        direction = left[anchors[-1]] / np.linalg.norm(left[anchors[-1]])
        left = left - np.outer(left @ direction, direction)
    return anchors


def _normalise(cells: Array, shares: Array) -> Mixture:
    total = cells.sum(0)
    if not (total > 0).all() or not (shares.sum(1) > 0).all():
        raise UserError(
            f"only {int((total > 0).sum())} of {len(total)} classes are left in the fit of cells by domains; ask for fewer: --num-classes"
        )
    scaled = shares * total[:, None]
    return Mixture(cells / total, scaled / scaled.sum(0))


def domain_by_class(shares: Array) -> Array:
    """p(class | domain) (K, D) to p(domain | class) (D, K), every domain equally frequent."""
    return (shares / shares.sum(1, keepdims=True)).T


def class_probabilities(domain_probabilities: Array, shares: Array) -> Array:
    """p(class | x) from p(domain | x) = sum over classes of p(domain | class) p(class | x), domains equally frequent.

    The solution of least squares, clipped at 0 and normalised: the clip is ours.

    Args:
        domain_probabilities: (N, D).
        shares: W, (K, D).

    Returns:
        (N, K).
    """
    found = (domain_probabilities @ np.linalg.pinv(domain_by_class(shares)).T).clip(min=_FLOOR)
    return found / found.sum(1, keepdims=True)


def within_domain(probabilities: Array, shares: Array, domains: Indices) -> Array:
    """p(class | x, domain), in proportion to p(class | x) p(domain | class): (N, K) and (N,) to (N, K)."""
    found = (probabilities * domain_by_class(shares)[domains]).clip(min=_FLOOR)
    return found / found.sum(1, keepdims=True)


def name_classes(probabilities: Array, labels: Indices, *, num_names: int) -> Indices:
    """Find the name of each class that was found: the one-to-one choice by which labelled images are the likeliest right (Hungarian).

    Args:
        probabilities: (N, K) of the labelled images.
        labels: (N,), below C.
        num_names: C, at least K.

    Returns:
        (K,) numbers of named classes.
    """
    votes = np.zeros((num_names, probabilities.shape[1]))
    np.add.at(votes, labels, probabilities)
    # Each name counts as one image, however many it has.
    votes /= np.bincount(labels, minlength=num_names).clip(min=1)[:, None]
    names, found = linear_sum_assignment(votes, maximize=True)
    return names[np.argsort(found)]


def named_logits(probabilities: Array, names: Indices, *, num_names: int) -> Array:
    """Log-probabilities (N, C) of named classes from those of the classes found (N, K); a name that none has is at the floor."""
    found = np.full((len(probabilities), num_names), _FLOOR)
    found[:, names] = probabilities.clip(min=_FLOOR)
    return np.log(found)

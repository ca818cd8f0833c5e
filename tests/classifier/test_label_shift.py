"""Classes from domains: the specification's values, exact factors, brute force, and what can't be told apart."""

import itertools

import numpy as np
import pytest

from mmalign.classifier.label_shift import (
    Mixture,
    assign_cells,
    balance_domains,
    class_probabilities,
    count_cells,
    domain_by_class,
    factorise,
    name_classes,
    named_logits,
    within_domain,
)

CELLS = np.array([[0.8, 0.0], [0.2, 0.3], [0.0, 0.7]])
SHARES = np.array([[0.7, 0.2], [0.3, 0.8]])


def test_values_of_the_specification() -> None:
    assert np.allclose(CELLS @ SHARES, [[0.56, 0.16], [0.23, 0.28], [0.21, 0.56]])
    expected = [[0.777777777778, 0.272727272727], [0.222222222222, 0.727272727273]]
    assert domain_by_class(SHARES) == pytest.approx(np.array(expected), abs=1e-12)
    found = class_probabilities(np.array([[0.6, 0.4]]), SHARES)
    assert found == pytest.approx(np.array([[0.648, 0.352]]), abs=1e-12)
    assert within_domain(found, SHARES, np.array([0])) == pytest.approx(np.array([[0.84, 0.16]]), abs=1e-12)


def in_order(found: Mixture, cells: np.ndarray) -> Mixture:
    """The factors in the order of the columns of ``cells``, found by brute force."""
    orders = itertools.permutations(range(cells.shape[1]))
    best = list(min(orders, key=lambda order: float(np.abs(found.cells[:, list(order)] - cells).sum())))
    return Mixture(found.cells[:, best], found.shares[best])


@pytest.mark.parametrize(("num_classes", "num_domains", "seed"), [(2, 2, 0), (3, 5, 1), (4, 8, 2)])
def test_exact_cells_give_their_factors_back(num_classes: int, num_domains: int, seed: int) -> None:
    """Every class has a cell of its own among cells that several share."""
    rng = np.random.default_rng(seed)
    cells = np.concatenate([np.eye(num_classes), rng.random((6, num_classes))])
    cells, shares = cells / cells.sum(0), rng.dirichlet(np.ones(num_classes), num_domains).T
    found = in_order(factorise(cells @ shares, num_classes), cells)
    assert found.cells == pytest.approx(cells, abs=1e-6)
    assert found.shares == pytest.approx(shares, abs=1e-6)


def test_factors_of_counts() -> None:
    """Of a few thousand images in each domain: near to what they were drawn from, though other factors fit the counts as well."""
    rng = np.random.default_rng(0)
    cells = np.concatenate([np.eye(3), np.eye(3), 0.5 * rng.random((6, 3))])
    cells, shares = cells / cells.sum(0), rng.dirichlet(np.ones(3), 6).T
    counts = np.stack([rng.multinomial(4000, column) for column in (cells @ shares).T], 1)
    seen = counts / counts.sum(0)
    found = factorise(seen, 3, sizes=counts.sum(1))
    assert np.linalg.norm(seen - found.cells @ found.shares) < 1.1 * np.linalg.norm(seen - cells @ shares)
    assert np.abs(in_order(found, cells).shares - shares).max() < 0.1
    assert found.cells.min() >= 0
    assert found.shares.min() >= 0
    assert np.concatenate([found.cells.sum(0), found.shares.sum(0)]) == pytest.approx(np.ones(9))


def test_small_cells_are_no_start() -> None:
    """A cell of four images, all of one domain, has a row at a corner that no class has."""
    seen = np.array([[0.45, 0.0], [0.45, 0.0], [0.0, 0.5], [0.0, 0.5], [0.1, 0.0]]) @ SHARES
    seen[4] = [0.001, 0.0]
    sizes = np.array([400, 400, 500, 500, 4])
    one, other = (factorise(seen / seen.sum(0), 2, sizes=each) for each in (sizes, None))
    assert min(np.abs(one.shares - SHARES).max(), np.abs(one.shares[::-1] - SHARES).max()) < 0.05
    assert min(np.abs(other.shares - SHARES).max(), np.abs(other.shares[::-1] - SHARES).max()) > 0.1


def test_domains_count_equally() -> None:
    """Three to one by the classifier's prior alone is even; a domain that it never saw stays as it is."""
    found = balance_domains(np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([300, 100]))
    assert found == pytest.approx(np.array([[0.5, 0.5], [0.25, 0.75]]))
    assert balance_domains(np.array([[0.6, 0.4]]), np.array([0, 0])) == pytest.approx(np.array([[0.6, 0.4]]))


def test_counts_by_cell_and_domain() -> None:
    """Cell 1 is empty and left out; domains of 3 and 1 images count equally."""
    shares, sizes = count_cells(np.array([0, 0, 2, 2]), np.array([0, 0, 0, 1]), num_domains=2)
    assert shares.tolist() == [[2 / 3, 0], [1 / 3, 1]]
    assert sizes.tolist() == [2, 2]


def test_cells_are_clusters_of_what_is_said() -> None:
    rng = np.random.default_rng(0)
    corners = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
    looks = np.repeat(corners, 20, 0) + rng.normal(size=(60, 2)) * 0.01
    cells = assign_cells(looks, num_cells=3, seed=0).reshape(3, 20)
    assert all(len(set(row)) == 1 for row in cells.tolist())
    assert len(set(cells[:, 0].tolist())) == 3
    assert np.array_equal(cells.ravel(), assign_cells(looks, num_cells=3, seed=0))
    with pytest.raises(ValueError, match="num_cells is 4; expected 1 to 3"):
        assign_cells(corners, num_cells=4, seed=0)


def test_classes_in_equal_shares_are_not_told_apart() -> None:
    """Two classes that every domain has in one proportion make one column."""
    shares = np.array([[0.5, 0.2, 0.3], [0.25, 0.4, 0.35], [0.25, 0.4, 0.35]])
    with pytest.raises(ValueError, match=r"rank 2 \(singular values 1, 0.265, .*\), and 3 classes"):
        factorise(np.eye(3) @ shares, 3)


def test_probabilities_outside_the_simplex_are_clipped() -> None:
    """A domain probability beyond any class's: (1, 0) is (1.4, -0.4) of both classes, hence the first alone."""
    assert class_probabilities(np.array([[1.0, 0.0]]), SHARES) == pytest.approx(np.array([[1.0, 0.0]]), abs=1e-9)


def test_names_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(3), 40), rng.integers(0, 4, 40)
    names = name_classes(probabilities, labels, num_names=4)

    def worth(chosen: tuple[int, ...]) -> float:
        return sum(probabilities[labels == name, found].mean() for found, name in enumerate(chosen))

    assert tuple(names) == max(itertools.permutations(range(4), 3), key=worth)
    logits = named_logits(probabilities, names, num_names=4)
    assert np.exp(logits[:, names]) == pytest.approx(probabilities)
    (missing,) = set(range(4)) - set(names.tolist())
    assert (logits[:, missing] < -27).all()

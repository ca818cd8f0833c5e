"""Tree search over steps: the numbers of a node, a search that was written out by hand, and the pairs that it leaves."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from data_tools.tree import Node, Step, TreeSearch, expand, mean_quality, step_pairs
from mmalign.losses.coefficients import visit_flip


def step(text: str, confidence: float, **changes: Any) -> Step:
    return Step(**{"ids": (len(text),), "text": text, "logp": 0.0, "tokens": 1, "confidence": confidence, **changes})


def test_a_node_by_hand() -> None:
    """Values .55 and .30 behind .40, V .20 and .05, visits 3 and 1; log-probabilities -2.4 of six tokens and -3 of five."""
    parent = Node(value=0.40, visits=5)
    expand(parent, [step("a", 0.55, logp=-2.4, tokens=6), step("b", 0.30, logp=-3.0, tokens=5)])
    for child, future, visits in zip(parent.children, (0.20, 0.05), (3, 1), strict=True):
        child.future, child.visits = future, visits
    assert [child.prior for child in parent.children] == pytest.approx([0.774469312925, 0.669486563849], abs=1e-12)
    assert [child.reward for child in parent.children] == pytest.approx([0.15, -0.10], abs=1e-12)
    assert [child.quality for child in parent.children] == pytest.approx([0.35, -0.05], abs=1e-12)
    assert mean_quality(parent.children) == pytest.approx(0.25, abs=1e-12)
    bounds = [TreeSearch().bound(child, parent) for child in parent.children]
    assert bounds == pytest.approx([0.782941507547, 0.698508733395], abs=1e-12)
    assert visit_flip(torch.tensor([3.0]), torch.tensor([1.0])).item() == 0.25


@pytest.mark.parametrize(
    ("depth", "changes", "value"),
    [
        (0, {}, 0.6),
        (4, {}, 0.6),
        (5, {}, 0.3),
        (6, {}, 0.2),
        # No confidence is the parent's value, and an outcome counts at the end alone.
        (5, {"confidence": 0.0}, 0.5),
        (0, {"outcome": 1.0}, 0.6),
        (0, {"outcome": -1.0, "last": True}, -0.4),
        (5, {"outcome": 1.0, "last": True, "confidence": 0.0}, 1.5),
    ],
)
def test_values_by_hand(depth: int, changes: Mapping[str, Any], value: float) -> None:
    parent = Node(value=0.5, depth=depth)
    expand(parent, [step("a", **{"confidence": 0.6, **changes})])
    (child,) = parent.children
    assert child.value == pytest.approx(value)
    assert child.reward == pytest.approx(value - 0.5)
    assert (child.depth, child.ids) == (depth + 1, (1,))


# Two steps with two ways each, and what ends each way; the right answer is behind the step that looks worse at first.
TREE = {
    "": [step("a", 0.6), step("b", 0.5)],
    "a": [step("aa", 0.6), step("ab", 0.7)],
    "b": [step("ba", 0.9), step("bb", 0.2)],
    **{text: [step(f"{text}.", 0.0, last=True, ended=True, outcome=1.0 if text == "ba" else -1.0)] for text in ("aa", "ab", "ba", "bb")},
}


def search(tree: Mapping[str, Sequence[Step]], **options: Any) -> tuple[list[Node], list[str]]:
    """The path, and the places whose steps were asked for."""
    running, asked = TreeSearch(**options).search(), []
    node = next(running)
    while True:
        asked.append(node.text)
        try:
            node = running.send(tree[node.text])
        except StopIteration as stop:
            return stop.value, asked


def test_a_search_that_was_written_out() -> None:
    """Four iterations at the root, one behind each step, all priors 1.

    1. a (1.6 > 1.5), ab (.7 - .6 + 1 > 0 + 1), its end: -1. V(ab) -1, V(a) (0 - .9) / 2, V(root) (.15 + .5) / 2.
    2. b (.5 + sqrt 2 > .15 + sqrt(2) / 2), ba, its end: +1. V(ba) 1, V(b) (1.4 - .3) / 2, Q(b) 1.05.
    3. b (1.05 + sqrt(3) / 2 > .15 + sqrt(3) / 2), ba. V(b) (2 * 1.4 - .3) / 3.
    4. b, ba. V(b) (3 * 1.4 - .3) / 4, V(root) (.15 + 3 * 1.475) / 4.
    Then to b; 5. from b to ba (1.4 + 2/4 > -.3 + 2): V(b) (4 * 1.4 - .3) / 5. To ba; 6. its end.
    """
    path, asked = search(TREE, iterations=1)
    assert asked == ["", "a", "ab", "b", "ba"]
    assert [node.text for node in path] == ["", "b", "ba", "ba."]
    root, b, ba, end = path
    a, bb = root.children[0], b.children[1]
    assert [node.visits for node in (root, a, b, ba, bb, end)] == [4, 1, 4, 5, 0, 5]
    assert [a.future, b.future, ba.future] == pytest.approx([-0.45, 1.06, 1.0])
    assert root.future == pytest.approx(1.14375)


def test_pairs_of_a_search() -> None:
    """The best against the worst at each place; ba goes on to its only end, and nobody looked behind bb."""
    path, _ = search(TREE, iterations=1)
    first, second = step_pairs(path)
    assert (first.depth, first.chosen.text, first.rejected.text, first.visits) == (0, "b", "a", (4, 1))
    assert first.quality == pytest.approx((1.56, 0.15))
    assert (second.depth, second.chosen.text, second.rejected.text, second.visits) == (1, "ba.", "bb", (5, 0))
    assert (second.chosen.ended, second.rejected.ended) == (True, False)
    assert second.quality == pytest.approx((1.4, -0.3))


def test_long_searches_find_the_best_end_and_no_exploration_stays_with_the_first() -> None:
    """Here the right end stands behind the step that looks worse, and nothing on the way to it tells."""
    tree = {**TREE, "b": [step("ba", 0.5), step("bb", 0.5)]}
    assert search(tree, iterations=16)[0][-1].text == "ba."
    assert search({**tree, "a": [step("aa", 0.6)]}, iterations=1, exploration=0.0)[0][-1].text == "ba."
    lucky = {**tree, "aa": [step("aa.", 0.0, last=True, outcome=0.2)], "a": [step("aa", 0.6)]}
    assert search(lucky, iterations=16, exploration=0.0)[0][-1].text == "aa."
    assert search(lucky, iterations=16)[0][-1].text == "ba."


def test_an_answer_without_another_step_is_whole_and_makes_no_pair() -> None:
    path, asked = search({"": [step("a", 0.5), step("b", 0.5)], "a": [], "b": []}, iterations=1)
    assert [node.text for node in path] == ["", "a"]
    assert sorted(asked) == ["", "a", "b"]
    assert step_pairs(path) == []
    assert [node.text for node in search({"": []}, iterations=1)[0]] == [""]

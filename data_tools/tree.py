"""Monte Carlo tree search over the steps of an answer (MCTS-DPO, arXiv:2405.00451), on texts and numbers alone.

A node is an answer so far. Which steps it can go on with, and what they are worth, is for the driver to say: a search is a generator that
yields a node, is sent its steps, and returns the path that it took.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

LENGTH_POWER = 1.25
"""The prior of a step is exp(its log-probability / its tokens to this power)."""
FREE_DEPTH = 3
"""Behind this many steps, confidence counts less."""
ROOT_ITERATIONS = 4
"""Times as many iterations before the first step."""


@dataclass(frozen=True)
class Step:
    """What an answer can go on with."""

    ids: tuple[int, ...]
    """Its tokens; none of the end of turn."""
    text: str
    """The whole answer with it."""
    logp: float
    """Under the policy, end of turn included."""
    tokens: int
    """That ``logp`` is of."""
    confidence: float
    """How true the answer is so far; 0: as its parent."""
    last: bool = False
    """Whether nothing follows."""
    ended: bool = False
    """Whether it ends the turn; a last one that does not was cut."""
    outcome: float = 0.0
    """Of a last one: 1 right, -1 wrong, 0 not known."""


@dataclass(eq=False)
class Node:
    """An answer so far."""

    ids: tuple[int, ...] = ()
    text: str = ""
    depth: int = 0
    """Steps."""
    value: float = 0.0
    reward: float = 0.0
    """Its value less its parent's."""
    prior: float = 1.0
    last: bool = False
    ended: bool = False
    children: list[Self] = field(default_factory=list)
    visits: int = 0
    future: float = 0.0
    """V: the children's mean quality by visits, each at least once."""

    @property
    def quality(self) -> float:
        """Q = r + V."""
        return self.reward + self.future


class StepPair(NamedTuple):
    """The best and the worst way to go on at one place of a path."""

    depth: int
    """Steps that both share."""
    chosen: Node
    rejected: Node
    visits: tuple[int, int]
    quality: tuple[float, float]


Search = Generator[Node, Sequence[Step], list[Node]]


@dataclass(frozen=True)
class TreeSearch:
    """How a tree is searched."""

    iterations: int = 64
    """For each step, and four times as many for the first."""
    exploration: float = 1.0
    """Weight of what the policy finds likely and the search has not visited."""

    def search(self) -> Search:
        """Search, go to the child of most visits, keep its tree and search again, to the end.

        Returns:
            The path from the root to the end.
        """
        path = [Node()]
        while not path[-1].last:
            for _ in range(self.iterations * (ROOT_ITERATIONS if len(path) == 1 else 1)):
                yield from self._iterate(path[-1])
            if path[-1].children:
                path.append(max(path[-1].children, key=lambda child: (child.visits, child.quality)))
        return path

    def _iterate(self, node: Node) -> Generator[Node, Sequence[Step], None]:
        """Go from a node to the end of an answer by the best bounds, ask for steps where there are none, and back up."""
        path = [node]
        node.visits += 1
        while not path[-1].last:
            if not path[-1].children:
                expand(path[-1], (yield path[-1]))
            if path[-1].children:
                path.append(max(path[-1].children, key=lambda child: self.bound(child, path[-1])))
                path[-1].visits += 1
        for parent in reversed(path[:-1]):
            parent.future = mean_quality(parent.children)

    def bound(self, child: Node, parent: Node) -> float:
        """PUCT: Q + w p sqrt(N of the parent) / (1 + N); the parent's visits include this one."""
        return child.quality + self.exploration * child.prior * math.sqrt(parent.visits) / (1 + child.visits)


def expand(node: Node, steps: Sequence[Step]) -> None:
    """Give a node its children; one without any is the last."""
    node.children = [_child(node, step) for step in steps]
    node.last = not node.children


def _child(parent: Node, step: Step) -> Node:
    value = step.confidence / max(parent.depth - FREE_DEPTH, 1) or parent.value
    value += step.outcome if step.last else 0.0
    return Node(
        ids=parent.ids + step.ids,
        text=step.text,
        depth=parent.depth + 1,
        value=value,
        reward=value - parent.value,
        prior=math.exp(step.logp / step.tokens**LENGTH_POWER),
        last=step.last,
        ended=step.ended,
    )


def mean_quality(children: Sequence[Node]) -> float:
    """V = sum max(1, N) Q / sum max(1, N)."""
    weights = [max(1, child.visits) for child in children]
    return sum(weight * child.quality for weight, child in zip(weights, children, strict=True)) / sum(weights)


def step_pairs(path: Sequence[Node]) -> list[StepPair]:
    """Pair the best with the worst child of each node on a path, by quality and then visits; equally good ones make none."""
    pairs = []
    for node in path[:-1]:
        best = max(node.children, key=lambda child: (child.quality, child.visits))
        worst = min(node.children, key=lambda child: (child.quality, child.visits))
        if best.quality > worst.quality:
            visits, quality = (best.visits, worst.visits), (best.quality, worst.quality)
            pairs.append(StepPair(node.depth, _go_on(best), _go_on(worst), visits, quality))
    return pairs


def _go_on(node: Node) -> Node:
    """Follow a step for as long as one step alone follows."""
    while len(node.children) == 1:
        node = node.children[0]
    return node

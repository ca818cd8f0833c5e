"""Which response is rejected: the worst, or one that is drawn, likelier the less a target model prefers it (DID, arXiv:2505.23761)."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.did import did_weights
from data_tools.scoring import Chosen, Parts, Sampled, Scorer, best_and_worst
from mmalign.data.encode import encode_row
from mmalign.data.images import load_image
from mmalign.data.rows import ListRow, Message
from mmalign.difficulty.generative import score_responses
from mmalign.engine.probe import probe_rows

LogRatios = Callable[[Sequence[Sampled]], list[list[float]]]
"""log p under the target - log p under the model that sampled, of each response of each item."""


class DrawnRejected(Scorer):
    """Another scorer's scores; of the responses below the best one, the rejected one is drawn with weight exp(-beta h).

    h is a log-ratio, or the score divided by a scale. The weights are derived here; that the paper's theorem asks for such responses
    is known second hand. Only responses of a lower score are drawn from, which is ours.
    """

    def __init__(self, scorer: Scorer, *, beta: float, ratios: LogRatios | None, scale: float, seed: int) -> None:
        """Hold the scorer, and what h is made of: log-ratios, or the scores where there are none."""
        self.scorer, self.beta, self.ratios, self.scale, self.seed = scorer, beta, ratios, scale, seed

    def __call__(self, items: Sequence[Sampled], *, folder: Path) -> list[list[float | None]]:
        """The scorer's."""
        return self.scorer(items, folder=folder)

    def lines(self, items: Sequence[Sampled], *, folder: Path) -> list[dict[str, Any]]:
        """What the scorer keeps, and ``log_ratios`` where h is one."""
        lines = self.scorer.lines(items, folder=folder)
        if self.ratios is None:
            return lines
        return [{**line, "log_ratios": found} for line, found in zip(lines, self.ratios(items), strict=True)]

    def fault(self, lines: Iterable[Mapping[str, Any]]) -> str | None:
        """The scorer's."""
        return self.scorer.fault(lines)

    def choose(self, line: Mapping[str, Any]) -> Chosen | None:
        """Return the best response and the drawn one; the draw depends on the seed and the line's number."""
        responses, scores = line["responses"], line["scores"]
        best = best_and_worst(responses, scores)
        if best is None:
            return None
        below = [i for i, score in enumerate(scores) if score is not None and score < best.scores[0] and responses[i].strip()]
        values = [(scores if self.ratios is None else line["log_ratios"])[i] for i in below]
        weights = did_weights(values, beta=self.beta, scale=self.scale)
        (drawn,) = random.Random(f"{self.seed} {line['index']}").choices(below, weights)
        return Chosen(best.chosen, responses[drawn], (best.scores[0], scores[drawn]))


def draw_rejected(scorer: Scorer, parts: Parts, *, beta: float) -> DrawnRejected:
    """Build what draws the rejected response."""
    options = parts.options
    ratios = None if options.target is None else TargetRatios(*parts.load(options.target), *parts.load(options.model), root=parts.root)
    return DrawnRejected(scorer, beta=beta, ratios=ratios, scale=options.reward_scale or 1.0, seed=options.seed)


class TargetRatios:
    """Asks two models for the log-probability of each response, whole and with its end."""

    def __init__(self, target: Any, target_processor: Any, start: Any, start_processor: Any, *, root: Path) -> None:
        """Hold the target, the model that sampled, and the folder of the images."""
        self._models, self._root = ((target, target_processor), (start, start_processor)), root
        self._shared: list[bool] = []

    def __call__(self, items: Sequence[Sampled]) -> list[list[float]]:
        """Compute h of each response; 0 where one has no words, which is never drawn."""
        spoken = [[text for text in item.responses if text.strip()] for item in items]
        rows = [self._read(item, texts) for item, texts in zip(items, spoken, strict=True) if texts]
        if not rows:
            return [[0.0] * len(item.responses) for item in items]
        target, start = ([iter(own) for own in self._logps(number, rows)] for number in range(len(self._models)))
        pairs = iter(zip(target, start, strict=True))
        found = []
        for item, texts in zip(items, spoken, strict=True):
            mine, other = next(pairs) if texts else (iter(()), iter(()))
            found.append([next(mine) - next(other) if text.strip() else 0.0 for text in item.responses])
        return found

    def _read(self, item: Sampled, texts: list[str]) -> ListRow:
        turn = Message(role="user", content=[{"type": "image"}, {"type": "text", "text": item.question.prompt}])
        image = load_image(item.question.image, root=self._root)
        return ListRow(item.question.id, [image], [turn], texts, [0.0] * len(texts), sampled=True)

    def _logps(self, number: int, rows: Sequence[ListRow]) -> list[list[float]]:
        model, processor = self._models[number]
        encoded, pad = [encode_row(processor, row) for row in rows], processor.tokenizer.pad_token_id
        if len(self._shared) == number:
            self._shared.append(probe_rows(model, encoded[:2], pad_token_id=pad).shared)
        found = score_responses(model, encoded, pad_token_id=pad, shared=self._shared[number])
        return [[float(tokens.double().sum()) for tokens in prompt] for prompt in found]

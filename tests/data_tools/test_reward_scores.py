"""Sampled responses that a reward model scores: its numbers, silent responses, and pairs by the command."""

from pathlib import Path

import pytest

from data_tools.reward_scores import RewardScorer
from data_tools.sample_pairs import main
from data_tools.scoring import Sampled
from mmalign.data.datasets import load_rows
from mmalign.data.reward_prompts import RewardPrompts
from mmalign.data.rows import read_pair
from mmalign.engine.rewards import RewardModel
from mmalign.evaluation.answers import Question
from mmalign.models.load import load_mllm
from mmalign.options.rows import WordingOptions
from tests.engine.test_rewards import plain_reward


def test_scores_keep_their_places(tiny_llava_dir: Path, photos: Path, tmp_path: Path) -> None:
    model, processor = load_mllm(str(tiny_llava_dir))
    scorer = RewardScorer(RewardModel(model, RewardPrompts(processor, WordingOptions())), image_root=photos)
    texts = [["a dog", "", "a cat"], ["  "], ["red"]]
    items = [Sampled(Question(str(i), f"{i}.png", "what do you see"), None, None, responses) for i, responses in enumerate(texts)]
    found = scorer(items, folder=tmp_path)
    assert [[score is None for score in scores] for scores in found] == [[False, True, False], [True], [False]]
    alone = [scorer([Sampled(items[0].question, None, None, [text])], folder=tmp_path)[0][0] for text in ("a dog", "a cat")]
    assert [found[0][0], found[0][2]] == pytest.approx(alone, abs=1e-5)


def test_pairs_carry_the_rewards(tiny_llava_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(photos), "--prompts", "what do you see", "--model", str(tiny_llava_dir), "--scorer", "reward", "--max-new-tokens", "6"]
    assert main([*words, "--out", str(tmp_path / "refused")]) == 2
    assert "--scorer reward and --labeler MODEL go together" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "out"), "--labeler", str(tiny_llava_dir)]) == 0
    model, processor = load_mllm(str(tiny_llava_dir))
    rows = list(load_rows(tmp_path / "out" / "pairs"))
    assert rows
    for row in rows:
        pair = read_pair(row, index=0)
        expected = [plain_reward(model, processor, pair, text, WordingOptions()) for text in (pair.chosen, pair.rejected)]
        assert [row["score_chosen"], row["score_rejected"]] == pytest.approx(expected, abs=2e-5)
        assert row["score_chosen"] > row["score_rejected"]

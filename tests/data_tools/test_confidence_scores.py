"""Sampled responses that a model's own P(yes) scores: by a plain forward, silent responses, and pairs by the command."""

from pathlib import Path

import pytest
import torch

from data_tools.confidence_scores import ConfidenceScorer
from data_tools.sample_pairs import main
from data_tools.scoring import Sampled
from data_tools.step_values import AskedValues, answer_tokens, asking
from mmalign.data.datasets import load_rows
from mmalign.data.images import load_image
from mmalign.evaluation.answers import Question
from mmalign.models.load import load_mllm

CHECK = "look: {response} yes or no"


def plain_confidence(folder: Path, image: Path, response: str, *, check: str) -> float:
    """The share of yes among yes and no as the first token of an answer, by stock code."""
    model, processor = load_mllm(str(folder))
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": check.replace("{response}", response)}]}
    written = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    with torch.no_grad():
        logits = model(**processor(text=written, images=load_image(image.name, root=image.parent), return_tensors="pt")).logits[0, -1]
    yes, no = answer_tokens(processor, ("yes", "Yes")), answer_tokens(processor, ("no", "No"))
    return float(logits[[*yes, *no]].softmax(-1)[: len(yes)].sum())


def test_scores_are_chances_in_their_places(tiny_llava_dir: Path, photos: Path, tmp_path: Path) -> None:
    texts = [["a red dog.", "", "two cats."], ["  "], ["a red dog."]]
    items = [Sampled(Question(str(i), f"{i}.png", "what do you see"), None, None, responses) for i, responses in enumerate(texts)]
    scorer = ConfidenceScorer(AskedValues(*load_mllm(str(tiny_llava_dir)), turns=asking(CHECK)), image_root=photos)
    found = scorer(items, folder=tmp_path)
    for i, responses in enumerate(texts):
        for j, text in enumerate(responses):
            expected = plain_confidence(tiny_llava_dir, photos / f"{i}.png", text, check=CHECK) if text.strip() else None
            assert found[i][j] == (expected if expected is None else pytest.approx(expected, abs=1e-5))
    assert len({found[0][0], found[0][2], found[2][0]}) == 3


def test_the_model_itself_makes_pairs(tiny_llava_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(photos), "--prompts", "what do you see", "--model", str(tiny_llava_dir), "--max-new-tokens", "6"]
    assert main([*words, "--scorer", "mllm", "--labeler", str(tiny_llava_dir), "--check", CHECK, "--out", str(tmp_path / "other")]) == 2
    assert "--check is of --scorer confidence" in capsys.readouterr().err
    assert main([*words, "--scorer", "confidence", "--check", "is it true", "--out", str(tmp_path / "no_place")]) == 2
    assert "expected a question with {response}" in capsys.readouterr().err
    assert main([*words, "--scorer", "confidence", "--check", CHECK, "--out", str(tmp_path / "out")]) == 0
    rows = list(load_rows(tmp_path / "out" / "pairs"))
    assert rows
    for row in rows:
        image = tmp_path / "image.png"
        image.write_bytes(row["images"][0]["bytes"])
        for name in ("chosen", "rejected"):
            expected = plain_confidence(tiny_llava_dir, image, row[name][0]["content"], check=CHECK)
            assert row[f"score_{name}"] == pytest.approx(expected, abs=1e-5)
        assert row["score_chosen"] > row["score_rejected"]

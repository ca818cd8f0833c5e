"""Sampled responses that a contrastive model scores: its cosines, silent responses, and pairs by the command."""

from pathlib import Path

import pytest
import torch

from data_tools.clip_scores import ClipScorer
from data_tools.sample_pairs import main
from data_tools.scoring import Sampled
from mmalign.data.datasets import load_rows
from mmalign.data.images import load_image
from mmalign.data.rows import read_pair
from mmalign.difficulty.contrastive import score_contrastive
from mmalign.evaluation.answers import Question
from mmalign.models.load import load_clip
from tests.tiny_classifiers import save_tiny_clip


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return save_tiny_clip(tmp_path / "clip", ["a red dog sits.", "two cats"], max_positions=24)


def test_scores_are_cosines_in_their_places(clip: Path, photos: Path, tmp_path: Path) -> None:
    """A response of two sentences has their mean, as stock features give them."""
    model, processor = load_clip(str(clip))
    texts = [["a red dog sits. two cats.", "", "two cats."], ["  "], ["a red dog sits."]]
    items = [Sampled(Question(str(i), f"{i}.png", "what do you see"), None, None, responses) for i, responses in enumerate(texts)]
    found = ClipScorer(model, processor, image_root=photos)(items, folder=tmp_path)

    def cosine(number: int, text: str) -> float:
        inputs = processor(text=[text], images=[load_image(f"{number}.png", root=photos)], return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs)
        return torch.cosine_similarity(out.image_embeds, out.text_embeds).item()

    first, second = cosine(0, "a red dog sits."), cosine(0, "two cats.")
    assert found[0] == [pytest.approx((first + second) / 2, abs=1e-5), None, pytest.approx(second, abs=1e-5)]
    assert found[1:] == [[None], [pytest.approx(cosine(2, "a red dog sits."), abs=1e-5)]]
    assert first != pytest.approx(second, abs=1e-4)
    assert ClipScorer(model, processor, image_root=photos)(items[1:2], folder=tmp_path) == [[None]]


def test_pairs_are_ordered_by_the_contrastive_gap(
    clip: Path, tiny_llava_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(photos), "--prompts", "what do you see", "--model", str(tiny_llava_dir), "--scorer", "clip", "--max-new-tokens", "6"]
    assert main([*words, "--out", str(tmp_path / "refused")]) == 2
    assert "--scorer clip and --labeler MODEL go together" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "no_clip"), "--labeler", str(tiny_llava_dir)]) == 2
    assert "expected a contrastive model such as CLIPModel" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "out"), "--labeler", str(clip)]) == 0
    rows = list(load_rows(tmp_path / "out" / "pairs"))
    assert rows
    model, processor = load_clip(str(clip))
    for row in rows:
        ((gap, _),) = score_contrastive(model, processor, [read_pair(row, index=0)])
        assert row["score_chosen"] - row["score_rejected"] == pytest.approx(gap, abs=1e-5)
        assert gap > 0

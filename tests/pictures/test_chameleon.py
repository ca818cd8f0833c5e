"""Chameleon: it learns from pictures that stock Chameleon bars from its logits, and none can be shown."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from mmalign.cli import main
from mmalign.data.encode import EncodedPrompt
from mmalign.data.pictures import encode_caption, encode_pictures, leave_caption_out
from mmalign.engine.batch import collate_prompts
from mmalign.engine.choosing import Greedy
from mmalign.engine.drawing import draw_pictures
from mmalign.engine.logps import compute_response_logps
from mmalign.errors import UserError
from mmalign.models.picture_tokens import find_picture_tokens
from tests.commands.training import read_log, train
from tests.pictures.conftest import picture_lists, picture_pairs, save_pictures
from tests.tiny_families import chameleon
from tests.tiny_models import random_image, random_text

CAPTIONS = [random_text(i, 2 + 2 * i) for i in range(3)]
LAYOUTS: dict[str, dict[str, Any]] = {"plain": {"shared": False}, "shared": {"shared": True}, "packed": {"shared": True, "row_tokens": 90}}


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    return chameleon()


@pytest.fixture(scope="module")
def chameleon_dir(built: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "chameleon"
    for part in built:
        part.save_pretrained(folder)
    return folder


def visual_words(model: Any) -> list[int]:
    """Of each code, whose digits are letters in the words' names."""
    names = ["IMGIMG" + str(code).translate(str.maketrans("0123456789", "ABCDEFGHIJ")) + "Z" for code in range(24)]
    return [model.config.vocabulary_map[name] for name in names]


def stock_logps(model: Any, processor: Any, caption: str, codes: list[int]) -> Tensor:
    """Stock Chameleon's states of the row of words, and its head, before it bars picture tokens."""
    words = visual_words(model)
    prompt = processor(text=[caption], return_tensors="pt")["input_ids"][0].tolist()
    ids = torch.tensor([[*prompt, processor.image_start_token_id, *[words[code] for code in codes]]])
    logits = model.lm_head(model.model(input_ids=ids).last_hidden_state[0, len(prompt) : -1])
    return logits[:, words].log_softmax(-1)[torch.arange(16), codes]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_are_those_of_what_stock_chameleon_bars(built: tuple[Any, Any], layout: str) -> None:
    model, processor = built
    tokens = find_picture_tokens(model)
    codes = torch.randint(24, (3, 2, 16), generator=torch.Generator().manual_seed(0)).tolist()
    encoded = [encode_pictures(processor, caption, pair, form=tokens) for caption, pair in zip(CAPTIONS, codes, strict=True)]
    expected = [stock_logps(model, processor, caption, one) for caption, pair in zip(CAPTIONS, codes, strict=True) for one in pair]
    outcome = compute_response_logps(model, collate_prompts(encoded, pad_token_id=0, **LAYOUTS[layout]))
    gradients = []
    for sums in (torch.stack([value.sum() for value in expected]), outcome.sums):
        model.zero_grad()
        (sums * torch.linspace(-1.0, 1.0, 6)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    for one, other in zip(outcome.per_response(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert (gradients[1] - gradients[0]).norm() < 1e-5 * gradients[0].norm()
    # Behind the pass, words are all that the model says again.
    logits = model(input_ids=torch.tensor([[1, 5, 6]])).logits
    assert torch.equal(logits[..., visual_words(model)], torch.full((1, 3, 24), torch.finfo(torch.float32).min))


def test_codes_are_those_of_stock_chameleon(built: tuple[Any, Any]) -> None:
    model, processor = built
    tokens = find_picture_tokens(model)
    pixels = tokens.read_pixels(processor, [random_image(0), random_image(1, (20, 50))])
    assert pixels.shape == (2, 3, 32, 32)
    codes = tokens.tokenize(pixels)
    assert torch.equal(torch.tensor(visual_words(model))[codes], model.get_image_tokens(pixels).long())
    assert len(codes.unique()) > 2


def test_the_sampler_draws_what_is_barred(built: tuple[Any, Any]) -> None:
    """Guided towards captions of different length; without one, begin token and begin of the picture alone are left."""
    model, processor = built
    tokens = find_picture_tokens(model)
    ids = [encode_caption(processor, caption, tokens) for caption in CAPTIONS]
    without = [leave_caption_out(processor, one, tokens) for one in ids]
    assert without == [[1, processor.image_start_token_id]] * 3
    drawn = draw_pictures(
        model, tokens, ids, without=without, decoding=Greedy(), seeds=[0] * 3, guidance=3.0, pad_token_id=0
    )  # fmt: skip
    for prompt, bare, codes in zip(ids, without, drawn, strict=True):
        with torch.no_grad():
            c, u = (tokens.own_logits(torch.tensor([one]), codes[None] + tokens.first) for one in (prompt, bare))
        assert torch.equal((u + 3 * (c - u)).argmax(-1), codes)


def test_pairs_lists_and_captions_train(built: tuple[Any, Any], chameleon_dir: Path, tmp_path: Path) -> None:
    """The first loss of captions is worked out from stock's states; what is saved is stock."""
    model, processor = built
    tokens, pairs = find_picture_tokens(model), picture_pairs(8)
    rows = [{"caption": row["caption"], "image": row["image_chosen"]} for row in pairs]
    codes = tokens.tokenize(tokens.read_pixels(processor, [row["image"] for row in rows])).tolist()
    with torch.no_grad():
        logps = [stock_logps(model, processor, row["caption"], one).mean() for row, one in zip(rows, codes, strict=True)]
    words = ["--pictures", "--batch-size", "8"]
    assert (
        train(chameleon_dir, save_pictures(tmp_path / "a.parquet", rows), tmp_path / "a", *words, "--caption-dropout", "0", kind="sft") == 0
    )
    assert read_log(tmp_path / "a")[0]["loss"] == pytest.approx(-float(sum(logps)) / 8, abs=1e-4)
    for kind, data in (("preference", pairs), ("listwise", picture_lists(8))):
        assert train(chameleon_dir, save_pictures(tmp_path / f"{kind}.parquet", data), tmp_path / kind, *words, kind=kind) == 0
        log = read_log(tmp_path / kind)
        assert log[-1]["rewards/margin"] > log[0]["rewards/margin"]
    trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "preference")
    with torch.no_grad():
        sums = [
            [stock_logps(one, processor, pairs[0]["caption"], tokens.tokenize(tokens.read_pixels(processor, [image]))[0].tolist()).sum()
             for image in (pairs[0]["image_chosen"], pairs[0]["image_rejected"])]
            for one in (model, trained)
        ]  # fmt: skip
    assert sums[1][0] - sums[1][1] > sums[0][0] - sums[0][1]


def test_an_adapter_has_no_place(chameleon_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = save_pictures(tmp_path / "a.parquet", picture_pairs(2))
    assert train(chameleon_dir, rows, tmp_path / "out", "--pictures", "--lora-rank", "2", kind="preference") == 2
    assert "has no language_model of its own; leave --lora-rank out" in capsys.readouterr().err


def test_words_are_not_scored(built: tuple[Any, Any]) -> None:
    text = EncodedPrompt([1, 5], [[6, 7]], [[True, True]], {}, {})
    with pytest.raises(UserError, match="its words can't be scored; use --pictures"):
        compute_response_logps(built[0], collate_prompts([text], pad_token_id=0))


def test_pictures_that_can_not_be_shown_are_not_drawn(chameleon_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = save_pictures(tmp_path / "a.parquet", [{"caption": "a dog"}])
    assert main(["sample-images", str(captions), "--model", str(chameleon_dir), "--out", str(tmp_path / "out")]) == 2
    assert "no decoder of the picture tokens of ChameleonForConditionalGeneration" in capsys.readouterr().err

"""Every supported family: the engine's rows against the model's own plain forward, answers against plain ``generate``."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.data.encode import EncodedPrompt, encode_questions, encode_responses
from mmalign.data.rows import Message, read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.generation import generate
from mmalign.engine.logps import compute_response_logps
from mmalign.engine.prefix import probe_prefix
from mmalign.engine.probe import own_logps, probe_rows
from mmalign.engine.views import Views, encode_views, split_views
from mmalign.losses.image_terms import CHOSEN, REJECTED, Cell, ImageKind, ResponseKind
from mmalign.options.rows import WeakenOptions
from tests.tiny_families import FAMILIES, PLAIN_PROMPTS, PLAIN_ROWS
from tests.tiny_models import pair_rows, random_image, random_text

# Measured: 1e-6 and less, gradients 4e-6 of their norm; a wrong mask or position moves log-probabilities by 0.03 to 1.4.
TOLERANCE = {"rtol": 0, "atol": 1e-5}
_IMAGES: tuple[ImageKind, ...] = ("own", "weakened", "other", "none")
_RESPONSES: tuple[ResponseKind, ...] = ("chosen", "rejected", "other")
LAYOUTS: dict[str, dict[str, Any]] = {"plain": {"shared": False}, "shared": {"shared": True}, "packed": {"shared": True, "row_tokens": 200}}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    return request.param, *FAMILIES[request.param]()


def encode(processor: Any, num_rows: int = 3) -> list[EncodedPrompt]:
    """Pairs, and one prompt with three responses."""
    rows = [read_pair(raw, index=i) for i, raw in enumerate(pair_rows(num_rows))]
    return [
        encode_responses(
            processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected, *(["yes", "no dog"] if i == 1 else [])]
        )
        for i, row in enumerate(rows)
    ]


def gradients(model: Any, sums: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    # Unequal weights, so that swapped responses can't cancel.
    (sums * torch.linspace(-1.0, 1.0, len(sums))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


Plain = tuple[list[EncodedPrompt], list[Tensor], dict[str, Tensor]]


@pytest.fixture(scope="module")
def plain_forward(family: tuple[str, Any, Any]) -> Plain:
    """Prompts, the model's own log-probabilities of their responses, and gradients through them."""
    _, model, processor = family
    encoded = encode(processor)
    expected = [value for prompt in encoded for value in own_logps(model, prompt)]
    return encoded, [value.detach() for value in expected], gradients(model, torch.stack([value.sum() for value in expected]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_and_gradients_equal_the_plain_forward(family: tuple[str, Any, Any], plain_forward: Plain, layout: str) -> None:
    name, model, _ = family
    if name in PLAIN_ROWS and layout != "plain":
        pytest.skip(f"responses of {name} can't share a row: test_families_that_cannot_share_are_found")
    encoded, expected, plain = plain_forward
    outcome = compute_response_logps(model, collate_prompts(encoded, pad_token_id=0, **LAYOUTS[layout]))
    got = gradients(model, outcome.sums)
    for a, b in zip(outcome.per_response(), expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    assert got.keys() == plain.keys()
    norm = torch.stack([value.norm() for value in plain.values()]).norm()
    error = torch.stack([(got[key] - plain[key]).norm() for key in plain]).norm()
    assert error < 1e-5 * norm


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_cell_of_images_and_responses_equals_the_plain_forward(family: tuple[str, Any, Any], layout: str) -> None:
    """Own, weakened, another and no image, each with three responses, in one batch; some objectives read all of them."""
    name, model, processor = family
    if name in PLAIN_ROWS and layout != "plain":
        pytest.skip(f"responses of {name} can't share a row")
    # PaliGemma's processor reads no text without images.
    images = [image for image in _IMAGES if not (name.startswith("paligemma") and image == "none")]
    views = Views.of(Cell(image, response) for image in images for response in _RESPONSES)
    prompts = []
    for number, raw in enumerate(pair_rows(2)):
        raw |= {"images_other": [random_image(70 + number, (56, 32)) for _ in raw["images"]], "chosen_other": f"a ball {number}"}
        row = read_pair(raw, index=number, with_other=True)
        prompts.append(encode_views(processor, row, views, WeakenOptions(weaken="crop"), answer_end="token", max_length=None))
    ordered = [row[view] for view in range(len(images)) for row in prompts]
    with torch.no_grad():
        outcome = compute_response_logps(model, collate_prompts(ordered, pad_token_id=0, **LAYOUTS[layout]))
        pair_tokens, pair, reference, cells = split_views(views, outcome, outcome, pairs=2)
        for cell in views.cells:
            image, response = _IMAGES.index(cell.image), _RESPONSES.index(cell.response)
            expected = [own_logps(model, row[image].only(response))[0] for row in prompts]
            got = cells[cell].tokens.split(cells[cell].policy.token_logps)  # type: ignore[arg-type]
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, **TOLERANCE)
            if cell in (CHOSEN, REJECTED):
                torch.testing.assert_close(
                    pair.sums[_RESPONSES.index(cell.response) :: 2], torch.stack([value.sum() for value in expected])
                )
    assert reference is not None
    assert pair_tokens.num_responses == 4
    chosen = [cells[Cell(image, "chosen")].policy.sums for image in images]
    assert all((chosen[0] - other).abs().max() > 1e-3 for other in chosen[1:])


def test_the_image_matters(family: tuple[str, Any, Any]) -> None:
    """Else a wrong image would go unseen here."""
    _, model, processor = family
    row = read_pair(pair_rows(1)[0], index=0)
    encoded = [encode_responses(processor, images=[random_image(i)], prompt=row.prompt, responses=[row.chosen]) for i in range(2)]
    with torch.no_grad():
        (first,), (second,) = (own_logps(model, prompt) for prompt in encoded)
    assert (first - second).abs().max() > 1e-3


def test_families_that_cannot_share_are_found(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    choice = probe_rows(model, encode(processor, 2), pad_token_id=0)
    assert choice.shared == (name not in PLAIN_ROWS), choice.reason


def questions(processor: Any) -> list[EncodedPrompt]:
    """Two images of different size, with three questions and one, of different lengths."""
    texts = [["dog", "is there a cat", "what do you see on the table"], ["is there a star on the left"]]
    prompts = [[[Message(role="user", content=_content(text))] for text in group] for group in texts]
    return [
        encode_questions(processor, images=[random_image(i, size)], prompts=group)
        for i, (group, size) in enumerate(zip(prompts, [(40, 32), (32, 56)], strict=True))
    ]


def _content(text: str) -> list[dict[str, Any]]:
    return [{"type": "image"}, {"type": "text", "text": text}]


def test_answers_equal_plain_generate(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    encoded = questions(processor)
    choice = probe_prefix(model, encoded[0], pad_token_id=0)
    assert choice.shared == (name not in PLAIN_PROMPTS), choice.reason
    got = generate(model, encoded, max_new_tokens=6, pad_token_id=0, shared=choice.shared)
    rows = generate(model, encoded, max_new_tokens=6, pad_token_id=0, shared=False)
    for i, prompt in enumerate(encoded):
        for j in range(len(prompt.responses)):
            ids = torch.tensor([[*prompt.prefix_ids, *prompt.responses[j]]])
            types = {key: torch.tensor([[*value, *[0] * len(prompt.responses[j])]]) for key, value in prompt.token_types.items()}
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types, **prompt.images}
            out = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
            new = out[0, ids.shape[1] :].tolist()
            expected = new[: new.index(2)] if 2 in new else new
            assert [answer.ids for answer in got[i][j]] == [expected]
            assert [answer.ids for answer in rows[i][j]] == [expected]


def test_questions_are_tokenised_as_one_by_one(family: tuple[str, Any, Any]) -> None:
    _, _, processor = family
    image = random_image(3)
    texts = [random_text(i, 2 + i) for i in range(3)]
    together = encode_questions(processor, images=[image], prompts=[[Message(role="user", content=_content(text))] for text in texts])
    for text, rest in zip(texts, together.responses, strict=True):
        prompt = [Message(role="user", content=_content(text))]
        alone = encode_responses(processor, images=[image], prompt=prompt, responses=["yes"])
        assert [*together.prefix_ids, *rest] == alone.prefix_ids

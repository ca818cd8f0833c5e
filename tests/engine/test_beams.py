"""Beam search: two tables by hand, every answer of a model of three tokens, and stock ``generate`` on families."""

import itertools
import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.beams import Beams, Search
from mmalign.engine.choosing import Greedy
from mmalign.engine.generation import Generated, generate
from tests.engine.test_families import questions
from tests.tiny_families import FAMILIES, PLAIN_PROMPTS

A, B, C, D, E = range(5)
TABLE = {(): {A: 0.6, B: 0.4}, (A,): {C: 0.4, D: 0.35, E: 0.25}, (B,): {C: 0.9, D: 0.1}}


def search_table(beams: Beams) -> Search:
    search = Search(beams, frozenset())
    for step in range(2):
        candidates = [
            (live.total + math.log(p), number, token, math.log(p))
            for number, live in enumerate(search.live)
            for token, p in TABLE[live.ids].items()
        ]
        search.extend(candidates, last=step == 1)
    return search


def test_two_steps_by_hand() -> None:
    """The likeliest first token leads away from the likeliest answer; 0.6 x 0.4 = 0.24 against 0.4 x 0.9 = 0.36."""
    search = search_table(Beams(2))
    assert search.done
    assert [one.ids for _, one in search.found] == [(B, C), (A, C)]
    assert [score for score, _ in search.found] == pytest.approx([-1.021651247532, -1.427116355640], abs=1e-12)
    # The implicit reward of both, beta 0.1, by a reference that gives every one of two tokens a half.
    credits = [0.1 * sum(logp - math.log(0.5) for logp in one.logps) for _, one in search.found]
    assert credits == pytest.approx([0.036464311359, -0.004082199452], abs=1e-12)


def test_the_length_penalty_by_hand() -> None:
    """p(end) = 0.3 at once, against 0.7 x 0.5 x 0.9 in three tokens: the sums prefer the first, means per token the second."""
    short, long = math.log(0.3), math.log(0.7 * 0.5 * 0.9)
    for penalty, best in ((0.0, (A, B, E)), (1.0, (A, B, E)), (-1.0, (E,))):
        search = Search(Beams(2, penalty), frozenset({E}))
        search.extend([(math.log(0.7), 0, A, math.log(0.7)), (math.log(0.3), 0, E, math.log(0.3))], last=False)
        assert (search.live[0].ids, search.found[0][1].ids) == ((A,), (E,))
        search.extend([(math.log(0.35), 0, B, math.log(0.5)), (math.log(0.35), 0, C, math.log(0.5))], last=False)
        search.extend([(long, 0, E, math.log(0.9)), (math.log(0.2), 1, E, math.log(0.2 / 0.35))], last=True)
        assert search.found[0][1].ids == best
        assert search.found[0][0] == pytest.approx(max(short, long / 3**penalty))


def test_it_stops_when_nothing_live_can_win() -> None:
    search = Search(Beams(2), frozenset({E}))
    search.extend([(-0.5, 0, E, -0.5), (-1.0, 0, A, -1.0), (-3.0, 0, B, -3.0)], last=False)
    assert not search.done
    search.extend([(-1.2, 0, E, -0.2), (-1.3, 0, B, -0.3), (-1.4, 0, C, -0.4)], last=False)
    assert search.done, "both that were found beat -1.3, and sums only fall"
    assert [one.ids for _, one in search.found] == [(E,), (A, E)]


def test_equal_sums_go_by_beam_and_token() -> None:
    search = Search(Beams(2), frozenset())
    assert search.extend([(-1.0, 0, D, -1.0), (-1.0, 0, B, -1.0), (-1.0, 0, C, -1.0)], last=False) == [0, 0]
    assert [one.ids for one in search.live] == [(B,), (C,)]


@pytest.fixture(scope="module")
def small_llama() -> LlamaForCausalLM:
    """Three tokens, of which the last ends an answer."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.ndim > 1 else 1.0)
    return model


PROMPT = EncodedPrompt(
    prefix_ids=[1, 0], responses=[[1], [0, 0, 1]], scored=[], token_types={}, images={}, response_types=[{}, {}]
)  # fmt: skip
LENGTH = 4


@torch.no_grad()
def every_answer(model: LlamaForCausalLM, rest: list[int], *, penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """All that can be said in four tokens, scored by plain forwards, the best first."""
    scored = []
    for count in range(1, LENGTH + 1):
        for ids in itertools.product(range(3), repeat=count):
            if 2 in ids[:-1] or (count < LENGTH and ids[-1] != 2):
                continue
            row = torch.tensor([[*PROMPT.prefix_ids, *rest, *ids]])
            logps = model(row).logits[0].log_softmax(-1)
            start = len(PROMPT.prefix_ids) + len(rest)
            scored.append((sum(float(logps[start + i - 1, token]) for i, token in enumerate(ids)) / count**penalty, ids))
    return sorted(scored, reverse=True)


def whole(answer: Generated) -> tuple[int, ...]:
    return (*answer.ids, *([] if answer.end is None else [answer.end]))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_of_all_answers(small_llama: LlamaForCausalLM, penalty: float) -> None:
    beams = Beams(3**LENGTH, penalty, answers=5)
    (got,) = generate(small_llama, [PROMPT], max_new_tokens=LENGTH, pad_token_id=0, decoding=beams)
    for rest, answers in zip(PROMPT.responses, got, strict=True):
        expected = every_answer(small_llama, rest, penalty=penalty)[:5]
        assert [whole(answer) for answer in answers] == [ids for _, ids in expected]
        for answer, (score, ids) in zip(answers, expected, strict=True):
            assert answer.model_logps is not None
            assert sum(answer.model_logps) / len(ids) ** penalty == pytest.approx(score, abs=1e-5)
    greedy = generate(small_llama, [PROMPT], max_new_tokens=LENGTH, pad_token_id=0, decoding=Greedy())[0]
    assert any(whole(one) != whole(best) for (one,), (best, *_) in zip(greedy, got, strict=True)), "a search that is worth it"


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_stock_beams(name: str, penalty: float) -> None:
    """Each question alone, by the model's own ``generate``; ended and cut answers."""
    model, processor = FAMILIES[name]()
    encoded = questions(processor)
    # Random models hardly ever end: every second token ends an answer.
    model.generation_config.eos_token_id = list(range(2, 300, 2))
    beams = Beams(5, penalty)
    got = generate(model, encoded, max_new_tokens=8, pad_token_id=0, decoding=beams, shared=name not in PLAIN_PROMPTS)
    rows = generate(model, encoded, max_new_tokens=8, pad_token_id=0, decoding=beams, shared=False)
    ended = 0
    for i, prompt in enumerate(encoded):
        for j in range(len(prompt.responses)):
            expected = stock(model, prompt, j, penalty)
            assert [whole(one) for one in got[i][j]] == [expected]
            assert [whole(one) for one in rows[i][j]] == [expected]
            ended += expected[-1] in model.generation_config.eos_token_id
    # A mean per token is best where the answer is long: there, none may have ended.
    assert ended or penalty


def stock(model: Any, prompt: EncodedPrompt, number: int, penalty: float) -> tuple[int, ...]:
    rest = prompt.responses[number]
    ids = torch.tensor([[*prompt.prefix_ids, *rest]])
    types = {key: torch.tensor([[*value, *[0] * len(rest)]]) for key, value in prompt.token_types.items()}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types, **prompt.images}
    options = {"num_beams": 5, "length_penalty": penalty, "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    new = model.generate(**inputs, **options)[0, ids.shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    last = next((i for i, token in enumerate(new) if token in ends), len(new) - 1)
    return tuple(new[: last + 1])


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="beams is 1, answers 1; expected 2 or more beams"):
        Beams(1)
    with pytest.raises(ValueError, match="beams is 4, answers 5"):
        Beams(4, answers=5)

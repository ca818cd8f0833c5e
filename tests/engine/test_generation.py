"""The sampler on every family: the same answers whatever the batch, log-probabilities of the plain forward, draws of a plain loop."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.beams import Beams
from mmalign.engine.choosing import Decoding, Given, Greedy, Sampling, answer_seeds
from mmalign.engine.generation import Generated, generate
from mmalign.engine.prefix import run_prefixes
from mmalign.engine.probe import own_logps
from tests.engine.test_families import questions
from tests.tiny_families import FAMILIES, PLAIN_PROMPTS

# No top k: of two tokens that are equally likely but for rounding, it keeps now this one, now that.
SAMPLING = Sampling(temperature=1.5, top_p=0.95, answers=3)
SEEDS = [[11, 12, 13], [14]]
END = 2


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[str, Any, list[EncodedPrompt]]:
    model, processor = FAMILIES[request.param]()
    return request.param, model, questions(processor)


def sample(
    name: str, model: Any, encoded: Sequence[EncodedPrompt], seeds: Sequence[Sequence[int]] = SEEDS, **options: Any
) -> list[list[list[Generated]]]:
    chosen = {"shared": name not in PLAIN_PROMPTS, "decoding": SAMPLING, "max_new_tokens": 6, **options}
    return generate(model, encoded, pad_token_id=0, seeds=seeds, **chosen)


def ids(answers: Sequence[Sequence[Sequence[Generated]]]) -> list[list[list[list[int]]]]:
    return [[[one.ids for one in question] for question in prompt] for prompt in answers]


def test_an_answer_is_the_same_whatever_the_batch(family: tuple[str, Any, list[EncodedPrompt]]) -> None:
    """Alone, beside others, over a shared prompt or as a whole row, and as the first of fewer answers."""
    name, model, encoded = family
    together = ids(sample(name, model, encoded))
    assert ids(sample(name, model, encoded[::-1], SEEDS[::-1])) == together[::-1]
    assert ids(sample(name, model, encoded, shared=False)) == together
    for i, prompt in enumerate(encoded):
        for j, seed in enumerate(SEEDS[i]):
            (((*alone,),),) = ids(sample(name, model, [prompt.only(j)], [[seed]], decoding=replace(SAMPLING, answers=2)))
            assert alone == together[i][j][:2]
    flat = [tuple(answer) for prompt in together for question in prompt for answer in question]
    assert len(set(flat)) > len(flat) // 2, "answers of a question differ, and so do questions"


def test_log_probabilities_are_those_of_the_model(family: tuple[str, Any, list[EncodedPrompt]]) -> None:
    """Of the plain forward on prompt and answer, at temperature 1 and with no token ruled out."""
    name, model, encoded = family
    places = {model.config.image_token_id, *(getattr(model.config, "visual_indicator_token_ids", None) or [])}
    for shared in {name not in PLAIN_PROMPTS, False}:
        for prompt, questions_of in zip(encoded, sample(name, model, encoded, shared=shared), strict=True):
            for rest, types, answers in zip(prompt.responses, prompt.response_types, questions_of, strict=True):
                for answer in answers:
                    said = [*answer.ids, *([] if answer.end is None else [answer.end])]
                    assert answer.model_logps is not None
                    assert len(answer.model_logps) == len(said)
                    if places & {*said}:
                        continue  # a whole row would show an image there
                    torch.testing.assert_close(
                        torch.tensor(answer.model_logps), plain_logps(name, model, prompt, rest, types, said), rtol=0, atol=1e-5
                    )


def plain_logps(name: str, model: Any, prompt: EncodedPrompt, rest: list[int], types: dict[str, list[int]], said: list[int]) -> Any:
    kind = int("paligemma" in name)
    whole = EncodedPrompt(
        prefix_ids=[*prompt.prefix_ids, *rest],
        responses=[said],
        scored=[[True] * len(said)],
        token_types={key: [*values, *types.get(key, [0] * len(rest))] for key, values in prompt.token_types.items()},
        images=prompt.images,
        num_images=prompt.num_images,
        # What PaliGemma says is read from left to right.
        response_types=[{key: [kind] * len(said) for key in prompt.token_types}],
    )
    with torch.no_grad():
        return own_logps(model, whole)[0]


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "gemma3", "lfm2-vl"])
def test_draws_equal_a_plain_loop(name: str) -> None:
    """One whole forward per token, without cache or batch; the first question's second answer."""
    model, processor = FAMILIES[name]()
    encoded = questions(processor)
    got = sample(name, model, encoded)[0][0][1]
    prompt = encoded[0]
    seed = answer_seeds(torch.tensor([SEEDS[0][0]]), 2)[1:]
    said: list[int] = []
    for step in range(6):
        row = [*prompt.prefix_ids, *prompt.responses[0], *said]
        types = {key: torch.tensor([[*v, *[0] * (len(row) - len(v))]]) for key, v in prompt.token_types.items()}
        mask = torch.ones(1, len(row), dtype=torch.long)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row]), attention_mask=mask, **types, **prompt.images, use_cache=False).logits[:, -1]
        said.append(int(SAMPLING.choose(logits, seed, step)))
        if said[-1] == END:
            break
    assert [*got.ids, *([] if got.end is None else [got.end])] == said


def test_rows_that_have_ended_are_run_no_longer() -> None:
    """Many tokens end an answer here; each answer is that of its question alone."""
    model, processor = FAMILIES["llava"]()
    encoded = [prompt.only(0) for prompt in questions(processor)]
    options = {"decoding": Sampling(answers=16), "max_new_tokens": 24, "ends": range(0, model.config.text_config.vocab_size, 8)}
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda model, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    together = [answer for prompt in sample("llava", model, encoded, [[3], [4]], **options) for answer in prompt[0]]
    hook.remove()
    lengths = [len(answer.tokens) for answer in together]
    # Behind the prompts and their last words.
    for step, rows in enumerate(sizes[2:], start=1):
        running = sum(length > step for length in lengths)
        assert running <= rows < 2 * running
    assert sizes[-1] < 8
    alone = [
        answer
        for prompt, seed in zip(encoded, (3, 4), strict=True)
        for answer in sample("llava", model, [prompt], [[seed]], **options)[0][0]
    ]
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        assert one.model_logps == pytest.approx(other.model_logps, abs=1e-5)


@pytest.mark.parametrize("name", ["llava", "lfm2-vl"])
def test_an_end_is_told_from_a_cut(name: str) -> None:
    """The model is told to end at the token that it says third."""
    model, processor = FAMILIES[name]()
    prompt = questions(processor)[1]
    whole = sample(name, model, [prompt], [[0]], decoding=Greedy())[0][0][0]
    assert (len(whole.ids), whole.end) == (6, None)
    third = whole.ids[2]
    model.generation_config.eos_token_id = [END, third]
    ended = sample(name, model, [prompt], [[0]], decoding=Greedy())[0][0][0]
    first = whole.ids.index(third)
    assert (ended.ids, ended.end) == (whole.ids[:first], third)
    assert ended.model_logps is not None
    assert whole.model_logps is not None
    assert ended.model_logps == pytest.approx(whole.model_logps[: first + 1], abs=1e-5)


@pytest.mark.parametrize("name", ["llava", "lfm2-vl"])
@pytest.mark.parametrize("decoding", [SAMPLING, Greedy(), Beams(3)], ids=["sampling", "greedy", "beams"])
def test_flags_that_a_checkpoint_is_published_with_change_no_answer(name: str, decoding: Decoding | Beams) -> None:
    """Neither which token is chosen nor its log-probability; what ends an answer is read from there, and stays."""
    model, processor = FAMILIES[name]()
    prompt = questions(processor)[1]
    plain = sample(name, model, [prompt], [[7]], decoding=decoding)[0][0]
    first = plain[0].ids[0]
    flags = {"repetition_penalty": 1.5, "suppress_tokens": [first], "forced_eos_token_id": END, "return_dict_in_generate": True}
    model.generation_config.update(**flags, do_sample=True, temperature=0.1, top_k=2)
    got = sample(name, model, [prompt], [[7]], decoding=decoding)[0][0]
    assert [answer.tokens for answer in got] == [answer.tokens for answer in plain]
    assert [answer.model_logps for answer in got] == [answer.model_logps for answer in plain]
    assert model.generation_config.repetition_penalty == 1.5


def test_prompts_are_read_once_and_asked_again(family: tuple[str, Any, list[EncodedPrompt]]) -> None:
    """Answers up to a token that is named, over what an earlier call may have left, with a question that grows; a prompt may have none."""
    name, model, encoded = family
    shared = name not in PLAIN_PROMPTS
    prefix = run_prefixes(model, encoded, pad_token_id=0) if shared else None
    whole = sample(name, model, encoded)
    again: list[Generated] = []
    for number in range(2):
        answer = whole[0][number][2]
        named = answer.tokens[2]
        first = answer.tokens.index(named)
        asked = [encoded[0].only(number), encoded[1].only(1)] if shared else [encoded[0].only(number)]
        got = sample(name, model, asked, [[SEEDS[0][number]], []], ends=[named], prefix=prefix)
        assert [len(questions_of) for questions_of in got] == [1, 0][: len(asked)]
        cut = got[0][0][2]
        assert (cut.ids, cut.end) == (answer.tokens[:first], named)
        again.append(cut)
    assert again[0].model_logps == pytest.approx(whole[0][0][2].model_logps[: len(again[0].tokens)], abs=1e-5)


def test_log_probabilities_of_given_tokens(family: tuple[str, Any, list[EncodedPrompt]]) -> None:
    """Those of two sampled answers' first tokens, asked for by name."""
    name, model, encoded = family
    whole = sample(name, model, encoded)
    for prompt, questions_of in zip(encoded, whole, strict=True):
        for number, (first, second, _) in enumerate(questions_of):
            given = Given([first.tokens[0], second.tokens[0]])
            got = sample(name, model, [prompt.only(number)], [[0]], decoding=given, max_new_tokens=1)[0][0]
            assert [one.tokens for one in got] == [first.tokens[:1], second.tokens[:1]]
            for one, expected in zip(got, (first, second), strict=True):
                assert one.model_logps == pytest.approx(expected.model_logps[:1], abs=1e-5)


def test_the_image_is_encoded_once_for_all_answers() -> None:
    model, processor = FAMILIES["llava"]()
    seen: list[int] = []
    hook = model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    lengths: list[tuple[int, ...]] = []
    text = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    encoded = questions(processor)
    try:
        sample("llava", model, encoded)
        sample("llava", model, encoded, shared=False)
    finally:
        hook.remove()
        text.remove()
    assert seen == [2, 2]
    # Prompts, then the questions' words, then twelve answers token by token.
    assert [rows for rows, _ in lengths[:3]] == [2, 4, 12]
    assert lengths[2] == (12, 1)

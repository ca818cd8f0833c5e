"""Online training against plain rows of what was sampled: loss, gradients, what each draw depends on, and answers that teach nothing."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.data.encode import encode_questions, image_token_ids
from mmalign.data.rows import read_question
from mmalign.methods.groups import GroupLists, GroupPairs, are_lists
from mmalign.methods.online import OnlineMethod
from mmalign.models.references import Reference
from mmalign.options.methods import OnlineLossOptions, OnlineOptions
from mmalign.rewards.groups import Group, Rewards
from tests.methods.test_mimic import assert_same_gradients, gradients
from tests.tiny_families import paligemma, qwen2_5_vl
from tests.tiny_models import QWEN3, build_tiny_llava, random_image, random_text


class WordReward:
    """1 where the number of words is odd, else 0; or their number. None where an answer begins with a letter of the second half."""

    columns: Sequence[str] = ()

    def __init__(self, *, counts: bool = False, picky: bool = False) -> None:
        self.counts, self.picky = counts, picky
        self.seen: list[Group] = []

    def check(self, raw: Any, *, index: int) -> None:
        """Anything goes."""

    def check_inputs(self) -> Any:
        """Nothing."""

    def score(self, text: str) -> float | None:
        if self.picky and text[:1] > "m":
            return None
        return float(len(text.split()) if self.counts else len(text.split()) % 2)

    def __call__(self, groups: Sequence[Group]) -> list[Rewards]:
        self.seen += groups
        return [[self.score(text) for text in group.responses] for group in groups]


def questions(count: int = 3) -> list[dict[str, Any]]:
    return [{"id": f"q{i}", "images": [random_image(i)], "prompt": random_text(i, 3 + i)} for i in range(count)]


def build(
    objective: str, reward: Any = None, *, models: Any = None, seed: int = 0, reference: Any = None, **options: Any
) -> tuple[OnlineMethod, Any]:
    model, processor = build_tiny_llava(scale=1.0) if models is None else models
    own = OnlineLossOptions(**{"objective": [objective], "reward": "answers", "samples": 4, "max_new_tokens": 6, **options})
    if are_lists(own.objective):
        learner: Any = GroupLists(processor, own)
    else:
        learner = GroupPairs(processor, own, reference=Reference(model, kind="copy", model=reference))
    return OnlineMethod(processor, own, learner=learner, reward=reward or WordReward(), seed=seed), model


def complete(method: OnlineMethod, model: Any, rows: list[dict[str, Any]], *, step: int = 0) -> dict[str, Any]:
    return method.complete(model, method.collate(rows), step=step)


def said(batch: dict[str, Any]) -> list[list[int]]:
    """Tokens of each response of a batch, in its order."""
    layout = batch["layout"]
    return [layout["target"][layout["response"] == number].tolist() for number in range(int(layout["repeats"].sum()))]


def plain_logps(model: Any, processor: Any, raw: dict[str, Any], ids: list[int]) -> Tensor:
    """The model's own forward on the stock processor's prompt with these tokens behind it."""
    row = read_question(raw, index=0)
    content = [{"type": "image"}, {"type": "text", "text": raw["prompt"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[row.images], return_tensors="pt", add_special_tokens=False)
    length, answer = inputs["input_ids"].shape[1], torch.tensor([ids])
    for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if key in inputs:
            behind = answer if key == "input_ids" else torch.full_like(answer, int(key == "attention_mask"))
            inputs[key] = torch.cat([inputs[key], behind], 1)
    logits = model(**inputs).logits[0, length - 1 : -1].float().log_softmax(-1)
    return logits.gather(-1, answer[0][:, None]).squeeze(-1)


def expected_loss(name: str, own: list[list[Tensor]], other: list[list[Tensor]], scores: list[list[float]]) -> Tensor:
    """Summed over the prompts, answer by answer."""
    total = torch.zeros(())
    for logps, theirs, values in zip(own, other, scores, strict=True):
        if len(set(values)) == 1:
            continue
        if name == "grpo":
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((one - mean) ** 2 for one in values) / (len(values) - 1)) + 1e-4
            # On policy the ratio is 1, and its gradient that of log p.
            promises = [(one - one.detach()).exp().mean() * (value - mean) / deviation for one, value in zip(logps, values, strict=True)]
            total = total - torch.stack(promises).mean()
        elif name == "disco":
            right, wrong = ([one.mean() for one, value in zip(logps, values, strict=True) if value == kind] for kind in (1.0, 0.0))
            total = total + torch.stack([10 * torch.stack([((w - r) / 10).exp() for w in wrong]).mean().log() for r in right]).mean()
        else:
            best, worst = values.index(max(values)), values.index(min(values))
            margin = 0.1 * (logps[best].sum() - theirs[best].sum() - logps[worst].sum() + theirs[worst].sum())
            sure = 1.0 if name == "dpo" else 1 / (1 + math.exp(values[worst] - values[best]))
            total = total - sure * F.logsigmoid(margin) - (1 - sure) * F.logsigmoid(-margin)
    return total


@pytest.mark.parametrize(("name", "counts"), [("grpo", True), ("disco", False), ("dpo", True), ("dno", True)])
def test_loss_and_gradients_are_those_of_plain_rows_of_what_was_sampled(name: str, counts: bool) -> None:
    other = build_tiny_llava(scale=1.0, seed=1)[0]
    method, model = build(name, WordReward(counts=counts), reference=other)
    rows = questions(4)
    batch = complete(method, model, rows, step=3)
    output = method.compute(model, batch)
    got = gradients(model, output.loss_sum)
    # All answers, from another objective on the same draws.
    everything, _ = build("grpo", method.reward, models=(model, method.processor))
    spoken = said(complete(everything, model, rows, step=3))
    groups = [spoken[at : at + 4] for at in range(0, 16, 4)]
    decode = method.processor.tokenizer.decode
    scores = [[float(method.reward.score(decode(ids, skip_special_tokens=True).strip())) for ids in group] for group in groups]
    assert any(len(set(values)) > 1 for values in scores)
    own = [[plain_logps(model, method.processor, row, ids) for ids in group] for row, group in zip(rows, groups, strict=True)]
    with torch.no_grad():
        theirs = [[plain_logps(other, method.processor, row, ids) for ids in group] for row, group in zip(rows, groups, strict=True)]
    expected = expected_loss(name, own, theirs, scores)
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-4, atol=1e-6)
    assert_same_gradients(got, gradients(model, expected))
    metrics = output.metrics
    flat = [value for values in scores for value in values]
    assert float(metrics["online/reward"].total) == sum(flat)
    assert metrics["online/reward"].count == 16
    assert float(metrics["online/alike"].total) == sum(len(set(values)) == 1 for values in scores)
    assert float(metrics["online/length"].total) == sum(map(len, spoken))
    nll = -sum(float(one.detach().sum()) for group in own for one in group)
    assert float(metrics["online/entropy"].total) == pytest.approx(nll, rel=1e-4)
    assert method.num_items(batch) == 4


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_packed_and_plain_rows_have_the_same_loss(name: str) -> None:
    losses = []
    for options in ({}, {"row_tokens": 200}, None):
        method, model = build(name, WordReward(counts=True), reference=build_tiny_llava(scale=1.0, seed=1)[0], **(options or {}))
        method.learner.shared = options is not None
        losses.append(method.compute(model, complete(method, model, questions())).loss_sum.item())
    assert losses[1:] == pytest.approx(losses[:1] * 2, abs=2e-5)
    assert losses[0] != 0


def test_a_draw_depends_on_seed_step_and_row_alone() -> None:
    models = build_tiny_llava(scale=1.0)

    def groups(rows: list[dict[str, Any]], *, step: int = 0, seed: int = 0) -> list[list[list[int]]]:
        method, model = build("grpo", models=models, seed=seed)
        spoken = said(complete(method, model, rows, step=step))
        return [spoken[at : at + 4] for at in range(0, len(spoken), 4)]

    rows = questions(4)
    together = groups(rows)
    assert [groups([row])[0] for row in rows] == together
    assert groups(rows[::-1]) == together[::-1]
    assert all(one != other for one, other in zip(together, groups(rows, step=1), strict=True))
    assert all(one != other for one, other in zip(together, groups(rows, seed=1), strict=True))
    # The answers to one question differ among themselves.
    assert all(len({tuple(ids) for ids in group}) > 1 for group in together)


def test_answers_that_were_cut_are_kept_or_dropped() -> None:
    """Of a model that ends about every third token; an answer holds no image."""
    model, processor = build_tiny_llava(llm={**QWEN3, "tie_word_embeddings": False}, scale=1.0)
    ends, images = processor.tokenizer.eos_token_id, image_token_ids(processor)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(512))
    model.lm_head.bias.data[[ends, *images]] = 5.5
    kept, _ = build("grpo", WordReward(counts=True), models=(model, processor), samples=6, max_new_tokens=4)
    dropped, _ = build("grpo", WordReward(counts=True), models=(model, processor), samples=6, max_new_tokens=4, cut="drop")
    everything, rest = complete(kept, model, questions()), complete(dropped, model, questions())
    spoken = said(everything)
    groups = [spoken[at : at + 6] for at in range(0, 18, 6)]
    ended = [[ids for ids in group if ids[-1] == ends] for group in groups]
    assert all(2 <= len(group) <= 6 for group in ended)
    assert any(len(group) < 6 for group in ended)
    assert not {i for ids in spoken for i in ids} & set(images)
    assert said(rest) == [ids for group in ended for ids in group]
    assert rest["numbers"]["counts"].tolist() == [len(group) for group in ended]
    cut = 18 - sum(map(len, ended))
    for batch, method in ((everything, kept), (rest, dropped)):
        metrics = method.compute(model, batch).metrics
        assert (float(metrics["online/cut"].total), metrics["online/cut"].count) == (cut, 18)
        assert float(metrics["online/empty"].total) == sum(ids == [ends] for ids in spoken)


@pytest.mark.parametrize("name", ["grpo", "disco", "dpo", "dno"])
def test_groups_that_teach_nothing_add_nothing(name: str) -> None:
    """All are cut and dropped; or all have one score."""
    for options, reward in (({"cut": "drop", "max_new_tokens": 1}, WordReward(counts=True)), ({}, None)):
        method, model = build(name, reward, reference=build_tiny_llava(scale=1.0, seed=1)[0], **options)
        if reward is None:
            method.reward.score = lambda text: 1.0
        batch = complete(method, model, questions())
        output = method.compute(model, batch)
        assert output.loss_sum.item() == 0
        assert all(value is None or not value.any() for value in gradients(model, output.loss_sum).values())
        assert float(output.metrics["online/alike"].total) == method.num_items(batch) == 3


def test_answers_without_a_score_leave_their_group() -> None:
    method, model = build("grpo", WordReward(counts=True, picky=True), samples=6)
    batch = complete(method, model, questions())
    texts = [group.responses for group in method.reward.seen]
    scored = [[text for text in group if method.reward.score(text) is not None] for group in texts]
    assert sum(map(len, scored)) < 18
    assert batch["numbers"]["counts"].tolist() == [max(2, len(group)) for group in scored]
    metrics = method.compute(model, batch).metrics
    assert float(metrics["online/unscored"].total) == 18 - sum(map(len, scored))
    assert metrics["online/reward"].count == sum(map(len, scored))


def test_a_reward_that_scores_no_answer_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    method, model = build("grpo")
    method.reward.score = lambda text: None
    for step in range(2):
        complete(method, model, questions(), step=step)
    (told,) = [one.getMessage() for one in caplog.records if "scored none" in one.getMessage()]
    assert told.startswith("reward answers scored none of 12 answers (row q0 ...)")


def test_right_and_wrong_and_win_rates() -> None:
    with pytest.raises(ValueError, match=r"row q0, reward answers: scores hold .*; objective disco expects 1 .*; --correct X makes"):
        complete(*build("disco", WordReward(counts=True)), questions())
    right, model = build("disco", WordReward(counts=True), correct=4.0)
    numbers = complete(right, model, questions())["numbers"]["scores"]
    words = [len(text.split()) for group in right.reward.seen for text in group.responses]
    assert numbers.tolist() == [float(value >= 4) for value in words]
    method, model = build("dno", WordReward(counts=True), win_rates=True)
    columns = complete(method, model, questions())["numbers"]
    for group, best in zip(method.reward.seen, columns["score_chosen"].tolist(), strict=True):
        counts = [len(text.split()) for text in group.responses]
        ties = counts.count(max(counts)) - 1
        assert best == pytest.approx((len(counts) - 1 - ties + ties / 2) / (len(counts) - 1))


@pytest.mark.parametrize("family", [qwen2_5_vl, paligemma])
def test_other_families_train_on_what_they_say(family: Any) -> None:
    method, model = build("grpo", WordReward(counts=True), models=family())
    told = method.start(model, questions(2))
    assert ("can't share their image's cache" in told) == (family is paligemma)
    batch = complete(method, model, questions(2))
    output = method.compute(model, batch)
    assert output.loss_sum.requires_grad
    # What the sampler says of its tokens is what the training forward says of them.
    trained = -float(method.learner.run(model, _inputs(batch))[0].token_logps.detach().sum())
    assert float(output.metrics["online/entropy"].total) == pytest.approx(trained, rel=1e-4)


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "online"}


def test_questions_are_read_as_a_stock_prompt() -> None:
    method, model = build("grpo")
    raw = questions(1)[0]
    row = read_question(raw, index=0)
    encoded = encode_questions(method.processor, images=row.images, prompts=[row.prompt])
    batch = complete(method, model, [raw])
    length = len(encoded.prefix_ids) + len(encoded.responses[0])
    assert batch["input_ids"][0, :length].tolist() == [*encoded.prefix_ids, *encoded.responses[0]]
    with pytest.raises(ValueError, match=rf"prompt and longest answer take {length + 6} tokens"):
        build("grpo", max_length=length + 5)[0].check(raw, index=0)
    build("grpo", max_length=length + 6)[0].check(raw, index=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "samples is 1; expected at least 2"),
        ({"passes": 0}, "passes is 0; expected at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a positive number"),
        ({"top_p": 0.0}, "top_p is 0.0; expected more than 0"),
        ({"reward": "luck"}, "reward is 'luck'; expected one of answers, objects:FOLDER, judge, model:DIR, function:FILE.py:NAME"),
        ({"reward": "objects"}, "reward is 'objects'; expected one of"),
        ({"reward": "answers", "judge": "dir"}, "--judge is for --reward judge; the reward is answers"),
        ({"correct": 1.0, "win_rates": True}, "give one"),
        ({"reference": "cached"}, "--reference cached knows answers of the data"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=message):
        OnlineOptions(**{"model": "m", "data": tmp_path, "out": tmp_path, "reward": "answers", **options})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adpo", "objective adpo is of lists with a preference"),
        ("hsa_dpo", "objective hsa_dpo reads column severity"),
        ("orpo", "objective orpo adds the likelihood of the best answer"),
        ("mdpo", "compares other images"),
        ("gpro", "unknown pair objective 'gpro'"),
    ],
)
def test_objectives_that_do_not_fit_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name)


def clipped_loss(own: list[list[Tensor]], old: list[list[Tensor]], scores: list[list[float]]) -> Tensor:
    """GRPO's, answer by answer, with ratios to the policy that sampled, clipped at 0.8 and 1.2."""
    total = torch.zeros(())
    for logps, before, values in zip(own, old, scores, strict=True):
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((one - mean) ** 2 for one in values) / (len(values) - 1)) + 1e-4
        promises = []
        for one, other, value in zip(logps, before, values, strict=True):
            ratio, advantage = (one - other).exp(), (value - mean) / deviation
            promises.append(torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean())
        total = total - torch.stack(promises).mean()
    return total


def test_later_passes_keep_the_answers_and_are_held_to_the_policy_that_gave_them() -> None:
    method, model = build("grpo", WordReward(counts=True), passes=2)
    rows = questions(3)
    first = complete(method, model, rows, step=4)
    spoken, processor = said(first), method.processor
    groups = [spoken[at : at + 4] for at in range(0, 12, 4)]
    with torch.no_grad():
        old = [[plain_logps(model, processor, row, ids) for ids in group] for row, group in zip(rows, groups, strict=True)]
    method.compute(model, first)
    scores = [[float(WordReward(counts=True).score(text) or 0) for text in group.responses] for group in method.reward.seen]
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
    second = complete(method, model, rows, step=5)
    assert said(second) == spoken
    assert len(method.reward.seen) == 3, "a reward is asked once"
    output = method.compute(model, second)
    own = [[plain_logps(model, processor, row, ids) for ids in group] for row, group in zip(rows, groups, strict=True)]
    ratios = torch.cat([(a - b).exp() for one, other in zip(own, old, strict=True) for a, b in zip(one, other, strict=True)])
    assert ((ratios < 0.8) | (ratios > 1.2)).any(), "some are clipped"
    expected = clipped_loss(own, old, scores)
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-4, atol=1e-6)
    assert_same_gradients(gradients(model, output.loss_sum), gradients(model, expected))
    # Step 6 is the first on new answers.
    assert said(complete(method, model, rows, step=6)) != spoken

"""Lists of scored responses: the loss from its parts, pairs as lists of two, ragged and packed rows, metrics by hand."""

import dataclasses
import functools
from typing import Any

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature

from mmalign.data.caches import REFERENCE_FINGERPRINT, cache_list
from mmalign.data.encode import encode_items, encode_row
from mmalign.data.rows import read_items, read_list
from mmalign.data.token_texts import find_items
from mmalign.difficulty.generative import score_responses
from mmalign.engine.hidden_states import compute_response_states
from mmalign.engine.logps import compute_response_logps
from mmalign.losses.list_kernel import ListBatch, list_objective_loss
from mmalign.losses.reasoning_steps import adaptive_step_weights
from mmalign.losses.scores import ScoredTokens
from mmalign.methods.listwise import ListwiseMethod, find_step_ends, list_metrics, take_items
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.references import Reference
from mmalign.options.methods import ListLossOptions, PairLossOptions
from tests.losses.test_listwise import anchored, in_context, plackett_luce, tree
from tests.tiny_models import build_tiny_llava, list_rows, pair_rows, random_image

COUNTS = [3, 2, 4]
OBJECTIVES = ["adpo", "plackett_luce", "irpo", "tpo"]


@functools.cache
def models() -> tuple[Any, Any, Any]:
    policy, processor = build_tiny_llava(seed=0, scale=1.5)
    return policy, build_tiny_llava(seed=1, scale=1.5)[0], processor


def data_set(rows: list[dict[str, Any]] | None = None) -> Dataset:
    return Dataset.from_list(list_rows(COUNTS) if rows is None else rows).cast_column("images", List(ImageFeature(decode=False)))


def method_for(*objectives: str, **options: Any) -> ListwiseMethod:
    policy, other, processor = models()
    reference = Reference(policy, kind="copy", model=other)
    return ListwiseMethod(processor, ListLossOptions(objective=list(objectives), **options), reference=reference)


def loss_of(method: Any, dataset: Dataset) -> float:
    with torch.no_grad():
        return method.compute(models()[0], method.collate(list(dataset))).loss_sum.item()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_from_the_models_own_numbers(name: str) -> None:
    policy, other, _ = models()
    method = method_for(name)
    rows = list(data_set())
    inputs = {key: value for key, value in method.collate(rows).items() if key != "numbers"}
    with torch.no_grad():
        outcomes = [compute_response_logps(model, inputs).per_response() for model in (policy, other)]
    sums = [(a.sum() - b.sum()).item() for a, b in zip(*outcomes, strict=True)]
    means = [(a.mean() - b.mean()).item() for a, b in zip(*outcomes, strict=True)]
    expected, at = 0.0, 0
    for row in rows:
        end = at + len(row["responses"])
        expected += {
            "adpo": lambda s, m, v: anchored(s, v, 10.0, 0.5),
            "plackett_luce": lambda s, m, v: plackett_luce(s, v, 0.1),
            "irpo": lambda s, m, v: in_context(m, v, 1.0),
            "tpo": lambda s, m, v: tree(m, v, 0.5),
        }[name](sums[at:end], means[at:end], row["scores"])
        at = end
    assert loss_of(method, data_set()) == pytest.approx(expected, rel=2e-5)


def test_a_pair_is_a_list_of_two() -> None:
    policy, other, processor = models()
    pairs = pair_rows(4)
    lists = [
        {**{key: row[key] for key in ("id", "images", "prompt")}, "responses": [row["rejected"], row["chosen"]], "scores": [0.0, 1.0]}
        for row in pairs
    ]
    reference = Reference(policy, kind="copy", model=other)
    preference = PreferenceMethod(processor, PairLossOptions(), reference=reference)
    dpo = loss_of(preference, preference.prepare(Dataset.from_list(pairs).cast_column("images", List(ImageFeature(decode=False)))))
    assert loss_of(method_for("plackett_luce"), data_set(lists)) == pytest.approx(dpo, rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_packed_and_plain_rows_have_the_same_loss(name: str) -> None:
    expected = loss_of(method_for(name), data_set())
    assert loss_of(method_for(name, row_tokens=150), data_set()) == pytest.approx(expected, abs=2e-5)
    plain = method_for(name)
    plain.shared = False
    assert loss_of(plain, data_set()) == pytest.approx(expected, abs=2e-5)


def test_step_ends_by_their_text() -> None:
    tokenizer = models()[2].tokenizer
    ids = tokenizer("there is. a cat\nno! yes", add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode([i]) for i in ids]
    by_kind = {kind: find_step_ends(tokenizer, torch.tensor(ids), kind).tolist() for kind in ("lines", "sentences")}  # type: ignore[arg-type]
    assert [piece for piece, end in zip(pieces, by_kind["lines"], strict=True) if end] == ["\n"]
    assert [piece for piece, end in zip(pieces, by_kind["sentences"], strict=True) if end] == [".", "\n", "!"]


def test_steps_are_weighed_by_the_policys_states() -> None:
    policy, other, _ = models()
    rows = list_rows(COUNTS)
    for row in rows:
        for response in row["responses"]:
            words = response[0]["content"].split()
            response[0]["content"] = ". ".join([" ".join(words[:2]), " ".join(words[2:]) or "yes", "no"]) + "."
    dataset = data_set(rows)
    method = method_for("tpo:steps=sentences")
    batch = method.collate(list(dataset))
    inputs = {key: value for key, value in batch.items() if key != "numbers"}
    with torch.no_grad():
        states = compute_response_states(policy, inputs)
        logps = [compute_response_logps(model, inputs) for model in (policy, other)]
    tokens = logps[0].scored
    starts = [0, 3, 5]
    best = [start + row["scores"].index(max(row["scores"])) for start, row in zip(starts, rows, strict=True) for _ in row["scores"]]
    weights = adaptive_step_weights(tokens, ends=batch["numbers"]["step_ends"]["sentences"], states=states.final, best=torch.tensor(best))
    assert int(batch["numbers"]["step_ends"]["sentences"].sum()) >= 3 * sum(COUNTS)
    h = tokens.sums(weights(tokens) * (logps[0].token_logps - logps[1].token_logps)) / tokens.sums(weights(tokens))
    expected = sum(tree(h[s : s + len(row["scores"])].tolist(), row["scores"], 0.5) for s, row in zip(starts, rows, strict=True))
    assert loss_of(method, dataset) == pytest.approx(expected, rel=2e-5)
    assert loss_of(method_for("tpo"), dataset) != pytest.approx(expected, rel=1e-3)
    packed = method_for("tpo:steps=sentences", row_tokens=150)
    assert loss_of(packed, dataset) == pytest.approx(expected, abs=2e-5)


def cached_rows(rows: list[dict[str, Any]], model: Any, fingerprint: str) -> Dataset:
    """Rows with what ``cache-logps`` writes beside them."""
    processor, found = models()[2], []
    for index, raw in enumerate(data_set(rows)):
        encoded = encode_row(processor, read_list(raw, index=index, sampled=True))
        logps = score_responses(model, [encoded], pad_token_id=processor.tokenizer.pad_token_id)[0]
        found.append({**rows[index], **cache_list(encoded, logps), REFERENCE_FINGERPRINT: fingerprint})
    return data_set(found)


def cached_method(objective: str) -> ListwiseMethod:
    return ListwiseMethod(models()[2], ListLossOptions(objective=[objective]), reference=None, reference_fingerprint="x")


@pytest.mark.parametrize("objective", ["tpo:steps=sentences", "plackett_luce", "grpo"])
def test_cached_tokens_train_like_a_live_reference(objective: str) -> None:
    dataset = cached_rows(list_rows(COUNTS), models()[1], "x")
    method = cached_method(objective)
    method.check(method.prepare(dataset)[0], index=0)
    assert loss_of(method, dataset) == pytest.approx(loss_of(method_for(objective), dataset), abs=1e-5)
    if objective != "plackett_luce":
        short = {**dataset[0], "reference_token_logps_responses": [values[:-1] for values in dataset[0]["reference_token_logps_responses"]]}
        with pytest.raises(ValueError, match=r"reference_token_logps_responses has \d+ values for \d+ tokens"):
            method.encode(short)


def group_rows() -> list[dict[str, Any]]:
    """Groups of samples: right and wrong ones, all wrong ones, and twice the same text."""
    rows = list_rows([3, 2, 4])
    for row, scores in zip(rows, ([1.0, 0.0, 1.0], [0.0, 0.0], [0.0, 1.0, 0.0, 0.0]), strict=True):
        row["scores"] = scores
    rows[2]["responses"][3] = rows[2]["responses"][0]
    return rows


@pytest.mark.parametrize("near", [False, True])
def test_disco_from_the_models_own_numbers(near: bool) -> None:
    """The loss by hand, the constraint over all tokens times the prompts; nothing of it where the policy is the old one."""
    policy, other, _ = models()
    old = policy if near else other
    dataset = cached_rows(group_rows(), old, "x")
    method = cached_method("disco_b:kl_weight=2")
    for index, row in enumerate(dataset):
        method.check(row, index=index)
    batch = method.collate(list(dataset))
    inputs = {key: value for key, value in batch.items() if key not in ("numbers", "reference")}
    with torch.no_grad():
        new, before = (compute_response_logps(model, inputs).per_response() for model in (policy, old))
        output = method.compute(policy, batch)
    s = [values.mean().item() for values in new]
    loss = s[1] - (s[0] + s[2]) / 2 + 0 + (s[5] + s[7] + s[8]) / 3 - s[6]
    kl = (torch.cat(before) - torch.cat(new)).mean().item()
    assert output.loss_sum.item() == pytest.approx(loss + 3 * max(0.0, kl - 1e-4) ** 2, rel=1e-4, abs=2e-5)
    assert (kl > 0.01) != near
    metrics = output.metrics
    assert (float(metrics["lists/alike"].total), metrics["lists/alike"].count) == (1, 3)
    assert (float(metrics["lists/score"].total), metrics["lists/score"].count) == (3, 9)
    assert float(metrics["kl/old"].total) / metrics["kl/old"].count == pytest.approx(kl, abs=1e-5)
    ratios = torch.cat(new) - torch.cat(before)
    assert float(metrics["kl/old_k3"].total) == pytest.approx((ratios.exp() - 1 - ratios).sum().item(), abs=1e-4)


def test_groups_without_a_preference_are_for_groups_alone() -> None:
    rows = list(data_set(group_rows()))
    for index, message in ((1, "every response has score 0"), (2, "two responses are the same text")):
        with pytest.raises(ValueError, match=message):
            method_for("adpo").check(rows[index], index=0)
        with pytest.raises(ValueError, match=message):
            method_for("grpo", "adpo").check(rows[index], index=0)
        method_for("grpo").check(rows[index], index=0)
    with pytest.raises(ValueError, match="scores hold 0.5; objective disco expects 1 for right responses and 0 for wrong ones"):
        method_for("disco").check({**rows[1], "scores": [0.0, 0.5]}, index=0)
    method_for("grpo").check({**rows[1], "scores": [0.0, 0.5]}, index=0)


def test_disco_without_a_constraint_needs_no_reference() -> None:
    method = ListwiseMethod(models()[2], ListLossOptions(objective=["disco:kl_weight=0"]), reference=None)
    assert method.cached is None
    output = method.compute(models()[0], method.collate(list(data_set(group_rows()))))
    assert "kl/old" not in output.metrics
    assert torch.isfinite(output.loss_sum)


def test_a_weighted_sum_and_its_parts() -> None:
    parts = {name: loss_of(method_for(name), data_set()) for name in ("adpo", "tpo")}
    method = method_for("adpo,tpo:weight=3")
    output = method.compute(models()[0], method.collate(list(data_set())))
    assert output.loss_sum.item() == pytest.approx(parts["adpo"] + 3 * parts["tpo"], rel=1e-5)
    assert float(output.metrics["loss/tpo"].total) == pytest.approx(parts["tpo"], rel=1e-5)
    output.loss_sum.backward()
    policy, other, _ = models()
    assert all(p.grad is None for p in other.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in policy.parameters())
    policy.zero_grad()


def test_metrics_by_hand() -> None:
    """First list: best response 1 (reward 2), worst 2 (reward 3), one of three orders right. Second: both right."""
    rewards, scores = torch.tensor([1.0, 2.0, 3.0, 0.5, -0.5]), torch.tensor([0.5, 1.0, 0.0, 9.0, 1.0])
    got = list_metrics(rewards, scores, torch.tensor([3, 2]))
    assert (float(got["rewards/margin"].total), got["rewards/margin"].count) == (-1 + 1, 2)
    assert (float(got["rewards/accuracy"].total), float(got["rewards/accuracy"].count)) == (2, 4)
    assert float(got["rewards/top1"].total) == 1


@pytest.mark.parametrize(
    ("objective", "scores", "message"),
    [
        ("tpo", [0.0, 0.5, 80.0], "scores hold 80; objective tpo expects 0 to 1: rescale them"),
        ("irpo", [0.0, -1.0, 2.0], "scores hold -1; objective irpo expects 0 to 10: rescale them"),
        ("adpo", [0.0, 1.0], "row has 3 responses and 2 scores"),
    ],
)
def test_rows_whose_scores_cant_be_used(objective: str, scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_for(objective).check({**data_set()[0], "scores": scores}, index=0)
    method_for(objective).check(data_set()[0], index=0)


def test_long_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="more than max_length 5"):
        method_for("adpo", max_length=5).check(data_set()[0], index=0)
    with pytest.raises(ValueError, match="row_tokens is 0"):
        method_for("adpo", row_tokens=0)


def item_row(response: str, items: list[str], relevance: list[float], **more: Any) -> dict[str, Any]:
    starts = [response.index(item) for item in items]
    spans = [[start, start + len(item)] for start, item in zip(starts, items, strict=True)]
    row = {"images": [random_image(3)], "prompt": "Name the objects in the image.", "response": response, "items": spans}
    return {**row, "relevance": relevance, **more}


def item_method(*objectives: str) -> ListwiseMethod:
    return method_for(*(objectives or ("irpo",)), items=True)


def test_tokens_of_items_by_their_text() -> None:
    tokenizer = models()[2].tokenizer
    ids = tokenizer(" a cat, dog and star!", add_special_tokens=False)["input_ids"]
    found = find_items(tokenizer, ids, "a cat, dog and star!", [(2, 5), (7, 10), (15, 19)])
    pieces = [tokenizer.decode([i]) for i in ids]
    spoken = ["".join(piece for piece, number in zip(pieces, found, strict=True) if number == item).strip() for item in (0, 1, 2)]
    assert spoken == ["cat", "dog", "star"]
    assert "".join(piece for piece, number in zip(pieces, found, strict=True) if number < 0).split() == ["a,", "and!"]
    letters = next(piece for piece in pieces if len(piece.strip()) > 1)
    start = " a cat, dog and star!".index(letters) + len(letters) - len(letters.strip()) - 1
    with pytest.raises(ValueError, match="items 0 and 1 share the token"):
        find_items(tokenizer, ids, "a cat, dog and star!", [(start, start + 1), (start + 1, start + 2)])
    with pytest.raises(ValueError, match="the tokens of the response read as"):
        find_items(tokenizer, ids, "no such words", [(0, 1), (2, 3)])


def test_items_inside_one_answer() -> None:
    """IRPO over the mean log-ratios of the items' own tokens, by hand; what stands between them counts nowhere."""
    policy, other, processor = models()
    rows = [
        item_row("a cat, a dog and a star", ["cat", "dog", "star"], [2.0, 0.0, 1.0]),
        item_row("the moon. a ring", ["moon", "ring"], [0.0, 1.0]),
    ]
    dataset = data_set(rows)
    method = item_method()
    for index, row in enumerate(dataset):
        method.check(row, index=index)
    batch = method.collate(list(dataset))
    inputs = {key: value for key, value in batch.items() if key != "numbers"}
    with torch.no_grad():
        ratios = [a - b for a, b in zip(*(compute_response_logps(model, inputs).per_response() for model in (policy, other)), strict=True)]
    expected = 0.0
    for row, values in zip(dataset, ratios, strict=True):
        encoded = encode_items(processor, read_items(row, index=0))
        items = torch.tensor(encoded.items[0])
        assert 0 < int((items >= 0).sum()) < len(values)
        h = [values[items == number].mean().item() for number in range(len(row["items"]))]
        expected += in_context(h, row["relevance"], 1.0)
    output = method.compute(policy, batch)
    assert output.loss_sum.item() == pytest.approx(expected, rel=2e-5)
    packed = method_for("irpo", items=True, row_tokens=150)
    assert loss_of(packed, dataset) == pytest.approx(expected, abs=2e-5)


def test_items_are_scored_as_spans() -> None:
    """Their log-ratios are means over their own tokens."""
    policy, other, _ = models()
    row = data_set([item_row("a cat and a dog", ["a cat", "a dog"], [1.0, 0.0])])[0]
    batch = item_method("plackett_luce:score=mean").collate([row])
    inputs = {key: value for key, value in batch.items() if key != "numbers"}
    item = batch["layout"]["item"]
    with torch.no_grad():
        logps = [compute_response_logps(model, inputs) for model in (policy, other)]
        h = []
        for number in (0, 1):
            own, reference = (one.token_logps[item == number].mean() for one in logps)
            h.append((own - reference).item())
    assert loss_of(item_method("plackett_luce:score=mean"), data_set([row])) == pytest.approx(plackett_luce(h, [1.0, 0.0], 0.1), rel=2e-5)


def test_items_that_are_whole_responses_are_a_list() -> None:
    """Each prompt's responses as the items of one answer, whose tokens are as likely: the list's loss."""
    policy, other, _ = models()
    method = method_for("irpo")
    batch = method.collate(list(data_set()))
    inputs = {key: value for key, value in batch.items() if key != "numbers"}
    counts = torch.tensor(COUNTS)
    prompt, number = torch.arange(3).repeat_interleave(counts), torch.cat([torch.arange(count) for count in COUNTS])
    with torch.no_grad():
        apart = [compute_response_logps(model, inputs) for model in (policy, other)]
    response = apart[0].scored.response
    joined = [dataclasses.replace(one, scored=ScoredTokens(prompt[response], len(COUNTS), one.scored.token_ids)) for one in apart]
    tokens, own, reference = take_items(*joined, number[response], counts)
    items = ListBatch(tokens, own, reference, counts, batch["numbers"]["scores"])
    losses = list_objective_loss(method.objectives[0].objective, items)
    assert losses.sum().item() == pytest.approx(loss_of(method, data_set()), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": [[2, 5]]}, "row has 1 items and 2 grades of relevance"),
        ({"relevance": [1.0, 1.0]}, "every item has relevance 1: there is no preference to learn"),
        ({"items": [[2, 5], [4, 8]]}, r"item \[4, 8\] is empty, out of order, or outside the response; expected 5 <= start < end <= 12"),
        ({"items": [[2, 5], [9, 99]]}, r"expected 5 <= start < end <= 12"),
        ({"items": [[2, 5], [9.0, 12]]}, r"an item is \[9.0, 12\]"),
        ({"relevance": [1.0, 11.0]}, "relevance hold 11; objective irpo expects 0 to 10"),
    ],
)
def test_items_that_cant_be_used(changes: dict[str, Any], message: str) -> None:
    row = {**data_set([item_row("a cat, a dog", ["cat", "dog"], [1.0, 0.0])])[0], **changes}
    with pytest.raises(ValueError, match=message):
        item_method().check(row, index=0)


def test_items_need_objectives_of_any_scores_and_a_live_reference() -> None:
    for text in ("grpo", "tpo:steps=lines"):
        with pytest.raises(ValueError, match="is of whole responses"):
            item_method(text)
    with pytest.raises(ValueError, match="items have no cached log-probabilities"):
        ListwiseMethod(models()[2], ListLossOptions(objective=["irpo"], items=True), reference=None, reference_fingerprint="x")

"""Objectives that compare images, through the method: their loss from plain forward passes of each image and response."""

import functools
import math
from typing import Any

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature
from torch import Tensor

from mmalign.data.caches import REFERENCE_FINGERPRINT, REFERENCE_IMAGES, REFERENCE_TEXT, cache_cells, digest_text
from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.messages import without_images
from mmalign.data.rows import PairRow, read_pair
from mmalign.data.weaken import weaken_row
from mmalign.engine.probe import own_logps
from mmalign.losses.image_objectives import IMAGE_OBJECTIVES
from mmalign.losses.image_terms import CHOSEN, REJECTED, Cell, Term
from mmalign.losses.pair_kernel import PairObjective
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.losses.scores import ScoredTokens, changed_weights
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from tests.losses.objective_cases import softplus
from tests.tiny_models import build_tiny_llava, pair_rows, random_image

NUM_PAIRS = 3


@functools.cache
def models() -> tuple[Any, Any, Any]:
    policy, processor = build_tiny_llava(seed=0, scale=1.5)
    return policy, build_tiny_llava(seed=1, scale=1.5)[0], processor


def data_set(**columns: list[Any]) -> Dataset:
    rows = pair_rows(NUM_PAIRS)
    for number, row in enumerate(rows):
        row["images_other"] = [random_image(90 + number) for _ in row["images"]]
        row["chosen_other"] = "a red star and a ball"
    features = {name: List(ImageFeature(decode=False)) for name in ("images", "images_other")}
    dataset = Dataset.from_list(rows)
    for name, feature in features.items():
        dataset = dataset.cast_column(name, feature)
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


def method_for(*objectives: str, cached: bool = False, **options: Any) -> PreferenceMethod:
    policy, other, processor = models()
    reference = None if cached else Reference(policy, kind="copy", model=other)
    config = PairLossOptions(objective=list(objectives), **options)
    return PreferenceMethod(processor, config, reference=reference, reference_fingerprint="this model")


def loss_of(method: PreferenceMethod, dataset: Dataset) -> float:
    batch = method.collate(list(method.prepare(dataset)))
    with torch.no_grad():
        return method.compute(models()[0], batch).loss_sum.item()


class Plain:
    """One row by the unchanged forward of policy and reference: a pass per image and response."""

    def __init__(self, raw: dict[str, Any], *, weaken: Any = "crop", seed: int = 0) -> None:
        self.row: PairRow = read_pair(raw, index=0, with_other=True)
        self.weaken, self.seed = weaken, seed

    def prompt(self, cell: Cell) -> EncodedPrompt:
        row = self.row
        texts = {"chosen": row.chosen, "rejected": row.rejected, "other": row.chosen_other}
        words = "".join(part["text"] for message in row.prompt for part in message["content"] if part["type"] == "text")
        images = {
            "own": row.images,
            "weakened": weaken_row(row.images, self.weaken, seed=self.seed, row=words),
            "other": row.images_other,
            "none": [],
        }[cell.image]
        prompt = row.prompt if images else without_images(row.prompt)
        return encode_responses(models()[2], images=images, prompt=prompt, responses=[texts[cell.response]])

    def tokens(self, image: str, response: str, model: int) -> Tensor:
        with torch.no_grad():
            return own_logps(models()[model], self.prompt(Cell(image, response)))[0].double()  # type: ignore[arg-type]

    def h(self, image: str, response: str) -> float:
        return (self.tokens(image, response, 0).sum() - self.tokens(image, response, 1).sum()).item()

    def logits(self, image: str, response: str, model: int) -> tuple[Tensor, Tensor]:
        """All logits at the places that predict the response, and its tokens' ids."""
        prompt = self.prompt(Cell(image, response))  # type: ignore[arg-type]
        ids = torch.tensor([prompt.prefix_ids + prompt.responses[0]])
        with torch.no_grad():
            found = models()[model](input_ids=ids, **prompt.images).logits[0].double()
        return found[len(prompt.prefix_ids) - 1 : -1], torch.tensor(prompt.responses[0])

    def kl(self, response: str) -> float:
        """KL(reference, policy), summed over the response."""
        (policy, _), (reference, _) = (self.logits("own", response, model) for model in (0, 1))
        p, q = reference.log_softmax(-1), policy.log_softmax(-1)
        return (p.exp() * (p - q)).sum().item()

    def weights(self, value: float) -> tuple[Tensor, Tensor]:
        ids = [self.logits("own", response, 0)[1] for response in ("chosen", "rejected")]
        tokens = ScoredTokens(torch.tensor([0] * len(ids[0]) + [1] * len(ids[1])), 2, torch.cat(ids))
        found = changed_weights(tokens, weight=value)
        return found[: len(ids[0])], found[len(ids[0]) :]


def sp(difference: float) -> float:
    return softplus(-0.1 * difference)


def mdpo(p: Plain) -> float:
    return (
        sp(p.h("own", "chosen") - p.h("own", "rejected")) + sp(p.h("own", "chosen") - p.h("weakened", "chosen")) + sp(p.h("own", "chosen"))
    )


def svco(p: Plain) -> float:
    return (
        sp(p.h("own", "chosen") - p.h("none", "chosen"))
        + sp(p.h("none", "chosen") - p.h("other", "chosen"))
        + sp(p.h("other", "other") - p.h("none", "other"))
        + sp(p.h("none", "other") - p.h("own", "other"))
    )


def symmpo(p: Plain) -> float:
    own, other = p.h("own", "chosen") - p.h("own", "other"), p.h("other", "other") - p.h("other", "chosen")
    margin = p.h("own", "chosen") - p.h("own", "rejected")
    return sp(margin) + 0.5 * (sp(own) + sp(other)) + sp(p.h("own", "chosen")) + sp(p.h("other", "other")) + 1e-4 * (own - other) ** 2


def opa(p: Plain) -> float:
    image = p.h("own", "chosen") - p.h("weakened", "chosen")
    return sp(p.h("own", "chosen") - p.h("own", "rejected")) + 0.2 * sp(image) + sp(p.h("own", "chosen"))


def chip(p: Plain) -> float:
    chosen, rejected = p.weights(4.0)

    def weighted(image: str, response: str, weight: Tensor) -> float:
        return (weight * (p.tokens(image, response, 0) - p.tokens(image, response, 1))).sum().item()

    own = weighted("own", "chosen", chosen)
    margin = own - weighted("own", "rejected", rejected) + own - weighted("weakened", "chosen", chosen)
    return sp(margin - 0.1 * (p.kl("rejected") - p.kl("chosen")))


def vdpo(p: Plain) -> float:
    scores = [
        1.5 * p.tokens("own", name, 0).sum() - 0.5 * p.tokens("weakened", name, 0).sum() - p.tokens("own", name, 1).sum()
        for name in ("chosen", "rejected")
    ]
    return sp((scores[0] - scores[1]).item())


def tpo_token(p: Plain) -> float:
    def score(response: str, model: int) -> float:
        (own, ids), (weakened, _) = (p.logits(image, response, model) for image in ("own", "weakened"))
        q = (own - weakened).gather(-1, ids[:, None]).squeeze(-1).sigmoid()
        return (
            (own.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1) + torch.log(q + 0.5 if response == "chosen" else 1.5 - q))
            .sum()
            .item()
        )

    return sp(score("chosen", 0) - score("chosen", 1) - score("rejected", 0) + score("rejected", 1))


FORMULAS = {
    "mdpo": mdpo,
    "anchor": lambda p: sp(p.h("own", "chosen")),
    "svco": svco,
    "symmpo": symmpo,
    "opa": opa,
    "chip": chip,
    "vdpo": vdpo,
}
FORMULAS["tpo_token"] = tpo_token


def test_every_image_objective_has_a_formula() -> None:
    assert set(FORMULAS) == set(IMAGE_OBJECTIVES)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("row_tokens", [None, 300], ids=["rows", "packed"])
def test_loss_from_plain_forwards(name: str, row_tokens: int | None) -> None:
    expected = [FORMULAS[name](Plain(row)) for row in data_set()]
    assert loss_of(method_for(name, row_tokens=row_tokens), data_set()) == pytest.approx(sum(expected), rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("weaken", ["mask", "noise", "diffusion", "blank", "none"])
def test_every_way_to_weaken(weaken: Any) -> None:
    expected = [mdpo(Plain(row, weaken=weaken, seed=5)) for row in data_set()]
    assert loss_of(method_for("mdpo", weaken=weaken, weaken_seed=5), data_set()) == pytest.approx(sum(expected), rel=2e-5, abs=2e-5)


def test_a_sum_of_several_reads_each_image_once() -> None:
    method = method_for("mdpo", "svco:weight=0.5", "ipo", difficulty_mode="off")
    batch = method.collate(list(method.prepare(data_set())))
    # Three pairs, and own, weakened, other and no image of each.
    assert len(batch["layout"]["repeats"]) == 4 * NUM_PAIRS
    assert method.num_items(batch) == NUM_PAIRS
    parts = {name: loss_of(method_for(name), data_set()) for name in ("mdpo", "svco", "ipo")}
    assert loss_of(method, data_set()) == pytest.approx(parts["mdpo"] + 0.5 * parts["svco"] + parts["ipo"], rel=1e-5)


def test_difficulty_reaches_the_terms() -> None:
    hard = data_set(difficulty=[0.25] * NUM_PAIRS)
    assert loss_of(method_for("mdpo", difficulty_mode="paper"), hard) == pytest.approx(
        loss_of(method_for("mdpo", beta=0.175), data_set()), rel=1e-5
    )


def test_without_an_answer_of_its_own_the_other_image_has_the_rejected_one() -> None:
    """S-VCO's rows: what is wrong of one image is right of the other."""
    rows = data_set().remove_columns("chosen_other")
    named = rows.add_column("chosen_other", [row["rejected"][0]["content"] for row in rows])
    assert loss_of(method_for("svco"), rows) == pytest.approx(loss_of(method_for("svco"), named), abs=1e-6)
    assert loss_of(method_for("svco"), rows) != pytest.approx(loss_of(method_for("svco"), data_set()), abs=1e-3)


def test_a_new_objective_is_one_function() -> None:
    """Its cells are found, encoded, laid out and scored without another line."""

    @PAIR_OBJECTIVES.register("over_nothing")
    def over_nothing(*, beta: float = 0.1) -> PairObjective:
        return PairObjective(beta=beta, terms=(Term(CHOSEN, Cell("none", "chosen")), Term(REJECTED, Cell("other", "rejected"), weight=2.0)))

    try:
        expected = [
            sp(p.h("own", "chosen") - p.h("own", "rejected"))
            + sp(p.h("own", "chosen") - p.h("none", "chosen"))
            + 2 * sp(p.h("own", "rejected") - p.h("other", "rejected"))
            for p in map(Plain, data_set())
        ]
        assert loss_of(method_for("over_nothing"), data_set()) == pytest.approx(sum(expected), rel=2e-5)
    finally:
        PAIR_OBJECTIVES.unregister("over_nothing")


def cached_columns(method: PreferenceMethod) -> dict[str, list[Any]]:
    """What the reference says, by plain forward passes."""
    columns: dict[str, list[Any]] = {}
    for raw in data_set():
        plain = Plain(raw)
        prompts = method_for("dpo").encode(raw)
        found = {f"reference_logps_{name}": plain.tokens("own", name, 1).sum().item() for name in ("chosen", "rejected")}
        found |= {REFERENCE_TEXT: digest_text(prompts[0]), REFERENCE_IMAGES: prompts[0].image_digest, REFERENCE_FINGERPRINT: "this model"}
        cells = method.views.cells
        found |= cache_cells(method.encode_row(raw, index=0), cells, [plain.tokens(*cell, 1) for cell in cells])
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    return columns


@pytest.mark.parametrize("name", ["mdpo", "anchor", "svco", "symmpo", "opa", "vdpo"])
def test_cached_log_probabilities_are_the_reference(name: str) -> None:
    columns = cached_columns(method_for(name))
    dataset = data_set(**columns)
    cached = method_for(name, cached=True)
    for index, row in enumerate(dataset):
        cached.check(row, index=index)
    assert loss_of(cached, dataset) == pytest.approx(loss_of(method_for(name), data_set()), abs=3e-5)


def test_stale_and_missing_cells_are_refused() -> None:
    dataset = data_set(**cached_columns(method_for("mdpo")))
    with pytest.raises(ValueError, match="row pair-0 are stale: they are of other texts or images, weakened ones among them"):
        loss_of(method_for("mdpo", cached=True, weaken_seed=1), dataset)
    with pytest.raises(ValueError, match="have no reference_logps_chosen_weakened, reference_views"):
        method_for("mdpo", cached=True).check_dataset(data_set(**cached_columns(method_for("dpo"))).remove_columns("reference_views"))
    # A cache for images serves an objective of pairs too.
    assert loss_of(method_for("dpo", cached=True), dataset) == pytest.approx(loss_of(method_for("dpo"), data_set()), abs=3e-5)


@pytest.mark.parametrize("name", ["chip", "tpo_token"])
def test_what_columns_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"objective {name} reads more of the reference than its log-probabilities"):
        method_for(name, cached=True)


def test_rows_that_cannot_be_compared_are_rejected_with_the_reason() -> None:
    row = dict(data_set()[0])
    with pytest.raises(ValueError, match="the row has no image, and the objective compares images"):
        method_for("mdpo").check({**row, "images": [], "prompt": "What?"}, index=0)
    with pytest.raises(ValueError, match="images_other has 0 images beside the row's 1; expected as many"):
        method_for("symmpo").check({**row, "images_other": None}, index=0)
    assert "images_other" in method_for("svco").columns
    assert "images_other" not in method_for("mdpo").columns


def test_a_flipped_pair_asks_the_image_about_the_answer_that_is_chosen_now() -> None:
    row = dict(data_set()[0])
    swapped = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    method = method_for("mdpo")
    flipped, expected = ([prompt.responses for prompt in method.encode(one)] for one in ({**row, "pair_flipped": True}, swapped))
    assert flipped == expected


def test_gradients_reach_the_policy_through_the_weakened_image_only_where_they_should() -> None:
    """V-DPO sends none; mDPO's own do not vanish. At the reference every log-ratio is 0 and the pair's terms start at log 2."""
    policy, processor = build_tiny_llava(seed=2, scale=1.5)
    method = PreferenceMethod(processor, PairLossOptions(objective=["mdpo"]), reference=Reference(policy, kind="copy"))
    batch = method.collate(list(method.prepare(data_set())))
    output = method.compute(policy, batch)
    assert output.loss_sum.item() == pytest.approx(NUM_PAIRS * 3 * math.log(2), rel=1e-4)
    output.loss_sum.backward()
    assert sum(float(p.grad.abs().sum()) for p in policy.parameters() if p.grad is not None) > 0
    assert output.metrics["rewards/over_weakened"].total.item() == pytest.approx(0.0, abs=1e-3)

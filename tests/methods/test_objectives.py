"""Every pair objective through the method: its loss from a real model's log-probabilities by the formula in plain Python."""

import functools
from typing import Any

import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature

from mmalign.data.caches import REFERENCE_FINGERPRINT, REFERENCE_IMAGES, REFERENCE_TEXT, digest_text
from mmalign.engine.logps import ResponseLogps, compute_response_logps
from mmalign.losses.pair_kernel import PairObjective, squared
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from tests.losses.objective_cases import CASES, IDS, Case, Sides
from tests.losses.pair_example import COLUMNS
from tests.tiny_models import build_tiny_llava, pair_rows

NUM_PAIRS = 4


@functools.cache
def models() -> tuple[Any, Any, Any]:
    """Policy, another model as the reference, processor. Nothing here trains them."""
    policy, processor = build_tiny_llava(seed=0, scale=1.5)
    return policy, build_tiny_llava(seed=1, scale=1.5)[0], processor


def data_set(**columns: list[Any]) -> Dataset:
    """Pairs of which the first two share their first words."""
    rows = pair_rows(NUM_PAIRS)
    for row in rows[:2]:
        row["rejected"] = [{"role": "assistant", "content": row["chosen"][0]["content"] + " dog on the table"}]
    extra = {name: values[:NUM_PAIRS] for name, values in COLUMNS.items()} | columns
    dataset = Dataset.from_list(rows).cast_column("images", List(ImageFeature(decode=False)))
    for name, values in extra.items():
        dataset = dataset.add_column(name, values)
    return dataset


def as_text(case: Case, **more: Any) -> str:
    return f"{case.name}:{','.join(f'{key}={value}' for key, value in {**case.parameters, **more}.items())}"


def method_for(*objectives: str, cached: bool = False, **options: Any) -> PreferenceMethod:
    policy, other, processor = models()
    config = PairLossOptions(objective=list(objectives), **options)
    uses_reference = any(named.objective.uses_reference for named in PreferenceMethod.build_objectives(config)) and not cached
    reference = Reference(policy, kind="copy", model=other) if uses_reference else None
    return PreferenceMethod(processor, config, reference=reference, reference_fingerprint="this model")


def loss_of(method: PreferenceMethod, dataset: Dataset) -> float:
    batch = method.collate(list(method.prepare(dataset)))
    with torch.no_grad():
        return method.compute(models()[0], batch).loss_sum.item()


@functools.cache
def scored_pairs() -> list[Sides]:
    """The pairs as the formulas take them, from one forward pass of each model."""
    policy, other, _ = models()
    method = method_for("dpo")
    batch = method.collate(list(method.prepare(data_set())))
    inputs = {key: value for key, value in batch.items() if key != "numbers"}
    with torch.no_grad():
        outcomes = [compute_response_logps(model, inputs) for model in (policy, other)]
    parts = [[v.tolist() for v in outcome.per_response()] for outcome in outcomes]
    parts.append([v.tolist() for v in outcomes[0].scored.split(batch["layout"]["target"])])
    return [
        Sides(*((part[2 * i], part[2 * i + 1]) for part in parts), {name: values[i] for name, values in COLUMNS.items()})
        for i in range(NUM_PAIRS)
    ]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_loss_from_the_models_own_numbers(case: Case) -> None:
    # The baseline of kto_pair is the batch's: one pair at a time is what its formula knows.
    got = loss_of(method_for(as_text(case)), data_set().select([2]) if case.name == "kto_pair" else data_set())
    pairs = scored_pairs()[2:3] if case.name == "kto_pair" else scored_pairs()
    assert got == pytest.approx(sum(case.formula(pair) for pair in pairs), rel=2e-5, abs=2e-5)


def test_pairs_of_the_data_share_a_prefix() -> None:
    """Else the tests of step_dpo would be of DPO."""
    assert [pair.ids[0][0] == pair.ids[1][0] for pair in scored_pairs()][:2] == [True, True]


@pytest.mark.parametrize("name", ["dpo", "ipo", "ld_dpo", "step_dpo", "simpo"])
def test_packed_and_plain_rows_have_the_same_loss(name: str) -> None:
    expected = loss_of(method_for(name), data_set())
    assert loss_of(method_for(name, row_tokens=100), data_set()) == pytest.approx(expected, abs=2e-5)
    plain = method_for(name)
    plain.shared = False
    assert loss_of(plain, data_set()) == pytest.approx(expected, abs=2e-5)


def test_a_weighted_sum_and_its_parts() -> None:
    parts = {name: loss_of(method_for(name), data_set()) for name in ("dpo", "orpo", "kto_pair")}
    method = method_for("dpo,orpo:weight=0.5", "kto_pair:weight=2")
    batch = method.collate(list(method.prepare(data_set())))
    output = method.compute(models()[0], batch)
    assert output.loss_sum.item() == pytest.approx(parts["dpo"] + 0.5 * parts["orpo"] + 2 * parts["kto_pair"], abs=1e-4)
    for name, value in parts.items():
        assert float(output.metrics[f"loss/{name}"].total) == pytest.approx(value, abs=1e-4)


def test_beta_and_difficulty_reach_every_objective() -> None:
    """Difficulty 1/4 in the paper's mode makes beta 1.75 times as large."""
    hard = data_set(difficulty=[0.25] * NUM_PAIRS)
    for name in ("ipo", "kto_pair", "simpo"):
        beta = PAIR_OBJECTIVES.build(name).beta
        expected = loss_of(method_for(name, beta=1.75 * beta), data_set())
        assert loss_of(method_for(name, difficulty_mode="paper"), hard) == pytest.approx(expected, rel=1e-5), name


def test_mpo_is_asked_for_by_its_name_and_takes_difficulty() -> None:
    """The part without a preference has no beta, and none for difficulty to change."""
    parts = loss_of(method_for("dpo:weight=0.8,ddo:weight=0.2", sft_weight=1.0), data_set())
    assert loss_of(method_for("mpo"), data_set()) == pytest.approx(parts, rel=1e-6)
    hard = data_set(difficulty=[0.25] * NUM_PAIRS)
    assert loss_of(method_for("mpo", difficulty_mode="paper"), hard) == pytest.approx(
        loss_of(method_for("mpo", beta=0.175), data_set()), rel=1e-5
    )


def cached_columns() -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for side, name in enumerate(("chosen", "rejected")):
        columns[f"reference_token_logps_{name}"] = [list(pair.reference[side]) for pair in scored_pairs()]
        columns[f"reference_logps_{name}"] = [sum(pair.reference[side]) for pair in scored_pairs()]
    prompts = [method_for("dpo").encode(row)[0] for row in data_set()]
    columns |= {REFERENCE_TEXT: [digest_text(found) for found in prompts], REFERENCE_IMAGES: [found.image_digest for found in prompts]}
    return {**columns, REFERENCE_FINGERPRINT: ["this model"] * NUM_PAIRS}


@pytest.mark.parametrize("name", ["dpo", "ipo", "ld_dpo", "step_dpo", "fdpo,ld_dpo"])
def test_cached_log_probabilities_are_the_reference(name: str) -> None:
    dataset = data_set(**cached_columns())
    for index, row in enumerate(dataset):
        method_for(name, cached=True).check(row, index=index)
    assert loss_of(method_for(name, cached=True), dataset) == pytest.approx(loss_of(method_for(name), data_set()), abs=2e-5)


def test_token_log_probabilities_are_asked_for_where_tokens_are_weighted() -> None:
    columns = cached_columns()
    sums = {name: values for name, values in columns.items() if "token" not in name}
    with pytest.raises(ValueError, match="for reference 'cached', has no column reference_token_logps_chosen"):
        method_for("ld_dpo", cached=True).check_dataset(data_set(**sums))
    method_for("dpo", cached=True).check_dataset(data_set(**sums))
    columns["reference_token_logps_rejected"][1] = columns["reference_token_logps_rejected"][1][:-1]
    with pytest.raises(ValueError, match=r"reference_token_logps_rejected has \d+ values for \d+ tokens; run mmalign cache-logps"):
        loss_of(method_for("ld_dpo", cached=True), data_set(**columns))
    columns["reference_token_logps_chosen"][0][2] = float("nan")
    with pytest.raises(ValueError, match="reference_token_logps_chosen is nan; expected a finite log-probability"):
        method_for("ld_dpo", cached=True).check(data_set(**columns)[0], index=0)


@pytest.mark.parametrize("name", ["asft", "orpo", "simpo", "cpo"])
def test_without_a_reference_one_model_runs_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def count(model: Any, *args: Any, **options: Any) -> ResponseLogps:
        passes.append(model)
        return compute_response_logps(model, *args, **options)

    monkeypatch.setattr("mmalign.methods.policy_and_reference.compute_response_logps", count)
    loss_of(method_for(name), data_set())
    assert passes == [models()[0]]
    policy, other, processor = models()
    with pytest.raises(ValueError, match=f"objective {name} compares with no reference; leave the reference out"):
        PreferenceMethod(processor, PairLossOptions(objective=[name]), reference=Reference(policy, kind="copy", model=other))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gradient_reaches_the_policy_and_never_the_reference(case: Case) -> None:
    policy, other, _ = models()
    method = method_for(as_text(case))
    method.compute(policy, method.collate(list(method.prepare(data_set())))).loss_sum.backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    assert any(g.abs().max() > 0 for g in gradients) or case.name == "clipped_dpo"
    assert all(torch.isfinite(g).all() for g in gradients)
    assert all(p.grad is None for p in other.parameters())
    policy.zero_grad()


def test_a_new_objective_trains_without_another_line() -> None:
    @PAIR_OBJECTIVES.register("toy")
    def toy(*, beta: float = 1.0, pull: float = 2.0) -> PairObjective:
        return PairObjective(beta=beta, offset=1.0, outer=squared, weight=lambda columns: pull * columns["toy"], columns=("toy",))

    try:
        method = method_for("toy:pull=3")
        assert method.columns[-1] == "toy"
        weights = [0.1, 0.2, 0.3, 0.4]
        expected = sum(3 * w * (pair.h(0) - pair.h(1) - 1) ** 2 for w, pair in zip(weights, scored_pairs(), strict=True))
        assert loss_of(method, data_set(toy=weights)) == pytest.approx(expected, rel=1e-4)
    finally:
        PAIR_OBJECTIVES.unregister("toy")


@pytest.mark.parametrize(
    ("objective", "column", "value", "message"),
    [
        ("dno", "score_chosen", float("nan"), "score_chosen is nan; expected a finite number"),
        ("madpo", "score_rejected", None, "score_rejected is None; expected a finite number"),
        ("step_dpo", "visits_rejected", -1, "visits_rejected is -1; expected a finite number from 0"),
    ],
)
def test_rows_whose_numbers_cant_be_used(objective: str, column: str, value: Any, message: str) -> None:
    row = {**data_set()[0], column: value}
    with pytest.raises(ValueError, match=message):
        method_for(objective).check(row, index=0)
    method_for("dpo").check(row, index=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": []}, "no objective is named; choose one or more of dpo"),
        ({"objective": ["dpo", "dpo:beta=0.3"]}, "objective dpo is named twice"),
        ({"objective": ["orpo"], "beta": 0.1}, "beta is 0.1, and orpo has none; leave it out"),
        (
            {"objective": ["dpo", "orpo"], "difficulty_mode": "paper"},
            "'paper' changes beta, and orpo has none; use 'loss-weight' or 'off'",
        ),
        ({"objective": ["cdpo:label_smoothing=0.7"]}, r"label_smoothing is 0.7; expected a number in \[0, 0.5\)"),
        ({"objective": ["dpo:weight=0"]}, "dpo: weight is 0.0; expected a positive number"),
        ({"objective": ["dpo,beta=0.1,ipo:beta"]}, "objective ipo: 'beta' is no parameter=value"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceMethod(models()[2], PairLossOptions(**options), reference=None)

"""AMBER: nouns matched by hand, the script's rounding, constant answers on the real annotations, refusals."""

import json
from pathlib import Path

import pytest

from mmalign.evaluation.amber import Amber, AmberQuestion, load_amber, read_reply
from mmalign.evaluation.amber_generative import Counts, Scene, Words, count_nouns
from mmalign.evaluation.word_similarity import choose_similarity, exact_similarity, read_table, write_table

ASSOCIATIONS = {"grass": ["ground"], "road": ["ground", "path"], "dog": ["puppy"], "cat": [], "car": ["truck"], "TV": [], "lamp": []}
WORDS = Words(ASSOCIATIONS, frozenset({"light"}), exact_similarity())
SCENE = Scene(["grass", "road", "dog", "dog"], ["cat", "car"])


@pytest.mark.parametrize(
    ("nouns", "expected"),
    [
        # Association words come before the objects: "ground" covers grass, its first owner, and never road.
        (["ground"], Counts(1, 0, 1, 0)),
        (["ground", "grass"], Counts(2, 0, 1, 0)),
        (["path", "road", "grass"], Counts(3, 0, 2, 0)),
        # Of two dogs only the first can be covered.
        (["dog", "puppy"], Counts(2, 0, 1, 0)),
        # An imagined object and its association count for Cog once, and as hallucinated each time.
        (["truck", "car", "car"], Counts(3, 3, 0, 1)),
        (["TV"], Counts(1, 1, 0, 0)),
        # Safe words stand in the denominator alone.
        (["light"], Counts(1, 0, 0, 0)),
        ([], Counts(0, 0, 0, 0)),
    ],
)
def test_nouns_by_hand(nouns: list[str], expected: Counts) -> None:
    assert count_nouns(nouns, SCENE, WORDS) == expected


def test_near_words(tmp_path: Path) -> None:
    table = tmp_path / "similar_words.json"
    table.write_text(json.dumps([["lamp", "cat", 0.9], ["lamp", "road", 0.81], ["TV", "dog", 0.8], ["TV", "car"]]))
    words = Words(ASSOCIATIONS, frozenset(), read_table(table))
    # Near to an imagined object and to a real one: it counts for Cog, but not as hallucinated.
    assert count_nouns(["lamp"], SCENE, words) == Counts(1, 0, 1, 1)
    # 0.8 is not above the threshold; a pair without a number is near.
    assert count_nouns(["TV"], SCENE, words) == Counts(1, 1, 0, 1)
    # Named and near: the first near word may belong to another object, and both count.
    both = Words(ASSOCIATIONS, frozenset(), exact_similarity()._replace(is_near=lambda a, b: {a, b} == {"car", "cat"}))
    assert count_nouns(["car"], SCENE, both) == Counts(1, 1, 0, 2)


def test_tables_hold_near_pairs_only(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"cat": {"kitten": 0.9, "car": 0.1}}')
    similarity = read_table(tmp_path / "a.json")
    write_table(tmp_path / "b.json", ["cat", "kitten", "car"], similarity)
    assert json.loads((tmp_path / "b.json").read_text()) == [["cat", "kitten"]]
    assert read_table(tmp_path / "b.json").is_near("kitten", "cat")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(ValueError, match="c.json is no table of near words"):
        read_table(tmp_path / "c.json")


def test_similarity_falls_back_in_the_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("nltk")
    try:
        import spacy

        if spacy.util.is_package("en_core_web_lg"):
            pytest.skip("spaCy's vectors are installed")
    except ImportError:
        pass
    assert choose_similarity("auto", folder=tmp_path).name == "exact"
    assert "can't be compared with published ones" in caplog.text
    (tmp_path / "similar_words.json").write_text("[]")
    assert choose_similarity("auto", folder=tmp_path).name == "table similar_words.json"
    with pytest.raises(ValueError, match="no word vectors: pip install 'mmalign\\[amber\\]'"):
        choose_similarity("spacy", folder=tmp_path)


def test_descriptions_by_hand(shared_data: Path, nltk_words: None) -> None:
    scenes = {"1": SCENE, "2": Scene(["cat"], ["dog"])}
    # 1: grass, truck (a sentence's first Grass is not matched). 2: cat.
    answers = {"1": "Grass. There is grass behind a truck.", "2": "It shows a cat."}
    amber = Amber([], scenes, [], [], WORDS)
    assert [(item.correct, item.label) for item in amber.items(answers, mode="official")] == [
        (False, "grass, road, dog, dog"),
        (True, "cat"),
    ]
    assert amber.score(answers, mode="official") == {"amber/chair": 33.3, "amber/cover": 40.0, "amber/hal": 50.0, "amber/cog": 33.3}


def item(i: int, type_: str, is_yes: bool) -> AmberQuestion:
    return AmberQuestion(str(i), type_, is_yes)


def test_questions_by_hand() -> None:
    state, number = "discriminative-attribute-state", "discriminative-attribute-number"
    items = [item(1, state, False), item(2, state, False), item(3, state, True), item(4, number, False), item(5, "relation", False)]
    answers = {"1": "No", "2": "Yes", "3": "No", "4": "No.", "5": "No"}
    amber = Amber([], {}, items, [], None)
    got = amber.score(answers, mode="official")
    # No was said 3 times, rightly twice; the truth is no 4 times. "No." is wrong and no answer.
    assert (got["amber/accuracy"], got["amber/precision"], got["amber/recall"]) == (40.0, 66.6, 50.0)
    # From the rounded values: 2 * .666 * .5 / (.666 + .5 + .0001).
    assert got["amber/f1"] == 57.1
    assert got["amber/unknown"] == 1
    # Three pooled counters: 1 / 4.003, 1 / 2.003, 1 / 3.003.
    assert [got[f"amber/attribute/{name}"] for name in ("accuracy", "precision", "recall")] == [25.0, 49.9, 33.3]
    assert got["amber/state/precision"] == 50.0
    assert "amber/existence/f1" not in got
    assert amber.score(answers, mode="strict")["amber/recall"] == 75.0


def test_harnesses_score_the_same_answers_otherwise() -> None:
    existence, state, number = "discriminative-hallucination", "discriminative-attribute-state", "discriminative-attribute-number"
    records = [item(1, existence, False), item(2, state, True), item(3, number, True), item(4, state, False), item(5, "relation", True)]
    answers = {"1": "no", "2": "Yes.", "3": "Yes", "4": "Yes, no doubt", "5": " YES\n"}
    for mode in ("official", "strict"):
        got = Amber([], {}, records, [], None).score(answers, mode=mode)  # type: ignore[arg-type]
        # VLMEvalKit: one word of both, whatever stands around it; the mean of 1 of 1, 2 of 3, 1 of 1.
        assert [got[f"amber/vlmevalkit/{kind}/accuracy"] for kind in ("existence", "attribute", "relation")] == pytest.approx(
            [100, 200 / 3, 100]
        )
        assert got["amber/vlmevalkit/accuracy"] == pytest.approx(800 / 9)
        # lmms-eval: that word alone: 1, 3 and 5 of 5. Of the three yes two are read, rightly.
        assert (got["amber/lmms_eval/accuracy"], got["amber/lmms_eval/f1_yes"]) == (60.0, 100.0)
    assert got["amber/accuracy"] == 80.0
    assert "amber/f1_yes" not in got


@pytest.mark.parametrize("answer", ["yes", "Yes.", "Yes, it is", "", "no"])
def test_official_replies_are_exact(answer: str) -> None:
    assert read_reply(answer, mode="official") is None


@pytest.fixture(scope="module")
def amber(shared_data: Path) -> Amber:
    return load_amber(shared_data / "benchmarks" / "amber", similarity="exact")


def test_constant_answers_on_the_real_questions(amber: Amber) -> None:
    assert (len(amber.scenes), len(amber.records), len(amber.questions())) == (1004, 14216, 15220)
    got = amber.score({item.id: "Yes" if item.is_yes else "No" for item in amber.records}, mode="official")
    assert (got["amber/accuracy"], got["amber/always_no/f1"], got["amber/always_no/accuracy"]) == (100.0, 79.7, 66.3)
    assert got["amber/always_no/existence/f1"] == 100.0
    # By VLMEvalKit's mean of three kinds, where existence has no yes.
    kinds = {"existence": ["hallucination"], "attribute": ["state", "number", "action"], "relation": ["relation"]}
    no = [[not one.is_yes for one in amber.records if one.type.split("-")[-1] in names] for names in kinds.values()]
    assert got["amber/always_no/vlmevalkit/accuracy"] == pytest.approx(sum(100 * sum(some) / len(some) for some in no) / 3)
    assert (got["amber/vlmevalkit/accuracy"], got["amber/lmms_eval/f1_yes"], got["amber/always_no/lmms_eval/f1_yes"]) == (100, 100, 0)
    assert "amber/chair" not in got
    assert "amber/score" not in got
    lower = amber.score({item.id: "yes" if item.is_yes else "no" for item in amber.records}, mode="official")
    assert (lower["amber/accuracy"], lower["amber/f1"], lower["amber/unknown"]) == (0.0, 0.0, 14216)


def test_the_score_joins_both_parts(amber: Amber, nltk_words: None) -> None:
    answers = dict.fromkeys(amber.scenes, "There is a man.") | {item.id: "No" for item in amber.records}
    got = amber.score(answers, mode="official")
    assert got["amber/score"] == pytest.approx((100 - got["amber/chair"] + 79.7) / 2)


@pytest.mark.parametrize(("chair", "f1", "published"), [(7.8, 74.7, "83.5"), (4.6, 87.4, "91.4")])
def test_published_scores(chair: float, f1: float, published: str) -> None:
    """LLaVA-1.5-7B and GPT-4V in AMBER's own table."""
    assert f"{round((100 - chair + f1) / 2, 2) + 1e-9:.1f}" == published


def test_one_query_file_scores_its_questions_alone(shared_data: Path) -> None:
    amber = load_amber(shared_data / "benchmarks" / "amber" / "query_generative.json", similarity="exact")
    assert (len(amber.required()), amber.records) == (1004, [])
    assert amber.questions()[0].prompt == "Describe this image."


def test_query_files_in_their_released_folder(tmp_path: Path) -> None:
    rows = [{"id": i, "type": "relation", "truth": "no"} for i in (1, 2)]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    (tmp_path / "query").mkdir()
    queries = [{"id": i, "image": "AMBER_1.jpg", "query": f"Is it {i}?"} for i in (1, 2)]
    (tmp_path / "query" / "query_all.json").write_text(json.dumps(queries))
    (tmp_path / "query" / "query_discriminative-relation.json").write_text(json.dumps(queries[1:]))
    assert [question.prompt for question in load_amber(tmp_path).questions()] == ["Is it 1?", "Is it 2?"]
    assert load_amber(tmp_path / "query" / "query_discriminative-relation.json").required() == ["2"]
    assert load_amber(tmp_path / "annotations.json").required() == ["1", "2"]
    with pytest.raises(ValueError, match=r"no file or folder .*query_generative.json; it is to hold AMBER's annotations"):
        load_amber(tmp_path / "query_generative.json")


def test_folders_that_are_not_amber(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks AMBER's annotations: expected one file annotations.json"):
        load_amber(tmp_path)
    (tmp_path / "annotations.json").write_text(json.dumps([{"id": 1, "type": "generative", "truth": ["cow"], "hallu": []}]))
    (tmp_path / "relation.json").write_text("{}")
    (tmp_path / "safe_words.txt").write_text("")
    with pytest.raises(ValueError, match=r"relation.json has no cow, which annotation 1 holds"):
        load_amber(tmp_path)
    (tmp_path / "annotations.json").write_text(json.dumps([{"id": 1, "type": "odd", "truth": "yes"}]))
    with pytest.raises(ValueError, match="1 is of type 'odd'"):
        load_amber(tmp_path)

"""Pairs from images alone: scores by hand, runs on a tiny world and on plain images, resume to the same bytes."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_tools.asking import LocalAsker
from data_tools.rejected import DrawnRejected
from data_tools.response_scores import (
    AnswerScorer,
    JudgeScorer,
    LookingScorer,
    TruthScorer,
    _statement_id,
    split_sentences,
)
from data_tools.sample_options import SampleOptions
from data_tools.sample_pairs import build, main
from data_tools.sampling import ResponseSampler, sample_chunk
from data_tools.scoring import Chosen, Sampled, best_and_worst
from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_pair
from mmalign.engine.choosing import Sampling
from mmalign.evaluation.answers import Question
from mmalign.evaluation.chair import load_chair
from mmalign.evaluation.object_words import find_mentions, read_synonyms
from mmalign.models.load import load_mllm
from mmalign.rewards.exact import plain_answer
from mmalign.rewards.rating import parse_rating
from tests.data_files import save_rows
from tests.evaluation.judges.chat_server import run_chat_server
from tests.tiny_families import FAMILIES
from tests.tiny_models import build_tiny_llava, random_image, random_text

QUESTION = Question("q", "a.png", "What is there?")


def test_truth_scores_by_hand(tmp_path: Path) -> None:
    scorer = TruthScorer(read_synonyms("dog, puppy\ncar\nbus\n"))
    responses = ["A dog and a puppy beside a car.", "A dog.", "A dog, a car and two buses.", "A bus.", "Nothing."]
    item = Sampled(QUESTION, frozenset({"dog", "car"}), None, responses)
    # Both; one of two; both and one absent; none and one absent; none.
    assert scorer([item], folder=tmp_path) == [[1.0, 0.5, 0.5, -0.5, 0.0]]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5, 1.0, 0.0, 1.0], Chosen("b", "c", (1.0, 0.0))),
        ([None, 1.0, 0.5, None], Chosen("b", "c", (1.0, 0.5))),
        ([0.5, 0.5, 0.5, 0.5], None),
        ([None, None, None, 1.0], None),
        ([None] * 4, None),
    ],
)
def test_best_and_worst(scores: list[float | None], expected: Chosen | None) -> None:
    assert best_and_worst(["a", "b", "c", "d"], scores) == expected


def test_an_empty_response_is_never_chosen() -> None:
    assert best_and_worst(["", "b", "c"], [1.0, 0.5, 0.0]) == Chosen("b", "c", (0.5, 0.0))


def test_ratings_and_sentences() -> None:
    assert [parse_rating(reply) for reply in ("7", "Rating: 10/10", "0", "11", "good")] == [7.0, 10.0, None, None, None]
    assert split_sentences("A dog. Is it red?\nYes! ...") == ["A dog.", "Is it red?", "Yes!"]


def rated(response: str) -> int:
    """A rule that a test can follow."""
    return len(response.split("\n")[0]) % 10 + 1


class CountingJudge:
    """Rates the response in the prompt by ``rated``."""

    name = "counting"

    def ask(self, prompts: Sequence[str]) -> list[str]:
        return [f"Rating: {rated(prompt.split('Response: ')[1])}" for prompt in prompts]


def test_judge_scores_keep_their_places(tmp_path: Path) -> None:
    items = [Sampled(QUESTION, None, "A {cat}.", ["aa", "b"]), Sampled(QUESTION, None, "Hm.", ["aaa {reference}"])]
    assert JudgeScorer(CountingJudge())(items, folder=tmp_path) == [[3.0, 2.0], [6.0]]
    with pytest.raises(ValueError, match="question q has no reference"):
        JudgeScorer(CountingJudge())([Sampled(QUESTION, None, None, ["a"])], folder=tmp_path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "world"
    words = f"world build --out {out} --num-scenes 4 --num-pairs 4 --num-eval-scenes 5 --num-workers 1"
    assert mmalign(words.split()) == 0
    # The tiny model's words, so that what it samples at random names objects.
    (out / "eval" / "synonyms.txt").write_text("circle\nsquare\ntriangle\nstar\nheart\ncross\nmoon\nring\ndog\ncat\n")
    return out


def test_answers_by_hand(tmp_path: Path) -> None:
    responses = ["Red.", "<think>red?</think> blue", "  dark  RED ", "a red one", '"red"', "<think>red"]
    one = Sampled(Question("q", "a.png", "What colour?"), None, None, responses, ("red", "dark red"))
    assert AnswerScorer()([one], folder=tmp_path) == [[1, 0, 1, 0, 1, 0]]
    with pytest.raises(ValueError, match="question q has no answer"):
        AnswerScorer()([replace(one, answers=())], folder=tmp_path)


def test_questions_with_answers(tmp_path: Path, tiny_llava_dir: Path) -> None:
    """One of the right answers is what the model says by chance; the other samples are wrong. All wrong, there is no pair.

    Rows have the names of ``train online`` too.
    """
    photos = save_photos(tmp_path / "photos", 2)
    rows = [{"image": "0.png", "prompt": "What is it?"}, {"images": ["1.png"], "question": "What is it?"}]
    source = tmp_path / "questions.jsonl"
    words = [str(source), "--image-root", str(photos), "--model", str(tiny_llava_dir), "--scorer", "answers", "--max-new-tokens", "3"]

    def sample(out: str, answers: list[Any], *, status: int) -> list[dict[str, Any]]:
        lines = [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]
        source.write_text("\n".join(map(json.dumps, lines)))
        assert main([*words, "--out", str(tmp_path / out)]) == status
        return [json.loads(line) for line in (tmp_path / out / "chunks" / "000000000.jsonl").read_text().splitlines()]

    first = sample("first", ["none of them", ["nor", "these"]], status=2)
    assert [line["scores"] for line in first] == [[0.0] * 4] * 2
    again = sample("again", [first[0]["responses"][1].upper() + ".", ["x", first[1]["responses"][2]]], status=0)
    for number, line in zip((1, 2), again, strict=True):
        assert line["scores"] == [float(plain_answer(text) == plain_answer(line["responses"][number])) for text in line["responses"]]
    source.write_text(json.dumps({**rows[0], "answer": 3}))
    assert main([*words, "--out", str(tmp_path / "bad")]) == 2


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_truth_on_a_world_and_resume_to_the_same_bytes(tmp_path: Path, world: Path, tiny_llava_dir: Path) -> None:
    words = f"{world}/eval --model {tiny_llava_dir} --scorer truth --samples 8 --batch-size 2 --max-new-tokens 12 --temperature 3".split()
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    chair = load_chair(world / "eval")
    pairs = [read_pair(raw, index=i) for i, raw in enumerate(load_rows(tmp_path / "whole" / "pairs"))]
    assert pairs
    for pair, raw in zip(pairs, load_rows(tmp_path / "whole" / "pairs"), strict=True):
        named = [{mention.name for mention in find_mentions(text, chair.words)} for text in (pair.chosen, pair.rejected)]
        good, bad = (len(names & chair.truths[pair.id]) - len(names - chair.truths[pair.id]) for names in named)
        assert good > bad
        assert [raw["score_chosen"], raw["score_rejected"]] == [score / len(chair.truths[pair.id]) for score in (good, bad)]
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "whole", stopped)
    shutil.rmtree(stopped / "pairs")
    (stopped / "chunks" / "000000002.jsonl").unlink()
    assert main([*words, "--out", str(stopped)]) == 0
    assert files_of(stopped) == files_of(tmp_path / "whole")


def save_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        random_image(i).save(folder / f"{i}.png")
    return folder


def test_images_alone_with_a_model_that_looks(tmp_path: Path, tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model can't say yes or no; what its answers are read as is replaced, the asking is real."""
    verdicts = iter([True, False, None, True, True, False, False] * 50)
    monkeypatch.setattr("data_tools.asking.parse_strict", lambda answer: next(verdicts))
    photos = save_photos(tmp_path / "photos", 3)
    (photos / "broken.jpg").write_bytes(b"junk")
    words = f"{photos} --model {tiny_llava_dir} --scorer mllm --labeler {tiny_llava_dir} --max-new-tokens 8 --max-reject-share 0.5"
    assert main([*words.split(), "--prompts", "What do you see?", "--temperature", "2", "--out", str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "chunks" / "000000000.jsonl").read_text().splitlines()]
    assert [len(line.get("scores", [])) for line in lines] == [4, 4, 4, 0]
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject["id"] == "broken.jpg/0"
    asked = [json.loads(line) for line in next((tmp_path / "out" / "scoring").rglob("verdicts.jsonl")).read_text().splitlines()]
    texts = {sentence for line in lines for response in line.get("responses", []) for sentence in split_sentences(response)}
    assert {row["prompt"].split("\n")[0].removeprefix("Statement: ") for row in asked} == texts
    assert len(load_rows(tmp_path / "out" / "pairs")) >= 1


def options(source: Path, out: Path, model: Path, **changes: Any) -> SampleOptions:
    return SampleOptions(**{"source": source, "out": out, "model": str(model), "max_new_tokens": 8, "temperature": 3.0, **changes})


def test_questions_with_references_and_a_judge(tmp_path: Path, tiny_llava_dir: Path) -> None:
    photos = save_photos(tmp_path / "photos", 3)
    rows = [{"id": f"q{i}", "image": f"{i}.png", "prompt": "Hm?", "reference": "A dog."} for i in range(3)]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    build(options(file, tmp_path / "out", tiny_llava_dir, scorer="judge", image_root=photos), CountingJudge())
    pairs = [read_pair(raw, index=i) for i, raw in enumerate(load_rows(tmp_path / "out" / "pairs"))]
    assert pairs
    assert all(rated(pair.chosen) > rated(pair.rejected) for pair in pairs)
    assert {pair.source for pair in pairs} == {"on-policy/judge"}


def test_a_judge_behind_an_endpoint(tmp_path: Path, tiny_llava_dir: Path) -> None:
    """From the command line, over HTTP; resumed to the same bytes."""
    photos = save_photos(tmp_path / "photos", 3)
    rows = [{"id": f"q{i}", "image": f"{i}.png", "prompt": "Hm?", "reference": "A dog."} for i in range(3)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with run_chat_server() as server:
        server.answer = lambda prompt: f"Rating: {rated(prompt.split('Response: ')[1])}"
        words = f"{tmp_path}/questions.jsonl --image-root {photos} --model {tiny_llava_dir} --scorer judge --url {server.url} --llm-name m"
        words += " --max-new-tokens 8 --temperature 3 --batch-size 1"
        assert main([*words.split(), "--out", str(tmp_path / "whole")]) == 0
        assert {(request["temperature"], request["max_tokens"]) for request in server.requests} == {(0, 8)}
        pairs = [read_pair(raw, index=i) for i, raw in enumerate(load_rows(tmp_path / "whole" / "pairs"))]
        assert pairs
        assert all(rated(pair.chosen) > rated(pair.rejected) for pair in pairs)
        stopped = tmp_path / "stopped"
        shutil.copytree(tmp_path / "whole", stopped)
        for name in ("000000001.jsonl", "000000002.jsonl"):
            (stopped / "chunks" / name).unlink()
        before = len(server.requests)
        assert main([*words.split(), "--out", str(stopped)]) == 0
        assert len(server.requests) == before, "the same responses were rated before"
    assert files_of(stopped) == files_of(tmp_path / "whole")


def test_a_local_judge(tmp_path: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model's ratings are no numbers, so that there is no pair; what was asked and said stays."""
    photos = save_photos(tmp_path / "photos", 2)
    rows = [{"image": f"{i}.png", "prompt": "Hm?", "reference": "A dog."} for i in range(2)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = f"{tmp_path}/questions.jsonl --image-root {photos} --model {tiny_llava_dir} --scorer judge --llm {tiny_llava_dir}"
    assert main([*words.split(), "--max-new-tokens", "8", "--temperature", "3", "--out", str(tmp_path / "out")]) == 2
    assert "no pair from 2 rows (2 without two unequal responses)" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out" / "chunks" / "000000000.jsonl").read_text().splitlines()]
    replies = {row["prompt"]: row["response"] for row in map(json.loads, (tmp_path / "out" / "replies.jsonl").read_text().splitlines())}
    assert {prompt.split("Response: ")[1].split("\n\nHow well")[0] for prompt in replies} == {
        r for line in lines for r in line["responses"]
    }
    assert all(parse_rating(reply) is None for reply in replies.values())


def test_a_left_over_verdict_meets_no_other_response(tmp_path: Path, tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped chunk left verdicts on responses; where sampling isn't exact, the next attempt has other ones."""
    monkeypatch.setattr("data_tools.asking.parse_strict", {"yes": True, "no": False}.get)
    photos = save_photos(tmp_path / "photos", 1)
    scorer = LookingScorer(LocalAsker(None, None, image_root=photos, batch_size=1))
    question = Question("q", "0.png", "Hm?")
    verdicts = {_statement_id(0, 0, "A dog."): True}
    assert scorer._score(verdicts, 0, 0, "A dog.") == 1.0
    assert scorer._score(verdicts, 0, 0, "A cat.") is None
    model, processor = load_mllm(str(tiny_llava_dir), dtype="float32")
    scorer = LookingScorer(LocalAsker(model, processor, image_root=photos, batch_size=1))
    stale = {"id": _statement_id(0, 0, "A dog."), "image": "0.png", "prompt": "x", "response": "yes"}
    (tmp_path / "chunk").mkdir()
    (tmp_path / "chunk" / "verdicts.jsonl.partial").write_text(json.dumps(stale) + "\n")
    # The random model says neither yes nor no, so that only a verdict that is left over can give a score.
    assert scorer([Sampled(question, None, None, ["A cat."])], folder=tmp_path / "chunk") == [[None]]


@pytest.mark.parametrize("family", ["llava", "llava-next", "qwen2.5-vl", "idefics3", "gemma3", "paligemma", "qwen3.5"])
def test_responses_depend_on_their_question_alone(family: str) -> None:
    """Not on the questions beside it, nor on how many responses are asked for."""
    model, processor = FAMILIES[family]()
    prompts, images = [random_text(i, 2 + i) for i in range(3)], [random_image(i) for i in range(3)]

    def sampler(answers: int) -> ResponseSampler:
        return ResponseSampler(model, processor, sampling=Sampling(top_p=0.95, answers=answers), max_new_tokens=6)

    questions = list(map(sampler(3).read, prompts, images))
    together = sampler(3)(questions, seeds=[5, 6, 7])
    for i in range(3):
        assert sampler(2)([questions[i]], seeds=[5 + i]) == [together[i][:2]]
        assert sampler(3)([questions[i]], seeds=[50 + i]) != [together[i]]
    assert len({text for texts in together for text in texts}) > 5


def test_what_the_processor_refuses_costs_its_question(tmp_path: Path) -> None:
    """A strip that Qwen's does not take, and words that it reads as an image's place."""
    model, processor = FAMILIES["qwen2-vl"]()
    random_image(0).save(tmp_path / "a.png")
    random_image(1, (4, 910)).save(tmp_path / "thin.png")
    asked = [("a.png", "what"), ("thin.png", "what"), ("a.png", f"what is {processor.image_token}")]
    items = [Sampled(Question(str(i), name, prompt), None, None, []) for i, (name, prompt) in enumerate(asked)]
    sampler = ResponseSampler(model, processor, sampling=Sampling(answers=2), max_new_tokens=3)
    scorer: Any = SimpleNamespace(lines=lambda good, folder: [{} for _ in good])
    lines = sample_chunk(sampler, items, scorer, image_root=tmp_path, folder=tmp_path, seeds=[1, 2, 3])
    assert len(lines[0]["responses"]) == 2
    assert "Qwen2VLProcessor refuses the row: absolute aspect ratio" in lines[1]["reason"]
    assert "reads as an image's place" in lines[2]["reason"]


def test_beams_give_the_likeliest_responses(tmp_path: Path, tiny_llava_dir: Path) -> None:
    """Those of stock beams, the best first, by the sum of log-probabilities."""
    photos = save_photos(tmp_path / "photos", 2)
    words = f"{photos} --model {tiny_llava_dir} --scorer mllm --labeler {tiny_llava_dir} --max-new-tokens 6 --dtype float32"
    # A random model says neither yes nor no, so that there is no pair.
    main([*words.split(), "--prompts", "Hm?", "--samples", "3", "--search", "beam", "--out", str(tmp_path / "out")])
    lines = [json.loads(line) for line in (tmp_path / "out" / "chunks" / "000000000.jsonl").read_text().splitlines()]
    model, processor = load_mllm(str(tiny_llava_dir), dtype="float32")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hm?"}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    for i, line in enumerate(lines):
        inputs = processor(text=text, images=random_image(i), return_tensors="pt")
        options = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0, "do_sample": False}
        out = model.generate(**inputs, max_new_tokens=6, **options)[:, inputs["input_ids"].shape[1] :]
        assert line["responses"] == [processor.decode(ids, skip_special_tokens=True).strip() for ids in out]


def test_the_size_of_chunks_changes_no_response(tmp_path: Path, tiny_llava_dir: Path) -> None:
    """Of a float32 model of this size; and a broken image in the chunk moves no seed."""
    photos = save_photos(tmp_path / "photos", 4)
    words = f"{photos} --model {tiny_llava_dir} --scorer mllm --labeler {tiny_llava_dir} --max-new-tokens 6 --dtype float32 --samples 3"
    responses = []
    for size, broken in ((1, False), (3, False), (3, True)):
        if broken:
            (photos / "1.png").write_bytes(b"junk")
        out = tmp_path / f"{size}{broken}"
        # A random model says neither yes nor no, so that there is no pair.
        main([*words.split(), "--prompts", "Hm?", "--batch-size", str(size), "--max-reject-share", "1", "--out", str(out)])
        lines = [json.loads(line) for path in sorted((out / "chunks").glob("*.jsonl")) for line in path.read_text().splitlines()]
        responses.append([line.get("responses") for line in lines])
    assert responses[0] == responses[1]
    assert responses[2] == [responses[0][0], None, *responses[0][2:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer": "truth"}, "--scorer truth needs to know what is in the images"),
        ({"scorer": "mllm"}, "--scorer mllm and --labeler MODEL go together"),
        ({"scorer": "truth", "samples": 1}, "samples is 1; expected at least 2"),
        ({"scorer": "truth", "top_p": 1.1}, "top_p is 1.1; expected more than 0 and at most 1"),
        ({"scorer": "truth", "temperature": 0.0}, "temperature is 0.0, top_p 0.95, top_k 0; expected a temperature above 0"),
        ({"scorer": "truth", "rejected": "did"}, "rejected is 'did'; expected worst, or did:beta=0.5"),
        ({"scorer": "truth", "rejected": "did:beta=1"}, "needs --target MODEL or --reward-scale X"),
        ({"scorer": "truth", "target": "dpo"}, "--target is of --rejected did:beta=B"),
        ({"scorer": "truth", "rejected": "did:beta=1", "reward_scale": 0.0}, "reward_scale is 0.0; expected a positive number"),
        ({"scorer": "questions", "select": "minimax", "rejected": "did:beta=1", "reward_scale": 1.0}, "chooses both responses"),
        ({"scorer": "truth", "prompts": []}, "say what to ask about each with --prompts"),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, tiny_llava_dir: Path, changes: dict[str, Any], message: str) -> None:
    photos = save_photos(tmp_path / "photos", 1)
    with pytest.raises(ValueError, match=message):
        build(options(photos, tmp_path / "out", tiny_llava_dir, **{"prompts": ["Hm?"], **changes}))


def test_the_rejected_response_is_drawn_among_those_below_the_best() -> None:
    """With h of .8, -.3 and -1.1 and beta .5 in shares of .188, .326 and .486; an equal of the best and one without words never."""
    line = {
        "responses": ["best", "a", "b", "c", "equal", " "],
        "scores": [1.0, 0.5, 0.0, 0.2, 1.0, 0.0],
        "log_ratios": [9, 0.8, -0.3, -1.1, -9, -9],
    }
    drawn = DrawnRejected(TruthScorer({}), beta=0.5, ratios=lambda items: [], scale=1.0, seed=3)
    found = [drawn.choose({**line, "index": index}) for index in range(4000)]
    shares = [
        sum(pair == Chosen("best", text, (1.0, score)) for pair in found) / 4000 for text, score in (("a", 0.5), ("b", 0.0), ("c", 0.2))
    ]
    assert sum(shares) == 1
    # Four standard deviations are .03.
    assert shares == pytest.approx([0.188, 0.326, 0.486], abs=0.03)
    assert [drawn.choose({**line, "index": index}) for index in range(9)] == found[:9]
    by_score = DrawnRejected(TruthScorer({}), beta=1000.0, ratios=None, scale=0.01, seed=3)
    assert {by_score.choose({**line, "index": index}) for index in range(20)} == {Chosen("best", "b", (1.0, 0.0))}
    assert by_score.choose({"responses": ["a", "b"], "scores": [1.0, 1.0], "index": 0}) is None


def test_log_ratios_of_a_target(tmp_path: Path, world: Path, tiny_llava_dir: Path) -> None:
    """Against ``cache-logps`` of both models on the same texts; the model itself as target has none."""
    model, processor = build_tiny_llava(seed=5)
    target = tmp_path / "target"
    model.save_pretrained(target)
    processor.save_pretrained(target)
    shared = options(world / "eval", tmp_path / "out", tiny_llava_dir, scorer="truth", samples=3, rejected="did:beta=0.5")
    build(replace(shared, target=str(target)))
    lines = [json.loads(line) for path in sorted((tmp_path / "out" / "chunks").glob("*.jsonl")) for line in path.read_text().splitlines()]
    asked = load_chair(world / "eval").questions()
    rows = [
        {
            "id": question.id,
            "images": [str(world / "eval" / "images" / question.image)],
            "prompt": [{"role": "user", "content": question.prompt}],
            "responses": line["responses"],
            "scores": [0.0] * 3,
        }
        for question, line in zip(asked, lines, strict=True)
    ]
    lists = save_rows(tmp_path / "lists.parquet", rows)
    found = []
    for name, folder in (("target", target), ("start", tiny_llava_dir)):
        words = ["cache-logps", str(lists), "--model", str(folder), "--out", str(tmp_path / name), "--image-root", "/"]
        assert mmalign(words) == 0
        found.append(load_rows(tmp_path / name / "cached.parquet")["reference_logps_responses"])
    for line, mine, other in zip(lines, *found, strict=True):
        assert line["log_ratios"] == pytest.approx([a - b for a, b in zip(mine, other, strict=True)], abs=1e-3)
        assert any(abs(value) > 0.1 for value in line["log_ratios"])
    build(replace(shared, target=str(tiny_llava_dir), out=tmp_path / "same"))
    same = [json.loads(line) for path in sorted((tmp_path / "same" / "chunks").glob("*.jsonl")) for line in path.read_text().splitlines()]
    assert all(line["log_ratios"] == [0.0] * 3 for line in same)

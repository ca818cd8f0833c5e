"""A cache replayed: the judge it is of, and what it lacks."""

from pathlib import Path

import pytest

from mmalign.evaluation.judges.cache import JudgementCache
from mmalign.evaluation.judges.replay import ReplayedJudge, is_cache


def keep(path: Path, model: str, replies: dict[str, str], **decoding: int) -> None:
    cache = JudgementCache(path, judge={"model": model, "decoding": decoding})
    for prompt, reply in replies.items():
        cache.add(prompt, reply, cut=False)


def test_a_judge_says_again_what_it_said(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    keep(path, "a", {"p\n\u2028": "yes", "q": "no"}, max_tokens=5)
    assert is_cache(path)
    judge = ReplayedJudge(path)
    assert (judge.name, judge.decoding) == ("a", {"max_tokens": 5})
    assert judge.ask(["q", "p\n\u2028", "q"]) == ["no", "yes", "no"]
    with pytest.raises(ValueError, match="no reply of a to 1 of 2 prompts; the first: 'unasked'"):
        judge.ask(["q", "unasked"])


def test_one_of_several_judges_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    keep(path, "a", {"p": "yes"})
    keep(path, "b", {"p": "no"})
    assert ReplayedJudge(path, model="b").ask(["p"]) == ["no"]
    with pytest.raises(ValueError, match="holds replies of 2 judges: .*Name one of them"):
        ReplayedJudge(path)
    with pytest.raises(ValueError, match="holds replies of 2 judges, 0 of them named c"):
        ReplayedJudge(path, model="c")
    keep(path, "b", {"p": "maybe"}, max_tokens=5)
    with pytest.raises(ValueError, match="3 judges, 2 of them named b: .*keep the lines of one in a file of its own"):
        ReplayedJudge(path, model="b")


def test_other_files_are_no_caches(tmp_path: Path) -> None:
    for number, text in enumerate(('{"id": "a", "judgement": "x"}\n', "[\n{}\n]", "", "[" * 100_000, '["key", "judge"]')):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        assert not is_cache(path)
    assert not is_cache(tmp_path)

"""Asking a judge, filling prompts, saved judgements."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmalign.evaluation.answers import AnswerFormat
from mmalign.evaluation.judging import Judge, ask_judge, read_judgements, write_judgements
from mmalign.evaluation.wording import fill_prompt

FORM = AnswerFormat(text=("judgement",))


class Echo:
    """Answers with the prompt in capitals."""

    name = "echo"
    decoding: Mapping[str, Any] = {}

    def ask(self, prompts: Sequence[str]) -> list[str]:
        return [prompt.upper() for prompt in prompts]


class Silent(Echo):
    """Answers nothing."""

    def ask(self, prompts: Sequence[str]) -> list[str]:
        return []


def test_replies_belong_to_their_prompts() -> None:
    judge: Judge = Echo()
    assert ask_judge(judge, {"b": "x", "a": "y"}) == {"b": "X", "a": "Y"}
    with pytest.raises(ValueError, match="judge echo gave 0 replies to 1 prompts"):
        ask_judge(Silent(), {"a": "x"})


def test_prompts_take_texts_as_they_are() -> None:
    fields = {"question": "{response}?", "response": "{} {question}"}
    assert fill_prompt("Q {question} A {response} Q {question}", fields) == "Q {response}? A {} {question} Q {response}?"
    assert fill_prompt("{} then {}", fields) == "{response}? then {} {question}"
    with pytest.raises(ValueError, match="has no field; expected {question}, {response}, or 2 times {}"):
        fill_prompt("Judge.", fields)


def test_saved_judgements(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    write_judgements(path, {"a": "good", "b": "bad"})
    assert read_judgements(path, FORM, asked=["b"], order=["a", "b"]).texts == {"b": "bad"}
    with pytest.raises(ValueError, match=r"j.jsonl has no judgement of 1 of 1 answers \(first: c\); judge them too"):
        read_judgements(path, FORM, asked=["c"], order=["a", "b", "c"])


def test_responses_of_an_endpoint_are_in_order(tmp_path: Path) -> None:
    responses = [{"id": f"chatcmpl-{i}", "choices": [{"message": {"content": text}}]} for i, text in enumerate(("good", "bad"))]
    (tmp_path / "j.json").write_text(json.dumps(responses))
    assert read_judgements(tmp_path / "j.json", FORM, asked=["a", "b"], order=["a", "b"]).texts == {"a": "good", "b": "bad"}

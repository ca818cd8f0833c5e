"""Error injection: prompts, replies, and a run with a real tiny language model behind ``ask``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from data_tools.inject_errors import InjectOptions, build, checked_reply, main, make_prompt
from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_pair
from tests.data_files import chat_rows, save_rows
from tests.tiny_models import QWEN3, build_tokenizer, pair_rows


class TinyLlm:
    """A random language model that decodes greedily, and stops for good after some questions where told to."""

    name = "tiny"

    def __init__(self, *, fail_after: int | None = None) -> None:
        torch.manual_seed(0)
        self.tokenizer = build_tokenizer()
        self.model = Qwen3ForCausalLM(Qwen3Config(**{k: v for k, v in QWEN3.items() if k != "model_type"})).eval()
        self.fail_after = fail_after
        self.prompts: list[str] = []

    def ask(self, prompts: Sequence[str]) -> list[str]:
        if self.fail_after is not None and len(self.prompts) >= self.fail_after:
            raise KeyboardInterrupt
        self.prompts += prompts
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: str) -> str:
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"][:, -200:]
        out = self.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        return self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_prompts_hold_the_texts_as_they_are() -> None:
    described = make_prompt("description", "Describe.", "A {red} cup, {question}.")
    assert described.endswith("Description: A {red} cup, {question}.")
    asked = make_prompt("answer", "Which {colour}?", "Red {0}.")
    assert asked.endswith("Question: Which {colour}?\nRight answer: Red {0}.\nWrong answer:")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("A blue cup.", "A blue cup."),
        (" \nA blue cup.\n", "A blue cup."),
        ("Wrong answer: A blue cup.", "A blue cup."),
        ('"A blue cup."', "A blue cup."),
        ("A blue cup.\n\nQuestion: What else?\nRight answer: Nothing.", "A blue cup."),
    ],
)
def test_replies_are_kept_from_their_first_character(reply: str, expected: str) -> None:
    assert checked_reply(reply, "A red cup.") == expected


@pytest.mark.parametrize(("reply", "reason"), [(" \n", "reply is empty"), ("a red CUP. ", "repeated the good response")])
def test_replies_without_an_error_are_refused(reply: str, reason: str) -> None:
    got = checked_reply(reply, "A red cup.")
    assert isinstance(got, ValueError)
    assert reason in str(got)


def options(data: Path, out: Path, **changes: Any) -> InjectOptions:
    return InjectOptions(data=data, out=out, **{"mode": "answer", "batch_size": 2, "max_reject_share": 0.9, **changes})


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    data = save_rows(tmp_path / "sft.parquet", chat_rows(6))
    build(options(data, tmp_path / "whole"), TinyLlm())
    stopping = TinyLlm(fail_after=4)
    with pytest.raises(KeyboardInterrupt):
        build(options(data, tmp_path / "stopped"), stopping)
    rest = TinyLlm()
    build(options(data, tmp_path / "stopped"), rest)
    assert len(rest.prompts) == 2, "what was answered is not asked again"
    for name in ("build.json", "pairs/pairs-00000.parquet"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("kind", ["chats", "pairs"])
def test_rows_become_pairs(tmp_path: Path, kind: str) -> None:
    rows = chat_rows(3) if kind == "chats" else [{**row, "source": "mine"} for row in pair_rows(3)]
    llm = TinyLlm()
    build(options(save_rows(tmp_path / "rows.parquet", rows), tmp_path / "out", mode="description"), llm)
    pairs = [read_pair(raw, index=i) for i, raw in enumerate(load_rows(tmp_path / "out" / "pairs"))]
    good = [row["messages"][-1]["content"] if kind == "chats" else row["chosen"][0]["content"] for row in rows]
    assert [pair.chosen for pair in pairs] == good
    assert {pair.source for pair in pairs} == {"error-injection" if kind == "chats" else "mine/error-injection"}
    assert all(text in prompt for text, prompt in zip(good, llm.prompts, strict=True))
    assert all(pair.images for pair in pairs)


def test_rows_that_give_no_pair_are_told(tmp_path: Path) -> None:
    rows = chat_rows(3)
    rows[1]["messages"] = rows[1]["messages"][:1]
    build(options(save_rows(tmp_path / "rows.parquet", rows), tmp_path / "out"), TinyLlm())
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject == {"id": "pair-1", "reason": "messages must hold a user turn and end with an assistant turn"}


def test_one_language_model_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_rows(tmp_path / "sft.parquet", chat_rows(1))
    for words in ([], ["--llm", "a", "--url", "b", "--llm-name", "c"], ["--url", "b"]):
        assert main([str(data), "--mode", "answer", "--out", str(tmp_path / "out"), *words]) == 2
        assert "name one language model: --llm DIR, or --url URL with --llm-name NAME" in capsys.readouterr().err


def test_a_local_model_from_the_command_line(tmp_path: Path, tiny_llava_dir: Path) -> None:
    pytest.importorskip("mmalign.evaluation.judges.local", reason="there are no judges")
    data = save_rows(tmp_path / "sft.parquet", chat_rows(3))
    words = f"{data} --mode description --llm {tiny_llava_dir} --max-new-tokens 8 --max-reject-share 0.7 --out {tmp_path}/out"
    assert main(words.split()) == 0
    replies = (tmp_path / "out" / "replies.jsonl").read_text().splitlines()
    assert len(replies) == 3
    assert len(load_rows(tmp_path / "out" / "pairs")) >= 1

"""Error injection: prompts, replies, runs with a tiny language model, in this process and behind a real HTTP endpoint."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from data_tools.inject_errors import InjectOptions, build, checked_reply, main, make_prompt
from mmalign.data.datasets import load_rows
from mmalign.data.messages import text_of
from mmalign.data.rows import read_chat, read_pair
from tests.data_files import chat_rows, save_rows
from tests.evaluation.judges.chat_server import ChatServer, completion, fault, run_chat_server
from tests.formats.form import Form, save_form
from tests.formats.rows import CHATS, PAIRS
from tests.tiny_models import QWEN3, build_tiny_llava, build_tokenizer, pair_rows, random_image


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


FORMS = [form for section in (PAIRS, CHATS) for form in section.forms if form.file.startswith(("pairs.", "chats."))]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.title)
def test_rows_keep_their_images_in_every_form(tmp_path: Path, form: Form) -> None:
    """Images inside messages, places in several turns, a prompt that both conversations begin with."""
    file = save_form(form, tmp_path)
    raw = load_rows(file)[0]
    begun = "rejected" in raw and not form.refused and read_pair(raw, index=0, image_root=tmp_path).prompt[-1]["role"] == "assistant"
    if form.refused or begun:
        with pytest.raises(ValueError, match=re.escape(form.refused or "the prompt ends with an answer that has begun")):
            build(options(file, tmp_path / "out", image_root=tmp_path, max_reject_share=0.0), TinyLlm())
        return
    build(options(file, tmp_path / "out", image_root=tmp_path), TinyLlm())
    (made,) = [read_pair(row, index=0, image_root=tmp_path) for row in load_rows(tmp_path / "out" / "pairs")]
    if "rejected" in raw:
        whole = read_pair(raw, index=0, image_root=tmp_path)
        assert (made.images, made.prompt, made.chosen) == (whole.images, whole.prompt, whole.chosen)
    else:
        chat = read_chat(raw, index=0, image_root=tmp_path)
        assert (made.images, made.prompt, made.chosen) == (chat.images, chat.messages[:-1], text_of(chat.messages[-1]))


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


def test_a_local_model_from_the_command_line(tmp_path: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_rows(tmp_path / "sft.parquet", chat_rows(3))
    words = f"{data} --mode description --llm {tiny_llava_dir} --max-new-tokens 8 --max-reject-share 0.7 --out {tmp_path}/out"
    assert main(words.split()) == 0
    replies = (tmp_path / "out" / "replies.jsonl").read_text().splitlines()
    assert len(replies) == 3
    assert len(load_rows(tmp_path / "out" / "pairs")) >= 1
    # Nothing is asked again, and another model's replies don't join these.
    assert main(words.split()) == 0
    assert (tmp_path / "out" / "replies.jsonl").read_text().splitlines() == replies
    other = tmp_path / "other" / tiny_llava_dir.name
    model, processor = build_tiny_llava(seed=5)
    model.save_pretrained(other)
    processor.save_pretrained(other)
    assert main(words.replace(str(tiny_llava_dir), str(other)).split()) == 2
    assert "holds another run: its llm_weights is 'weights" in capsys.readouterr().err


def wrong_answer(prompt: str) -> str:
    """What the server says: the right answer with a word more, as a base model that goes on with the next example."""
    return f" Wrong answer: {prompt.split('Right answer: ')[-1].split(chr(10))[0]} twice\nQuestion: And?"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with run_chat_server() as server:
        server.answer = wrong_answer
        yield server


def endpoint_words(data: Path, out: Path, server: ChatServer, *words: str) -> list[str]:
    return [str(data), *f"--mode answer --url {server.url} --llm-name m --batch-size 2 --out {out}".split(), *words]


def test_an_endpoint_is_asked_as_told(tmp_path: Path, server: ChatServer) -> None:
    rows = chat_rows(3)
    words = endpoint_words(save_rows(tmp_path / "sft.parquet", rows), tmp_path / "out", server, "--temperature", "0.5")
    assert main([*words, "--max-new-tokens", "77"]) == 0
    pairs = [read_pair(raw, index=i) for i, raw in enumerate(load_rows(tmp_path / "out" / "pairs"))]
    good = [row["messages"][-1]["content"] for row in rows]
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(text, f"{text} twice") for text in good], "whole from the first character"
    assert len(server.requests) == 3
    assert {(request["model"], request["temperature"], request["top_p"], request["max_tokens"]) for request in server.requests} == {
        ("m", 0.5, 0.95, 77)
    }


def test_a_run_whose_endpoint_fails_goes_on_and_ends_the_same(
    tmp_path: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = chat_rows(6)
    data = save_rows(tmp_path / "sft.parquet", rows)
    assert main(endpoint_words(data, tmp_path / "whole", server)) == 0
    server.requests.clear()
    # The fourth question meets a key that has run out: the second chunk fails after the first was written.
    refused = make_prompt("answer", rows[3]["messages"][0]["content"], rows[3]["messages"][-1]["content"])
    server.scripts[refused] = [fault(401, "quota")]
    assert main(endpoint_words(data, tmp_path / "stopped", server)) == 2
    assert "quota" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "stopped" / "chunks").iterdir()] == ["000000000.jsonl"]
    assert main(endpoint_words(data, tmp_path / "stopped", server)) == 0
    assert server.asked() == Counter({prompt: 2 if prompt == refused else 1 for prompt in server.asked()})
    assert len(server.asked()) == 6
    for name in ("build.json", "pairs/pairs-00000.parquet"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # Sampled at another temperature, the rest would not be of the same kind.
    assert main(endpoint_words(data, tmp_path / "stopped", server, "--temperature", "0.1")) == 2
    assert "holds another run: its temperature is 0.8, not 0.1; choose another --out" in capsys.readouterr().err


def test_half_a_surrogate_in_a_reply_costs_its_row(tmp_path: Path, server: ChatServer) -> None:
    rows = chat_rows(3)
    server.scripts[make_prompt("answer", rows[1]["messages"][0]["content"], rows[1]["messages"][-1]["content"])] = [completion("a \ud800")]
    data = save_rows(tmp_path / "sft.parquet", rows)
    assert main(endpoint_words(data, tmp_path / "out", server, "--max-reject-share", "0.5")) == 0
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject == {"id": "pair-1", "reason": "the language model's reply holds half of a surrogate pair"}


def test_a_run_that_can_only_fail_stops_early(tmp_path: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The model repeats every answer: after twenty rows that is plain."""
    server.answer = lambda prompt: prompt.split("Right answer: ")[-1].split("\n")[0]
    data = save_rows(tmp_path / "sft.parquet", chat_rows(30))
    assert main(endpoint_words(data, tmp_path / "out", server)) == 2
    assert "20 of 20 rows are broken, more than the tolerated share of 20.0%" in capsys.readouterr().err
    assert len(server.requests) == 20
    reasons = {json.loads(line)["reason"] for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()}
    assert reasons == {"the language model repeated the good response"}


def test_another_image_root_is_another_run(tmp_path: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that were rejected for want of the root don't stay rejected under the right one."""
    (tmp_path / "images").mkdir()
    random_image(0).save(tmp_path / "images" / "a.png")
    row = {"image": "a.png", "messages": chat_rows(1)[0]["messages"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    words = endpoint_words(tmp_path / "rows.jsonl", tmp_path / "out", server)
    assert main(words) == 2
    assert main([*words, "--image-root", str(tmp_path / "images")]) == 2
    assert f"holds another run: its image_root is None, not '{tmp_path}/images'; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "out" / "rejects.jsonl").is_file(), "a folder that is refused keeps its list"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": None}, {"role": "assistant", "content": "x"}], "a message of messages has no content; it has role"),
        ([{"role": None, "content": "x"}], "a message of messages has no role; it has content"),
    ],
)
def test_odd_messages_cost_their_row(tmp_path: Path, server: ChatServer, messages: list[dict[str, Any]], reason: str) -> None:
    rows = chat_rows(3)
    rows[1]["messages"] = messages
    data = save_rows(tmp_path / "sft.parquet", rows)
    assert main(endpoint_words(data, tmp_path / "out", server, "--max-reject-share", "0.5")) == 0
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert re.match(reason, reject["reason"])

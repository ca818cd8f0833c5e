"""Reasoning before an answer: the marks of many models, cut answers, texts without any, special tokens, opened templates."""

from typing import Any

import pytest

from mmalign.evaluation.reasoning import decode_answer, opened_mark, strip_reasoning
from tests.tiny_models import build_tokenizer

HARMONY = "<|channel|>analysis<|message|>No car, so yes?<|end|><|start|>assistant<|channel|>final<|message|>No<|return|>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\nIs it a dog? No cat.\n</think>\n\nYes", "Yes"),
        ("There is no car.\n</think>\n\nNo", "No"),
        ("<think>\n\n</think>\n\nYes.", "Yes."),
        ("<think>open <think> again</think> then</think>No", "No"),
        ("Let me look. <think>yes</think> No", "No"),
        ("<thinking>yes</thinking>No", "No"),
        ("<reasoning>yes</reasoning>\nNo", "No"),
        ("<THINK>yes</THINK> No", "No"),
        ("<thought>yes</thought>No", "No"),
        ('<seed:think>yes</seed:think>No, I see "no"', 'No, I see "no"'),
        ("<longcat_think>\nyes\n</longcat_think>\nNo", "No"),
        ("<unused94>thought\nyes<unused95>No", "No"),
        ("Here are my reasoning steps:\nyes\n[BEGIN FINAL RESPONSE]\nNo\n[END FINAL RESPONSE]\n<|end|>", "No"),
        ("[THINK]yes[/THINK]No", "No"),
        ("◁think▷yes◁/think▷No", "No"),
        ("<|START_THINKING|>yes<|END_THINKING|><|START_RESPONSE|>No<|END_RESPONSE|>", "No"),
        ("<|begin_of_thought|>yes<|end_of_thought|>\n<|begin_of_solution|>No<|end_of_solution|>", "No"),
        ("<|channel>thought\nyes<channel|>No", "No"),
        (HARMONY, "No"),
        (HARMONY.replace("final<", "final <|constrain|>json<"), "No"),
        ("analysisIs it a car? Yes?assistantfinalNo", "No"),
        ("Here is my thought process:\nyes?\nHere is my response:\nNo", "No"),
        ("<think>hm</think>\n<rethink>yes</rethink>No", "No"),
        ("<internal_reasoning>yes</internal_reasoning>No", "No"),
        ("<thought_process>yes</thought_process>No", "No"),
        ("<chain_of_thought>yes</chain_of_thought>No", "No"),
        ("<|thinking|>yes<|/thinking|>No", "No"),
        ("<begin_of_thought>yes<end_of_thought>No", "No"),
        ("<|start_of_thought|>yes<|end_of_thought|>No", "No"),
        ("[THINKING]yes[/THINKING]No", "No"),
        ("<think>yes</think><Final Answer>No</Final Answer>", "No"),
        ("<think>yes</think><answer>No</answer>", "No"),
        ("<think>yes</think>\n<answer> <|begin_of_box|>No<|end_of_box|> </answer>", "No"),
        ("<SUMMARY>s</SUMMARY><REASONING>yes</REASONING><CONCLUSION>No</CONCLUSION>", "No"),
        (r"<think>yes</think>The final answer is $\boxed{\text{No}}$.", "No"),
        ("<answer>No</answer>", "No"),
        (r"\boxed{No}", "No"),
        (r"$\boxed{\textrm{No}}$", "No"),
        # Not closed, but the answer is whole.
        ("<think>yes <answer>No</answer>", "No"),
    ],
)
def test_the_answer_stands_behind_the_reasoning(text: str, answer: str) -> None:
    got = strip_reasoning(text)
    assert (got.text, got.reasoned) == (answer, True)


@pytest.mark.parametrize(
    "text",
    [
        "<think>Yes, there is a",
        "<think>",
        "Sure. <think>Yes",
        "<think>no</think>",
        "<think>a</think>Yes<think>or no",
        "<|channel|>analysis<|message|>Yes",
        "analysisYes, there is",
        "Here's my thought process: yes, there is",
        "<SUMMARY> I will look. </SUMMARY>\n\n<CAPTION> There is no",
        "<think>I should write <answer>Yes</answer> if there is a",
    ],
)
def test_an_answer_that_ends_inside_is_none(text: str) -> None:
    assert strip_reasoning(text)[:2] == ("", True)


@pytest.mark.parametrize(
    "text",
    [
        "Yes",
        "\nNo ",
        "",
        "I think: no",
        "An analysis of <b>dogs</b>",
        "a < b > c",
        "of assistantfinal",
        "Here is my response: No",
        "[No]",
        "<no_think>No",
    ],
)
def test_other_texts_are_left_to_the_letter(text: str) -> None:
    assert strip_reasoning(text) == (text, False, False)


def test_who_opened_the_reasoning() -> None:
    assert strip_reasoning("hm</think>No").headless
    assert not strip_reasoning("<think>hm</think>No").headless
    assert not strip_reasoning(HARMONY).headless


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [("assistant\n<think>\n", "<think>"), ("assistant\n<think>\n\n</think>\n\n", ""), ("assistant:", ""), ("what is <think> here", "")],
)
def test_the_prompts_end(prompt: str, mark: str) -> None:
    assert opened_mark(prompt) == mark


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """With ``<think>`` as plain tokens, as Qwen3 has them, and brackets as special ones, as Magistral does."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<|im_end|>"]})
    return tokenizer


@pytest.mark.parametrize(("opening", "closing"), [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_special_tokens_that_mark_reasoning_are_kept(tokenizer: Any, opening: str, closing: str) -> None:
    ids = tokenizer(f"{opening}yes there is{closing}no<|im_end|>")["input_ids"]
    text = decode_answer(tokenizer, ids, prompt=tokenizer("what is there")["input_ids"])
    assert text == f"{opening}yes there is{closing}no"
    assert strip_reasoning(text).text == "no"


def test_a_template_that_opens_the_reasoning(tokenizer: Any) -> None:
    prompt = tokenizer("what is there<|im_end|><think>")["input_ids"]
    cut = decode_answer(tokenizer, tokenizer("yes there")["input_ids"], prompt=prompt)
    assert cut == "<think>\nyes there"
    assert strip_reasoning(cut) == ("", True, False)
    whole = decode_answer(tokenizer, tokenizer("yes there</think>no")["input_ids"], prompt=prompt)
    assert strip_reasoning(whole).text == "no"
    closed = tokenizer("what is there<think></think>")["input_ids"]
    assert decode_answer(tokenizer, tokenizer("yes")["input_ids"], prompt=closed) == "yes"

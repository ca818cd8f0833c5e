"""Make rejected responses by having a language model put errors into good ones (BPO's error injection, arXiv:2403.08730).

    python data_tools/inject_errors.py sft/train.parquet --mode description --llm Qwen3-8B/ --out injected
    python data_tools/inject_errors.py sft/train.parquet --mode answer --url http://127.0.0.1:8000/v1 --llm-name qwen3 --out injected

The model sees text only. --mode description asks for a rewritten description, --mode answer shows three examples of a question with its
right and a wrong answer. Rows have messages (the last answer is used) or prompt and chosen. Replies are cached and work is done in chunks:
give the same command again after a stop. A reply that is empty or repeats the good response is rejected with its reason.

Cost: one reply of about the response's length per row.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_tools.language_models import LanguageModelOptions, describe_language_model, load_language_model
from data_tools.negative_options import NegativeOptions
from data_tools.program import run_program
from mmalign.evaluation.reasoning import strip_reasoning
from mmalign.evaluation.wording import fill_prompt

Mode = Literal["description", "answer"]

DESCRIPTION = """Below is a true description of an image. Rewrite it so that it is wrong about the image in ways that only a look at the \
image can reveal: mention one or two things that are often seen in such a scene but are not in this description, and change one colour, \
number, place or action. Keep the style, the order and roughly the length. Reply with the rewritten description and nothing else.

Description: {response}"""

ANSWER = """Each question is about an image. After the right answer comes a wrong one: as plausible for somebody who can't see the image, \
in the same style and of about the same length, but false.

Question: What is the woman at the counter holding?
Right answer: She is holding a white coffee cup in her left hand.
Wrong answer: She is holding a black phone in her left hand.

Question: Is there a dog on the sofa?
Right answer: No, only a cat is lying on the sofa.
Wrong answer: Yes, a dog is lying next to the cat on the sofa.

Question: How many boats are on the water?
Right answer: There are two boats, a small one close to the shore and a larger one further out.
Wrong answer: There are three boats, all of them small and close to the shore.

Question: {question}
Right answer: {response}
Wrong answer:"""
LABELS = ("Wrong answer:", "Description:", "Rewritten description:")


@dataclass(frozen=True, kw_only=True)
class InjectOptions(LanguageModelOptions, NegativeOptions):
    """Options of ``inject_errors.py``."""

    mode: Mode
    """description: rewrite it; answer: a wrong answer after three examples"""
    temperature: float = 0.8
    """sampling temperature at the endpoint; a local model decodes greedily"""
    max_new_tokens: int = 1024
    """longest reply in tokens"""
    batch_size: int = 64
    """rows a chunk: what a kill can cost"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "max_new_tokens", "batch_size")
        self.refuse_below(0, "temperature")


def run(options: InjectOptions) -> None:
    """Ask for a wrong version of each good response."""
    build(options, _load_llm(options))


def build(options: InjectOptions, llm: Any) -> None:
    """As ``run``, with any object that has ``name`` and ``ask(prompts) -> list[str]``."""
    from data_tools.negatives import Answers, build_negatives
    from mmalign.data.messages import text_of

    def rejected(rows: Sequence[Any], start: int) -> Answers:
        pairs = [(text_of(row.messages[-2]), text_of(row.messages[-1])) for row in rows]
        replies = llm.ask([make_prompt(options.mode, question, response) for question, response in pairs])
        return [checked_reply(reply, response) for reply, (_, response) in zip(replies, pairs, strict=True)]

    settings: dict[str, Any] = {"builder": "error-injection", "mode": options.mode, "max_new_tokens": options.max_new_tokens}
    # A local model decodes greedily.
    settings |= {"temperature": None if options.url is None else options.temperature, **describe_language_model(options, llm)}
    settings |= {"llm_decoding": options.llm_decoding} if options.llm_decoding else {}
    build_negatives(options, rejected, settings=settings, size=options.batch_size, source="error-injection")


def make_prompt(mode: Mode, question: str, response: str) -> str:
    """Write what the language model is asked."""
    return fill_prompt(DESCRIPTION if mode == "description" else ANSWER, {"question": question, "response": response})


def checked_reply(reply: str, response: str) -> str | ValueError:
    """Cut a reply down to the wrong response.

    Returns:
        The text, whole from its first character; or why there is none.
    """
    # A base model continues with the next example.
    text = strip_reasoning(reply).text.split("\nQuestion:")[0].strip()
    for label in LABELS:
        text = text.removeprefix(label).strip()
    for quote in ('""', "“”"):
        if len(text) > 1 and text[0] == quote[0] and text[-1] == quote[1] and not response.startswith(quote[0]):
            text = text[1:-1].strip()
    if not text:
        return ValueError("the language model's reply is empty")
    if text.casefold() == response.strip().casefold():
        return ValueError("the language model repeated the good response")
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON from an endpoint can hold it, and no file of text can.
        return ValueError("the language model's reply holds half of a surrogate pair")
    return text


def _load_llm(options: InjectOptions) -> Any:
    decoding = {"temperature": options.temperature, "top_p": 0.95, "max_tokens": options.max_new_tokens}
    return load_language_model(options, out=options.out, decoding=decoding, max_new_tokens=options.max_new_tokens)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, InjectOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())

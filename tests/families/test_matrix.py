"""Every family does what the support table says, or says why not; and the table is what is tested."""

import copy
import re

import pytest

from mmalign.data.encode import encode_chat, encode_responses
from mmalign.data.rows import read_chat
from tests.families.matrix import CELLS, PAGE, PART, REFUSED, Family, build, table
from tests.tiny_families import FAMILIES
from tests.tiny_models import random_image


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build(request.param, tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("cell", CELLS)
def test_family(family: Family, cell: str) -> None:
    reason = REFUSED.get((family.name, cell))
    if reason is None:
        CELLS[cell](family)
        return
    with pytest.raises(ValueError, match=re.escape(reason)):
        CELLS[cell](family)


def test_the_page_has_the_table() -> None:
    assert PART.read() == table(), "run python -m tests.families.matrix --write"


def test_the_pages_template_gives_what_paligemmas_processor_makes_of_prompt_and_suffix() -> None:
    _, processor = FAMILIES["paligemma2"]()
    bare = copy.copy(processor)
    bare.chat_template = None
    images = [random_image(0), random_image(1, (16, 90))]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "is there a dog"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "no dog"}]}]
    row = read_chat({"images": images, "messages": messages}, index=0)
    with pytest.raises(ValueError, match="PaliGemmaProcessor has no chat template; save one .* has PaliGemma's"):
        encode_chat(bare, row)
    # The tiny tokenizer's own last token.
    bare.chat_template = PAGE.read_text(encoding="utf-8").split("```jinja\n")[1].split("```")[0].replace("<eos>", "</s>")
    encoded = encode_chat(bare, row)
    expected = processor(text=["<image><image>is there a dog"], suffix=["no dog"], images=[images], return_tensors="pt")
    assert [*encoded.prefix_ids, *encoded.responses[0]] == expected["input_ids"][0].tolist()
    assert expected["labels"][0].tolist() == [-100] * len(encoded.prefix_ids) + encoded.responses[0]
    assert all(encoded.scored[0])
    pair = encode_responses(bare, images=images, prompt=row.messages[:1], responses=["no dog", "yes"])
    assert pair.prefix_ids == encoded.prefix_ids
    assert pair.responses[0] == encoded.responses[0]

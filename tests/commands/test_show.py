"""``mmalign show``: rows of every form as training encodes them, reasons of rejects, and nothing of the data as markup."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from mmalign.cli import main
from mmalign.data.encode import encode_chat
from mmalign.data.rows import read_chat
from mmalign.runs.show import show_tokens
from tests.data_files import chat_rows, encoded, save_encoded
from tests.reports.html_page import HOSTILE, check_self_contained
from tests.tiny_models import list_rows, pair_rows


def item_rows(number: int) -> list[dict[str, Any]]:
    rows = [{**row, "response": "a cat, a dog", "items": [[0, 5], [7, 12]], "relevance": [1.0, 0.0]} for row in pair_rows(number)]
    return [{key: value for key, value in row.items() if key not in ("chosen", "rejected")} for row in rows]


FORMS: dict[str, tuple[Callable[[int], list[dict[str, Any]]], list[str]]] = {
    "chat": (chat_rows, ["answers"]),
    "pair": (pair_rows, ["chosen", "rejected"]),
    "list": (lambda number: list_rows([3] * number), ["score"]),
    "response with items": (item_rows, ["response"]),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_is_shown(form: str, tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, names = FORMS[form]
    data, out = save_encoded(tmp_path / "rows.parquet", [encoded(row) for row in make(6)]), tmp_path / "page.html"
    assert main(["show", str(data), "--model", str(tiny_llava_dir), "--out", str(out), "--num-rows", "4"]) == 0
    assert f"saved in {out}" in capsys.readouterr().out
    page = check_self_contained(out.read_text())
    (headline,) = page.texts("p", **{"class": "headline"})
    assert headline.startswith(f"4 of 6 rows, each a {form}; training would take all of them. Prompt and response take")
    titles = page.texts("dt")
    assert sum("image" in title for title in titles) == 4
    assert all(sum(title.startswith(name) for title in titles) >= 4 for name in names)


def test_tokens_are_those_that_training_counts(tiny_llava_dir: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny_llava_dir)
    chat = encode_chat(processor, read_chat(chat_rows(1)[0], index=0))
    prompt, (answer,) = show_tokens(processor, chat)
    assert sum(text.count for text in prompt) == sum(token == processor.image_token_id for token in chat.prefix_ids) > 1
    assert [text.kind == "scored" for text in answer] == chat.scored[0]
    whole = processor.tokenizer.decode([*chat.prefix_ids, *chat.responses[0]])
    placeholder = processor.tokenizer.decode([processor.image_token_id])
    shown = "".join(placeholder * text.count if text.count else text.text for text in [*prompt, *answer])
    assert shown == whole


def test_broken_rows_are_shown_with_their_reason_and_texts_as_texts(
    tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pair_rows(4)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["prompt"] = [{"role": "user", "content": HOSTILE}]
    rows[2]["source"] = HOSTILE
    data, out = save_encoded(tmp_path / "rows.parquet", [encoded(row) for row in rows]), tmp_path / "page.html"
    words = ["show", str(data), "--model", str(tiny_llava_dir), "--out", str(out)]
    assert main(words) == 0
    assert "broken: chosen and rejected are the same text" in capsys.readouterr().out
    page = check_self_contained(out.read_text())
    assert page.texts("p", **{"class": "reason"}) == ["Rejected: chosen and rejected are the same text"]
    assert "1 of them would be rejected" in page.texts("p", **{"class": "headline"})[0]
    assert main([*words, "--max-reject-share", "0.1"]) == 2
    assert "1 of 4 drawn rows are broken" in capsys.readouterr().err


def test_files_of_no_form_are_refused(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "What?", "answer": "A cat."}\n')
    assert main(["show", str(data), "--model", str(tiny_llava_dir), "--out", str(tmp_path / "page.html")]) == 2
    assert "has the columns question, answer; expected those of one form" in capsys.readouterr().err
    assert main(["show", str(data), "--model", str(tmp_path / "none"), "--out", str(tmp_path / "page.html")]) == 2


def test_a_browser_draws_it(tiny_llava_dir: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium to draw the page")
    data, out = save_encoded(tmp_path / "rows.parquet", [encoded(row) for row in chat_rows(2)]), tmp_path / "page.html"
    assert main(["show", str(data), "--model", str(tiny_llava_dir), "--out", str(out)]) == 0
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    picture = tmp_path / "page.png"
    subprocess.run([*words, f"--screenshot={picture}", out.as_uri()], check=True, capture_output=True, timeout=120)
    assert picture.stat().st_size > 5_000

"""Pages show any text as text: a browser's parser finds the words again and no element that the page did not mean."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmalign.reports.comparison import EvalRun
from mmalign.reports.eval_page import AskedQuestion, Reply, WrongAnswers, write_eval_page
from mmalign.reports.gallery import Caption
from mmalign.reports.training_page import write_training_page
from mmalign.reports.training_plots import TrainingRun
from tests.commands.test_report import report, write_results
from tests.reports.html_page import HOSTILE, Page

PIECES = st.sampled_from(
    [*("<script>alert(1)</script>", "</style>", "</title>", "<!--", "-->", "]]>", "&lt;", "&amp;lt;", '"', "'", "`", "<", ">", "&", "$x^$"),
     *("{{ 7 * 7 }}", "{% raw %}", "javascript:alert(1)", "\\g<0>", "@alt@", "<svg onload=alert(1)>"),
     *("\u202e", "é", "dog", " ", "\x0b", "\t")]
)  # fmt: skip
# A parser takes a carriage return for a line end, and no page can hold half of a surrogate pair.
TEXTS = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=4), min_size=1, max_size=6)
SETTINGS = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "h1",
    "h2",
    "p",
    "a",
    "div",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}
ALLOWED |= {"span", "b", "ul", "li", "dl", "dt", "dd", "figure", "figcaption", "img", "article", "mark", "details", "summary", "fieldset"}
ALLOWED |= {"legend", "label", "input", "svg", "g", "path", "defs", "clippath", "rect", "use", "text", "tspan"}


def shown(text: str) -> str:
    return " ".join(text.split())


def check_page(html: str) -> Page:
    page = Page(html)
    assert not page.open
    assert {tag for tag, _, _ in page.elements} <= ALLOWED
    assert not [key for _, has, _ in page.elements for key in has if key.startswith("on")]
    assert all(value.startswith("#") for _, value in page.attributes("href"))
    return page


@SETTINGS
@given(words=TEXTS, name=TEXTS)
def test_any_text_on_the_page_of_results(words: list[str], name: list[str]) -> None:
    text, model = "".join(words), "m" + "".join(name)
    runs = [EvalRun(name=one, metrics={"pope/f1": 0.5}, num_answers={"pope": 3}, intervals={}, differences={}) for one in ("first", model)]
    question = AskedQuestion(
        id=text, question=text, label=text, group=text, image=None, image_name=text, replies={model: Reply(Caption(text), False)}
    )
    with tempfile.TemporaryDirectory() as folder:
        wrong = {"pope": WrongAnswers([question], {model: 1})}
        out = write_eval_page(Path(folder) / "page.html", title=text, runs=runs, wrong=wrong, facts={text: text}, notes=[text])
        page = check_page(out.read_text(encoding="utf-8"))
    assert page.texts("h1") == page.texts("title") == [shown(text)]
    assert page.texts("p", **{"class": "asked"}) == [shown(text)]
    assert page.texts("dd")[-1] == shown(text)
    assert shown(model) in [shown(value) for value in page.texts("label")]


@SETTINGS
@given(words=TEXTS)
def test_any_text_on_the_page_of_training(words: list[str]) -> None:
    text = "".join(words)
    runs = [TrainingRun(name, [{"step": 1, "loss": 1.0, f"a/{text}": 2.0}], method=text) for name in ("first", f"{text}2")]
    with tempfile.TemporaryDirectory() as folder:
        out = write_training_page(Path(folder) / "page.html", title=text, runs=runs, smooth=1, facts={text: text})
        page = check_page(out.read_text(encoding="utf-8"))
    assert page.texts("h1") == [shown(text)]


def test_names_of_benchmarks_and_metrics_come_from_files(tmp_path: Path) -> None:
    """They reach ids and classes, where escaping is not enough."""
    folder = write_results(tmp_path / "h", share=0.5)
    result: dict[str, Any] = json.loads((folder / "pope.json").read_text())
    (folder / "pope_items.jsonl").unlink()
    hostile = HOSTILE.replace("/", "|")
    metrics = {f"{hostile}/{hostile}": 0.5, f"{hostile}/f1": 0.5}
    (folder / "pope.json").write_text(json.dumps({**result, "benchmark": hostile, "metrics": metrics, "variant": HOSTILE}))
    assert report([folder], tmp_path / "out") == 0
    html = (tmp_path / "out" / "report.html").read_text()
    page = check_page(html)
    assert not re.search(r'id="[^"]*[<> ]', html)
    assert hostile in " ".join(page.texts("th"))

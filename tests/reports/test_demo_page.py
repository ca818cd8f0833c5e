"""The page as a reader's browser parses it: facts, marks, nothing fetched, nothing injected."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mmalign.reports.demo_page import write_demo_page
from mmalign.reports.results_table import ModelRun
from mmalign.reports.training_plots import draw_training
from tests.reports.example_runs import build_difficulty, build_item, build_run, preference_log

VOID = {"meta", "img", "input"}
HOSTILE = '<script>alert(1)</script> "dog" & <img src=x onerror=alert(2)> {{ 7 * 7 }}'


class Page(HTMLParser):
    """Elements with their attributes, and the text of each."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        found = [text for name, has, text in self.elements if name == tag and all(has.get(k) == v for k, v in attributes.items())]
        return [" ".join("".join(text).split()) for text in found]

    def attributes(self, name: str) -> list[tuple[str, str]]:
        return [(tag, value) for tag, has, _ in self.elements for key, value in has.items() if key == name and value is not None]


def build_models(da_dpo: float = 0.21) -> list[ModelRun]:
    sft = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}]
    return [
        build_run("SFT", sentence=0.66, log=sft),
        build_run("DPO", sentence=0.25, log=preference_log()),
        build_run("DA-DPO", sentence=da_dpo, log=preference_log()),
    ]


def build_page(folder: Path, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "A demo",
        "models": build_models(),
        "difficulty": build_difficulty(),
        "gallery": [build_item()],
        "facts": {"Seed": "0"},
    }
    return write_demo_page(folder / "deep" / "page.html", **arguments | changes).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_page(tmp_path_factory.mktemp("page"), gallery_note="The first one.")


def test_page_says_what_the_numbers_say(html: str) -> None:
    page = Page(html)
    assert not page.open, "every element is closed"
    assert page.texts("h1") == ["A demo"]
    assert page.texts("p", **{"class": "headline"})[0].startswith("Less hallucination: 66.0% of the SFT model's captions")
    assert page.texts("li")[0].startswith("DA-DPO hallucinates less than DPO here, by 4.0 points")
    assert page.texts("td")[:3] == ["66.0", "25.0", "21.0 best"]
    assert page.texts("th", scope="col")[:4] == ["Metric", "SFT", "DPO", "DA-DPO"]
    assert page.texts("th", scope="rowgroup")[0] == "Describing the image (CHAIR) · 300 answers a model"
    assert page.texts("dt")[-1] == "Seed"
    text = page.texts("main")[0]
    assert "A random hard pair scores above a random easy one in 100.0% of cases" in text
    assert "Mean difficulty: 0.30 of 3 easy pairs and 0.90 of 1 hard pairs." in text
    assert "The first one." in text


def test_headline_flips_with_the_metrics(tmp_path: Path) -> None:
    page = Page(build_page(tmp_path, models=build_models(da_dpo=0.9)))
    assert page.texts("p", **{"class": "headline"})[0].startswith("A mixed result: ")
    assert page.texts("li")[0].startswith("DA-DPO hallucinates more than DPO here, by 65.0 points, which is beyond")


def test_wrong_words_are_marked_once_a_model(html: str) -> None:
    page = Page(html)
    # The first is the legend's.
    assert page.texts("mark", **{"class": "wrong"}) == ["marked so", "dog", "dog", "dog"]
    assert page.texts("dd")[0] == "a red dog (not in the image) and a cat"


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    item = build_item(HOSTILE, names=("SFT", "DPO", "DA-DPO"))
    html = build_page(tmp_path, gallery=[item], title=HOSTILE, facts={HOSTILE: HOSTILE}, gallery_note=HOSTILE)
    page = Page(html)
    assert "<script" not in html
    assert not [value for _, value in page.attributes("onerror")]
    assert page.texts("h1") == page.texts("title") == [HOSTILE]
    assert page.texts("dd")[0].replace(" (not in the image)", "") == HOSTILE


def test_hostile_model_name_reaches_the_drawings_as_words(tmp_path: Path) -> None:
    name = '<b>"$x^$ & id="a'
    models = [build_models()[0], build_run(name, sentence=0.2, log=preference_log())]
    page = Page(build_page(tmp_path, models=models, gallery=[build_item(names=("SFT", name))]))
    assert not page.open
    assert not page.texts("b")[2:], "only the tiles' numbers are bold"
    assert any(name in alt for tag, alt in page.attributes("aria-label") if tag == "svg")


def test_nothing_is_fetched(html: str) -> None:
    page = Page(html)
    assert {tag for tag, _, _ in page.elements} & {"script", "link", "iframe", "object", "base"} == set()
    assert all(value.startswith("data:image/png;base64,") for _, value in page.attributes("src"))
    links = page.attributes("href")
    assert {value.split("/abs/")[0] for tag, value in links if tag == "a"} == {"https://arxiv.org"}
    assert all(value.startswith("#") for tag, value in links if tag != "a")
    assert "http" not in re.sub(r'<a href="https://arxiv\.org/abs/[\d.]+">', "", html).replace("http-equiv", "")
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_are_unique_and_references_resolve(html: str) -> None:
    ids = [value for _, value in Page(html).attributes("id")]
    assert len(ids) == len(set(ids)) > 20
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    assert references
    assert references <= set(ids)


def test_every_picture_has_words(html: str) -> None:
    page = Page(html)
    assert page.attributes("alt") == [("img", "Scene 1: red circle")]
    drawings = [has for tag, has, _ in page.elements if tag == "svg"]
    # Two losses, margin, accuracy, two models by quartile, the histogram.
    assert len(drawings) == 7
    assert all(has["role"] == "img" and has["aria-label"] for has in drawings)


def test_drawings_hold_the_logs_numbers() -> None:
    drawings = draw_training(build_models())
    labels = [re.search(r'aria-label="([^"]+)"', drawing) for drawing in drawings]
    assert [label.group(1) for label in labels if label] == [
        "Supervised fine-tuning: loss, by training step: SFT from 3 to 1.",
        "Preference training: loss, by training step: DPO from 0.7 to 0.233; DA-DPO from 0.7 to 0.233.",
        "Reward margin, chosen - rejected, by training step: DPO from 0.5 to 1.5; DA-DPO from 0.5 to 1.5.",
        "Pairs with chosen above rejected, by training step: DPO from 0.5 to 0.5; DA-DPO from 0.5 to 0.5.",
        *(
            f"{name}: margin by difficulty, by training step: easiest quarter from 1 to 3; second from 0.5 to 1.5; "
            "third from 0.333 to 1; hardest quarter from 0.25 to 0.75."
            for name in ("DPO", "DA-DPO")
        ),
    ]
    for drawing in drawings:
        assert ElementTree.fromstring(str(drawing)).tag == "svg"


def test_models_without_logs_have_no_drawings() -> None:
    assert draw_training([build_run("A", sentence=0.5), build_run("B", sentence=0.4)]) == []


def test_same_input_same_bytes(tmp_path: Path) -> None:
    assert build_page(tmp_path / "a") == build_page(tmp_path / "b")
    assert [path.name for path in (tmp_path / "a" / "deep").iterdir()] == ["page.html"]


def test_bad_input_leaves_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gallery item 0 has captions of"):
        build_page(tmp_path, gallery=[build_item(names=("SFT",))])
    assert not list(tmp_path.iterdir())

"""A page as a reader's browser parses it."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "input", "br"}
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


def check_self_contained(html: str) -> Page:
    """Nothing is fetched or run, every element is closed, every id is there once, and every drawing has words."""
    page = Page(html)
    assert not page.open
    assert {tag for tag, _, _ in page.elements} & {"script", "link", "iframe", "object", "base", "form"} == set()
    assert not [key for _, has, _ in page.elements for key in has if key.startswith("on")]
    assert all(value.startswith("data:image/") for _, value in page.attributes("src"))
    assert not re.search(r"@import|url\((?!#)", html)
    ids = [value for _, value in page.attributes("id")]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)
    assert all(has["role"] == "img" and has["aria-label"] for tag, has, _ in page.elements if tag == "svg")
    assert all(has["alt"] for tag, has, _ in page.elements if tag == "img")
    return page

"""Parts of documentation pages that tests write, and hold the pages to."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class WrittenPart(NamedTuple):
    """What stands between two comments of a page."""

    page: Path
    begin: str
    end: str

    def read(self) -> str:
        """The part as it stands in the page."""
        return self.page.read_text(encoding="utf-8").split(self.begin)[1].split(self.end)[0].strip()

    def run(self, write: Callable[[], str], doc: str | None) -> None:
        """Be the program that prints the part, or with ``--write`` puts it into the page."""
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--write", action="store_true", help=f"put the table into docs/{self.page.name}")
        text = write()
        if parser.parse_args().write:
            before, rest = self.page.read_text(encoding="utf-8").split(self.begin)
            self.page.write_text(f"{before}{self.begin}\n\n{text}\n\n{self.end}{rest.split(self.end)[1]}", encoding="utf-8")
        else:
            print(text)

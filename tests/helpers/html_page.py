"""A page of HTML as a reader sees it, for tests."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and the text outside scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.pre: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(source)
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag in ("pre", "script"):
            getattr(self, "pre" if tag == "pre" else "scripts").append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "pre"):
            (self.pre if self.inside == "pre" else self.scripts)[-1] += data
        if self.inside not in ("script", "style"):
            self.words.append(data)

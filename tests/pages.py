"""What the tests of HTML pages share: attacks, what is in a page, what leads out of it."""
import re
from html.parser import HTMLParser

HOSTILE = ["</script><script>document.title='owned'</script>", "<img src=x onerror=\"document.title='owned'\">",
           "'\"><svg onload=document.title='owned'>", "{{constructor}}", "]]>", "<!--<script>", "javascript:alert(1)", "\u2028\x00\ud800",
           "\\u003cscript>", "__proto__"]


class Parts(HTMLParser):
    """What a browser would find in a page: elements, attributes, texts of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """One element."""
        self.elements.append((tag, dict(attrs)))
        self._open = tag if tag in self.raw else ""
        if self._open: self.raw[tag].append("")

    def handle_data(self, data):
        """Text of a script or a style."""
        if self._open: self.raw[self._open][-1] += data

    def handle_endtag(self, tag):
        """Its end."""
        self._open = ""


def outside(text: str) -> list[str]:
    """Everything in a page that would leave it."""
    parts = Parts(text)
    found = [f"{tag} {name}={value}" for tag, attributes in parts.elements for name, value in attributes.items()
             if name in ("src", "href", "srcset", "action", "data", "poster", "background", "xlink:href", "formaction")
             and not re.match(r"#|data:image/", value or "#")]
    found += [f"{tag} {name}" for tag, attributes in parts.elements for name in attributes if name.startswith("on")]
    found += [tag for tag, _ in parts.elements if tag in ("link", "iframe", "object", "embed", "base")]
    found += [s[:80] for s in parts.raw["style"] if re.search(r"@import|url\((?!['\"]?data:)", s)]
    ours = [s for s in parts.raw["script"] if "plotly.js" not in s[:200]]
    return found + [s[:80] for s in ours if re.search(r"fetch\(|XMLHttpRequest|sendBeacon|WebSocket|EventSource|import\(|\beval\(|new Function", s)]


def until(tab, expression: str) -> None:
    """Wait for something; the page's policy forbids playwright's own way."""
    for _ in range(100):
        if tab.evaluate(expression): return
        tab.wait_for_timeout(50)
    raise AssertionError(expression)

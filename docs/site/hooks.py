"""Make the site's pages of files as they are in the repository; mkdocs.yml names this file.

Some pages are files beside docs/, links lead where they lead in the repository, equations become MathML, and the first
use of a term on a page links to the glossary.
"""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parents[2]
BESIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "jobs/README.md": "recipes.md",
    "jobs/clusters/README.md": "workers.md",
    "wordlists/README.md": "word-lists.md",
}
"""Pages that are not in docs/, by their files."""
FILES = "files"
"""The site's folder of files that are no pages and that a page links to, such as recipes."""
_SHIM = "https://unpkg.com/iframe-worker/shim"
"""What mkdocs-material's plugin `offline` would load."""
_SOURCES = {page: source for source, page in BESIDE.items()}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
_REFERENCE = re.compile(r"(?m)(?<=^\[)([^\]]+\]: )(?![a-z]+:|#)([^#\s]+)")
_PICTURE = re.compile(r'<picture>\s*<source [^>]*srcset="([^"]+)">\s*<img src="([^"]+)"\s+alt="([^"]+)">\s*</picture>')
_MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_SILENT = {"a", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "math", "svg", "th", "nav", "button"}
"""Elements in which no term is linked."""


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401 - mkdocs' own
    """Add the pages that are not in docs/, and every file that a page links to."""
    for source, page in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    pages = {_source(file.src_uri): file for file in files.documentation_pages()}
    for source, file in pages.items():
        for link in _linked(file.content_string):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
            if not path.startswith("docs/") and path not in BESIDE and (ROOT / path).is_file():
                uri = f"{FILES}/{path}"
                if files.get_file_from_path(uri) is None:
                    files.append(File.generated(config, uri, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:  # noqa: ANN401
    """Turn pictures with a dark version, and links between files, into what the site understands."""
    markdown = _PICTURE.sub(_both, markdown)
    source = _source(page.file.src_uri)
    markdown = _LINK.sub(lambda found: _on_site(found[1], source, page.file.src_uri), markdown)
    return _REFERENCE.sub(lambda found: found[1] + _on_site(found[2], source, page.file.src_uri), markdown)


def on_page_content(content: str, page: Page, config: Any, files: Files) -> str:  # noqa: ANN401
    """Render equations, and link the first use of each term to the glossary."""
    content = _MATHS.sub(_mathml, content)
    if page.file.src_uri == "glossary.md":
        return content
    return link_terms(content, terms((ROOT / "docs" / "glossary.md").read_text("utf-8")))


def on_post_page(output: str, page: Page, config: Any) -> str:  # noqa: ANN401
    """Take the script by which search works in files from the site, not from a network."""
    return output.replace(_SHIM, get_relative_url("site/worker.js", page.url))


def on_post_template(output_content: str, template_name: str, config: Any) -> str:  # noqa: ANN401
    """Do the same for the page that a server shows for what it does not have."""
    return output_content.replace(_SHIM, "/site/worker.js")


def terms(glossary: str) -> dict[str, str]:
    """Read the glossary's terms: the anchor of each, by its spelling; code keeps its backticks."""
    found = {}
    for anchor, cell in re.findall(r'^\| <a id="([^"]+)"></a>([^|]+) \|', glossary, re.MULTILINE):
        found |= dict.fromkeys(cell.split(", "), anchor)
    return found


def link_terms(content: str, anchors: dict[str, str]) -> str:
    """Link the first use of each term in a page's HTML."""
    used: set[str] = set()
    words = sorted((term for term in anchors if not term.startswith("`")), key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){_spelling(word)}(?!\w)" for word in words))
    parts = re.split(r"(<[^>]+>)", content)
    silent, code = 0, ""
    for index, part in enumerate(parts):
        if tag := re.match(r"<(/?)([a-z0-9]+)", part):
            if tag[2] in _SILENT:
                silent += -1 if tag[1] else 1
            code = "" if tag[1] else tag[2]
        elif silent == 0 and code == "code":
            if (anchor := anchors.get(f"`{html.unescape(part)}`")) and anchor not in used:
                used.add(anchor)
                parts[index - 1] = f'<a class="term" href="glossary.html#{anchor}">{parts[index - 1]}'
                parts[index + 1] += "</a>"
        elif silent == 0:
            parts[index] = pattern.sub(lambda found: _term(found[0], anchors, words, used), part)
    return "".join(parts)


def _both(found: re.Match[str]) -> str:
    dark, light, said = found[1], found[2], " ".join(found[3].split())
    return f"![{said}]({light}#only-light) ![{said}]({dark}#only-dark)"


def _term(said: str, anchors: dict[str, str], words: list[str], used: set[str]) -> str:
    anchor = anchors[next(word for word in words if re.fullmatch(_spelling(word), said))]
    if anchor in used:
        return said
    used.add(anchor)
    return f'<a class="term" href="glossary.html#{anchor}">{said}</a>'


def _spelling(term: str) -> str:
    spelled = re.escape(term).replace(r"\ ", "[ -]").replace(r"\-", "[ -]")
    return f"(?i:{spelled}s?)" if term.isascii() and term.islower() else spelled


def _mathml(found: re.Match[str]) -> str:
    block = found[1] == "div"
    maths = convert(html.unescape(found[2]), display="block" if block else "inline")
    return f'<div class="equation">{maths}</div>' if block else maths


def _source(page: str) -> str:
    return _SOURCES.get(page, f"docs/{page}")


def _linked(markdown: str) -> set[str]:
    return set(_LINK.findall(markdown)) | {link for _, link in _REFERENCE.findall(markdown)}


def _on_site(link: str, source: str, page: str) -> str:
    """Return where a link of a file leads on the site, relative to its page."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if path in BESIDE:
        target = BESIDE[path]
    elif path.startswith("docs/"):
        target = path.removeprefix("docs/")
    elif (ROOT / path).is_file():
        target = f"{FILES}/{path}"
    else:
        raise ValueError(f"{source}: links to {link}; expected a file, as the site has no folders")
    return posixpath.relpath(target, posixpath.dirname(page) or ".")

"""Text in a dataset's card: Markdown shows it as it is."""

import html
import re

import pytest
from markdown_it import MarkdownIt

from sea_pipeline.hub.card import plain


@pytest.mark.parametrize("text", ["a &lt;b&gt; c", "R&D", "&#42;", "&amp;amp;", "*a* _b_ [c](d) <e> `f` |", "A\\B"])
def test_it_is_shown_as_it_is(text: str) -> None:
    rendered = MarkdownIt("commonmark").enable("table").render(plain(text))
    assert html.unescape(re.sub("<[^>]+>", "", rendered)).strip() == text

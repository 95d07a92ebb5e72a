"""The page's markdown and event parsers, called in the browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from support.scripted_server import scripted_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

RENDER = """
async (pieces) => {
  const { MarkdownView } = await import("/page/markdown_view.js");
  const root = document.createElement("div");
  const view = new MarkdownView(root);
  let source = "";
  for (const piece of pieces) view.update((source += piece));
  for (const caption of root.querySelectorAll("figcaption")) caption.replaceWith(caption.textContent + ":");
  const always = [' class=""', ' tabindex="0"', ' target="_blank" rel="noopener noreferrer"'];
  return always.reduce((html, attribute) => html.replaceAll(attribute, ""), root.innerHTML);
}
"""


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Any]:
    with scripted_server() as server:
        page = browser.new_page()
        page.goto(server.url)
        yield page
        page.close()


CASES = {
    "one\ntwo  \nthree\n\nfour": "<p>one<br>two  <br>three</p><p>four</p>",
    "# One #\n####### no\n#no\n## Two\nnext": (
        '<h3 class="level-1">One</h3><p>####### no<br>#no</p><h4 class="level-2">Two</h4><p>next</p>'
    ),
    "#": '<h3 class="level-1"></h3>',
    "*a* **b** ***c*** _d_ __e__ ~~f~~": (
        "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> <em>d</em> <strong>e</strong> <del>f</del></p>"
    ),
    "snake_case_name 2 * 3 * 4 a*b*c **open _x **": "<p>snake_case_name 2 * 3 * 4 a<em>b</em>c **open _x **</p>",
    "**bold *and italic* text**": "<p><strong>bold <em>and italic</em> text</strong></p>",
    "*a **b* c**": "<p><em>a <em><em>b</em> c</em></em></p>",
    r"\*no\* \_ \\ \a \`": r"<p>*no* _ \ \a `</p>",
    "`a*b*` ``c`d`` `open": "<p><code>a*b*</code> <code>c`d</code> `open</p>",
    "` `` ` x": "<p><code>``</code> x</p>",
    "[a *b*](https://x.y/z 'title') [c](mailto:d@e.f)": (
        '<p><a href="https://x.y/z">a <em>b</em></a> <a href="mailto:d@e.f">c</a></p>'
    ),
    "[a](<https://x.y/a b>) [p](https://x.y/a_(b))": (
        '<p><a href="https://x.y/a%20b">a</a> <a href="https://x.y/a_(b)">p</a></p>'
    ),
    "[a] (https://x.y) [b](relative) [c][d] [e](https://x.y": (
        '<p>[a] (<a href="https://x.y/">https://x.y</a>) [b](relative) [c][d] '
        '[e](<a href="https://x.y/">https://x.y</a></p>'
    ),
    "![alt](https://x.y/z.png) [![in](https://a.b/)](https://x.y/)": (
        '<p><a href="https://x.y/z.png">alt</a> <a href="https://x.y/">![in](https://a.b/)</a></p>'
    ),
    "See https://x.y/a_b_(c)). <https://q.r> <b>": (
        '<p>See <a href="https://x.y/a_b_(c)">https://x.y/a_b_(c)</a>). '
        '<a href="https://q.r/">https://q.r</a> &lt;b&gt;</p>'
    ),
    "- a\n- b\n  - c\n\n    d\n- e": (
        '<ul class="tight"><li><p>a</p></li><li><p>b</p><ul><li><p>c</p><p>d</p></li></ul></li><li><p>e</p></li></ul>'
    ),
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "3. a\n4. b\n   ```\n   c\n   ```\n5. d": (
        '<ol class="tight" start="3"><li><p>a</p></li>'
        '<li><p>b</p><figure class="code">text:<pre><code>c</code></pre></figure></li><li><p>d</p></li></ol>'
    ),
    "1. a\n  - b\n2. c": (
        '<ol class="tight" start="1"><li><p>a</p><ul class="tight"><li><p>b</p></li></ul></li><li><p>c</p></li></ol>'
    ),
    "- a\nlazy\n* b\n\nafter": (
        '<ul class="tight"><li><p>a<br>lazy</p></li></ul><ul class="tight"><li><p>b</p></li></ul><p>after</p>'
    ),
    "It was\n1986. A year\n- x": '<p>It was<br>1986. A year</p><ul class="tight"><li><p>x</p></li></ul>',
    "> a\nb\n> > c\n\nd": "<blockquote><p>a<br>b</p><blockquote><p>c</p></blockquote></blockquote><p>d</p>",
    "a\n***\n- - -\n_ _ _\n--": "<p>a</p><hr><hr><hr><p>--</p>",
    "```py extra\n<b> **x**\n\n  y\n``\n````\nz": (
        '<figure class="code">py:<pre><code>&lt;b&gt; **x**\n\n  y\n``</code></pre></figure><p>z</p>'
    ),
    "~~~\na\n```\n~~~": '<figure class="code">text:<pre><code>a\n```</code></pre></figure>',
    "``` a`b\nc": "<p>``` a`b<br>c</p>",
    "text\n|a|b *c*|\n|:-|:-:|\n|1|\n|x \\| y|2|3|\nend": (
        '<p>text</p><div class="table"><table>'
        '<thead><tr><th class="align-left">a</th><th class="align-center">b <em>c</em></th></tr></thead>'
        '<tbody><tr><td class="align-left">1</td><td class="align-center"></td></tr>'
        '<tr><td class="align-left">x | y</td><td class="align-center">2</td></tr></tbody></table></div><p>end</p>'
    ),
    "a | b\n- | x": "<p>a | b</p>" + '<ul class="tight"><li><p>| x</p></li></ul>',
    "<b>x</b>\n<!-- y -->": "<p>&lt;b&gt;x&lt;/b&gt;<br>&lt;!-- y --&gt;</p>",
    "a\r\nb\r\n\r\n\tc": "<p>a<br>b</p><p>c</p>",
    "": "",
}


@pytest.mark.parametrize("source", CASES, ids=range(len(CASES)))
def test_what_markdown_becomes(page: Any, source: str) -> None:
    assert page.evaluate(RENDER, [source]) == CASES[source]
    assert page.evaluate(RENDER, list(source)) == CASES[source]


FUZZ = """
async ({seed, count}) => {
  const { MarkdownView } = await import("/page/markdown_view.js");
  const random = (below) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 4294967296) * below);
  };
  const words = [
    "a", "bc", " ", " ", "  ", "    ", "\\n", "\\n", "\\n\\n", "\\t", "\\r\\n",
    "- ", "1. ", "12) ", "> ", "# ", "#", "```", "~~~", "|", "|-|-|\\n", "-", "---\\n",
    "`", "``", "*", "**", "_", "~~", "[", "](", "https://x.y/z", ")", "\\\\", "!", "<", "<b>", ":",
  ];
  const shown = (pieces) => {
    const root = document.createElement("div");
    const view = new MarkdownView(root);
    let source = "";
    for (const piece of pieces) view.update((source += piece));
    return root.innerHTML.replaceAll(' class=""', "");
  };
  const different = [];
  for (let round = 0; round < count; round++) {
    const pieces = Array.from({length: 1 + random(40)}, () => words[random(words.length)]);
    const source = pieces.join("");
    const [whole, grown, letters] = [shown([source]), shown(pieces), shown([...source])];
    if (whole !== grown || whole !== letters) different.push({source, whole, grown, letters});
  }
  return different;
}
"""


def test_a_text_that_grows_looks_like_one_that_came_at_once(page: Any) -> None:
    assert page.evaluate(FUZZ, {"seed": 5, "count": 1500}) == []


SIZE = 40_000
BAD = {
    "brackets": "[" * SIZE,
    "links": "[a](" * SIZE,
    "titles": '[a](b "' * (SIZE // 8),
    "pictures": "![" * SIZE,
    "stars": "*a " * SIZE,
    "mixed marks": "*a _b ~~c " * (SIZE // 8),
    "closers": "a* b_ " * SIZE,
    "nested emphasis": "*a **b " * (SIZE // 8) + " b** a*" * (SIZE // 8),
    "ticks": " ".join("`" * length for length in range(1, 300)),
    "tick pairs": "`a" * SIZE,
    "quotes": ">" * SIZE,
    "items": "- " * SIZE,
    "deep lists": "\n".join("  " * depth + "- x" for depth in range(400)),
    "pipes": "|" * SIZE + "\n" + "|-" * SIZE,
    "spaces in a rule": "- " + " " * SIZE + "x",
    "spaces in a heading": "# a" + " " * SIZE + "b",
    "spaces in delimiters": "a|b\n-|-" + " " * SIZE + "x",
    "blank lines": "- a" + "\n" * SIZE + "x",
    "addresses": "https://x.y/" + ")" * SIZE,
    "angle brackets": "<https://" * SIZE,
    "backslashes": "\\" * SIZE,
    "separators": "```" + " " * SIZE + "\u2028",
}


@pytest.mark.parametrize("kind", BAD)
def test_no_text_takes_long(page: Any, kind: str) -> None:
    script = """
    async (source) => {
      const { MarkdownView } = await import("/page/markdown_view.js");
      const began = performance.now();
      new MarkdownView(document.createElement("div")).update(source);
      return performance.now() - began;
    }
    """
    # Milliseconds where time is in proportion to the length, many seconds where it is to the square.
    assert page.evaluate(script, BAD[kind]) < 1500


EVENTS = {
    "data: a\n\ndata:b\ndata\ndata: c\n\n": [["message", "a"], ["message", "b\n\nc"]],
    ": c\n\nevent: e\nid: 1\ndata:  x\n\nevent: f\n\ndata: y\n\n": [["e", " x"], ["f", "y"]],
    "data: a\r\rdata: b\r\n\r\ndata: c\n\r\n": [["message", "a"], ["message", "b"], ["message", "c"]],
    "data: unfinished\n": [],
    "data\n\n": [["message", ""]],
}


@pytest.mark.parametrize("source", EVENTS, ids=range(len(EVENTS)))
def test_events_do_not_depend_on_the_cuts(page: Any, source: str) -> None:
    script = """
    async ([source, size]) => {
      const { EventParser } = await import("/page/sse.js");
      const parser = new EventParser();
      const events = [];
      for (let at = 0; at < source.length; at += size) {
        events.push(...parser.push(source.slice(at, at + size)), ...parser.push(""));
      }
      return events.map(({type, data}) => [type, data]);
    }
    """
    for size in range(1, len(source) + 1):
        assert page.evaluate(script, [source, size]) == EVENTS[source], size

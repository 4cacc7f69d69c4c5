"""The report's page: one HTML file that needs no network, no script and no other file."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from urllib.parse import urlsplit

from medssl.analysis.drawing import Drawing
from medssl.analysis.tables import Table, link, to_html

_SCHEMES = ("", "http", "https")
STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #57606a; --paper: #ffffff; --tint: #f4f6f8; --line: #d5dae0;
  --accent: #00568a; --warn: #9a4200; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #a3adb8; --paper: #14181c; --tint: #1d2328;
  --line: #39424b; --accent: #7cc4f2; --warn: #f0a35e; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0.5rem 0; font-size: 1.9rem; line-height: 1.2; text-wrap: balance; }
h2 { margin: 3rem 0 0.75rem; padding-top: 1rem; border-top: 2px solid var(--line); font-size: 1.4rem; }
h3 { margin: 2rem 0 0.5rem; font-size: 1.1rem; }
p { max-width: 46rem; }
a { color: var(--accent); }
td a, th a, dd a { color: inherit; text-decoration: underline dotted var(--soft) 1px; text-underline-offset: 0.2em; }
td a:hover, th a:hover, dd a:hover, :target { color: var(--accent); }
.kind { margin: 0; color: var(--soft); font-size: 0.85rem; letter-spacing: 0.06em; text-transform: uppercase; }
.note { margin: 0.75rem 0; padding: 0.6rem 1rem; border-left: 4px solid var(--warn); background: var(--tint); }
nav ol { display: flex; flex-wrap: wrap; gap: 0.2rem 1.4rem; margin: 1rem 0 0; padding: 0; list-style: none; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 0.75rem; margin: 1.25rem 0; }
.facts div { padding: 0.7rem 0.9rem; border-radius: 0.4rem; background: var(--tint); }
.facts dt { color: var(--soft); font-size: 0.85rem; line-height: 1.3; }
.facts dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { position: relative; margin: 1rem 0 0.25rem; overflow-x: auto; } /* marks of footnotes scroll along */
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { min-width: min(30rem, 100%); border-collapse: collapse; font-size: 0.9rem; line-height: 1.35; }
caption { padding-bottom: 0.5rem; text-align: left; }
caption span { position: sticky; left: 0; display: inline-block; max-width: min(46rem, calc(100vw - 4.5rem)); }
th, td { padding: 0.35rem 1rem 0.35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; font-weight: 600; min-width: 4.5rem; }
tbody th { font-weight: 400; }
tbody th[scope=row]:not(.n) { min-width: 8rem; }
th[scope=rowgroup] { padding-top: 0.9rem; font-weight: 600; }
th.n, td.n { padding-left: 0.5rem; text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; }
td:last-child:not(.n) { min-width: 11rem; }
td.absent { color: var(--warn); font-style: italic; white-space: nowrap; }
sup { position: absolute; margin-left: 0.1rem; font-size: 0.7rem; line-height: 1; }
.footnotes { margin: 0.25rem 0 1rem; padding: 0; list-style: none; color: var(--soft); font-size: 0.85rem; }
figure { margin: 1.5rem 0; }
figure > div { overflow-x: auto; }
figure svg { display: block; width: auto; max-width: 100%; min-width: min(34rem, 100%); height: auto; }
figcaption { max-width: 46rem; margin-top: 0.5rem; color: var(--soft); font-size: 0.9rem; }
details { margin: 1rem 0; padding: 0.5rem 0.9rem; border: 1px solid var(--line); border-radius: 0.4rem; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 40rem) { figure svg { max-width: 42rem; min-width: 34rem; } h1 { font-size: 1.5rem; } }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --tint: #fff; --line: #bbb; --accent: #000; --warn: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3, caption { break-after: avoid; }
  tr, figure, .facts div { break-inside: avoid; }
  td a, th a, dd a { text-decoration: none; }
  .scroll, figure > div { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding-right: 0.5rem; }
  details { border: 0; padding: 0; }
  details::details-content { content-visibility: visible; display: block; block-size: auto; }
}
"""


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    words: str


@dataclass(frozen=True)
class Note:
    """A remark that a reader must not miss."""

    words: str


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: Of its file and of the ids within.
        drawing: As `figures` makes it.
        caption: Plain text.
        task: The task of the study that made what is drawn.
    """

    name: str
    drawing: Drawing
    caption: str
    task: str


@dataclass(frozen=True)
class Facts:
    """A few figures at a glance: what, how many, and the task that counted them ("" where none did)."""

    items: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Details:
    """What stays folded until asked for; print shows it."""

    summary: str
    parts: "tuple[Part, ...]"


# Plain text is a paragraph. Nothing but a figure is markup before it is rendered, so nothing escapes escaping.
Part = str | Heading | Note | Facts | Figure | Table | Details


@dataclass(frozen=True)
class Section:
    """A section of the report: its anchor, its heading, and what stands in it."""

    name: str
    heading: str
    parts: tuple[Part, ...]


def leaves(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts, with what details fold unfolded."""
    for part in parts:
        if isinstance(part, Details):
            yield from leaves(part.parts)
        else:
            yield part


def tasks_of(parts: Iterable[Part]) -> set[str]:
    """The tasks that numbers and figures of the parts lead to."""
    found: set[str] = set()
    for part in leaves(parts):
        if isinstance(part, Table):
            found |= {part.task} | {cell.task for row in part.rows for cell in row}
        elif isinstance(part, Figure):
            found.add(part.task)
        elif isinstance(part, Facts):
            found |= {task for *_, task in part.items}
    return found - {""}


def with_links(html: str, urls: Mapping[str, str]) -> str:
    """A page whose numbers lead to where their tasks are kept, such as runs in MLflow.

    Args:
        html: A page of `render`.
        urls: Of each task by its name, as a number's `data-task` has it; numbers of other tasks keep leading to the
            page's own lineage.

    Raises:
        ValueError: A URL is neither http(s) nor relative: a browser might run it.
    """
    if wrong := sorted({scheme for url in urls.values() if (scheme := urlsplit(url).scheme) not in _SCHEMES}):
        raise ValueError(f"URLs of tasks: found {wrong[:5]}, expected http, https or none")

    def replaced(match: re.Match[str]) -> str:
        url = urls.get(unescape(match[1]))
        return match[0] if url is None else f'<a href="{escape(url)}" data-task="{match[1]}">'

    return re.sub(r'<a href="#[^"]*" data-task="([^"]*)">', replaced, html)


def with_section(html: str, section: Section) -> str:
    """A page of `render` with one more section at its end, in the list of sections too."""
    entry = f'<li><a href="#{section.name}">{escape(section.heading)}</a></li></ol></nav>'
    return html.replace("</ol></nav>", entry, 1).replace("\n</main>", f"\n{_section(section)}\n</main>", 1)


def _section(section: Section) -> str:
    heading = f"<h2>{escape(section.heading)}</h2>"
    return f'<section id="{section.name}">{heading}\n{_markup(section.parts)}</section>'


def render(title: str, lead: Iterable[Part], sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: Of the study; not trusted, as no other text is.
        lead: Below the title.
        sections: In order.
    """
    links = "".join(f'<li><a href="#{s.name}">{escape(s.heading)}</a></li>' for s in sections)
    body = "\n".join(map(_section, sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kind">Study report</p>
<h1>{escape(title)}</h1>
{_markup(lead)}
<nav aria-label="Sections"><ol>{links}</ol></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _fact(what: str, value: str, task: str) -> str:
    shown = link(task, escape(value)) if task else escape(value)
    return f"<div><dt>{escape(what)}</dt><dd>{shown}</dd></div>"


def _markup(parts: Iterable[Part]) -> str:
    return "\n".join(_part(part) for part in parts)


def _part(part: Part) -> str:
    match part:
        case str():
            return f"<p>{escape(part)}</p>"
        case Heading(words):
            return f"<h3>{escape(words)}</h3>"
        case Note(words):
            return f'<p class="note">{escape(words)}</p>'
        case Facts(items):
            return f'<dl class="facts">{"".join(_fact(*item) for item in items)}</dl>'
        case Figure(_, drawing, caption, task):
            made = f" ({link(task, escape(task))})" if task else ""
            return f"<figure><div>{drawing.svg}</div><figcaption>{escape(caption)}{made}</figcaption></figure>"
        case Table():
            return to_html(part)
        case Details(summary, inner):
            return f"<details><summary>{escape(summary)}</summary>\n{_markup(inner)}\n</details>"

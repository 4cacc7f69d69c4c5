"""The report's page as a browser shows it, at the widths of a phone, a tablet and a desk."""

import json
from pathlib import Path

import pytest

from medssl.analysis import report
from medssl.analysis.inputs import ReportInputs
from tests.analysis.metric_rows import arms_table, chexpert_metrics, derm_metrics, named_arms, published, table
from tests.analysis.test_paper_section import DERM_TABLES, key_of, shown_rows, three_lines
from tests.analysis.test_report import make_inputs
from tests.browser import Browser, executable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="no Chromium is installed: apt-get install chromium"),
]
WIDTHS = (390, 820, 1440)
# What a reader sees of each table: the texts of its cells, without the marks of footnotes.
TABLES = """
Object.fromEntries([...document.querySelectorAll("table")].map(table => [
  table.id.replace("table-", ""),
  [...table.rows].map(row => [...row.cells].map(cell => {
    const copy = cell.cloneNode(true);
    copy.querySelectorAll("sup").forEach(mark => mark.remove());
    return copy.textContent;
  }))
]))
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def paper_page(names, metrics_of, folder) -> Path:
    arms = named_arms(*names)
    report.write(ReportInputs(metrics=table(metrics_of(arms)), arms=arms_table(arms)), folder)
    return folder / "index.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """By name: a page of generated radiographs with all sections, and two with the arms of the paper's tables."""
    folder = tmp_path_factory.mktemp("pages")
    report.write(make_inputs(), folder / "study")
    return {
        "study": folder / "study" / "index.html",
        "derm": paper_page(DERM_TABLES, derm_metrics, folder / "derm"),
        "chexpert": paper_page(["b6"], chexpert_metrics, folder / "chexpert"),
    }


@pytest.mark.parametrize("name", [*DERM_TABLES, "b6"])
def test_three_cells_of_each_table_are_the_published_ones(browser, pages, name):
    browser.show(pages["chexpert" if name == "b6" else "derm"], width=1440)
    shown = shown_rows(browser.evaluate(TABLES)[f"paper-{name}-set-test"])
    for line in three_lines(name):
        assert shown[key_of(line)][0].split(" ± ")[0] == line["value"]
    assert len(shown) >= len(published(name))


@pytest.mark.parametrize("page", ["study", "derm", "chexpert"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_does_not_scroll_sideways_and_asks_the_network_for_nothing(browser, pages, page, width):
    browser.show(pages[page], width=width)
    assert browser.evaluate(OVERFLOW) == 0
    browser.evaluate('document.querySelectorAll("details").forEach(one => one.open = true)')
    assert browser.evaluate(OVERFLOW) == 0
    assert browser.requests == [pages[page].resolve().as_uri()]


def test_wide_tables_and_figures_scroll_by_themselves_on_a_phone(browser, pages):
    browser.show(pages["derm"], width=390)
    wide = browser.evaluate(
        '[...document.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth)'
        ".map(one => getComputedStyle(one).overflowX)"
    )
    assert wide
    assert set(wide) == {"auto"}


def test_text_on_a_phone_is_large_enough_to_read_without_zooming(browser, pages):
    browser.show(pages["study"], width=390)
    sizes = browser.evaluate(
        '[...document.querySelectorAll("p, td, th, li, figcaption")]'
        ".map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 12


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_background_light_and_dark(browser, pages, dark):
    browser.show(pages["study"], width=820, dark=dark)
    ink, paper = browser.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert contrast(ink, paper) > 7
    (figure,) = set(
        browser.evaluate(
            '[...document.querySelectorAll("figure svg [style*=currentColor]")].map(one => getComputedStyle(one).color)'
        )
    )
    assert figure == ink
    if dark:
        assert contrast(paper, "rgb(255, 255, 255)") > 7


def contrast(one, other):
    """WCAG's ratio of two colours as `getComputedStyle` gives them."""
    light = []
    for colour in (one, other):
        channels = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_in_print_everything_folded_is_open_and_nothing_is_cut_off(browser, pages):
    browser.show(pages["study"], width=1000, media="print")
    heights = browser.evaluate('[...document.querySelectorAll("details table")].map(one => one.offsetHeight)')
    assert heights
    assert min(heights) > 0
    assert browser.evaluate('getComputedStyle(document.querySelector("nav")).display') == "none"
    clipped = '[...document.querySelectorAll(".scroll")].map(one => getComputedStyle(one).overflowX)'
    assert set(browser.evaluate(clipped)) == {"visible"}


def test_every_link_of_a_number_leads_to_a_row_that_is_there(browser, pages):
    browser.show(pages["study"], width=1440)
    wrong = browser.evaluate(
        '[...document.querySelectorAll("a[data-task]")].filter(one => {'
        'const row = document.getElementById(one.getAttribute("href").slice(1));'
        'return !row || row.textContent !== one.dataset.task || !row.closest("#lineage"); }).length'
    )
    assert wrong == 0
    assert browser.evaluate('document.querySelectorAll("a[data-task]").length') > 100


def test_browsers_find_names_for_all_figures_and_scopes_of_all_headers(browser, pages):
    browser.show(pages["study"], width=1440)
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    figures = [node for node in tree if node.get("role", {}).get("value") == "image"]
    drawn = browser.evaluate('document.querySelectorAll("figure svg[role=img]").length')
    assert drawn
    assert len([node for node in figures if node.get("name", {}).get("value")]) >= drawn
    assert browser.evaluate('document.querySelectorAll("th:not([scope])").length') == 0
    assert "Images" in json.dumps(browser.evaluate(TABLES)["splits"][0])

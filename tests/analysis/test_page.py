"""Links of the page's numbers, and parts that are added later."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.analysis import page, tables
from medssl.analysis.drawing import Drawing
from medssl.analysis.page import Details, Facts, Figure, Section
from medssl.analysis.tables import Cell, Column


def a_table(name="some", task="compare"):
    columns = [tables.text("Arm"), Column("Value"), Column("Of one arm")]
    return tables.build(name, "Values.", columns, [["x1", "0.5", Cell("0.6", task="predict x y")]], task=task)


def a_page():
    figure = Figure("drawn", Drawing("<svg></svg>", b""), "A figure.", "pretrain first")
    parts = ("Words of 2020.", a_table(), Details("More", (a_table("folded", "analyze_subgroups"), figure)))
    return page.render(
        "Title", [Facts((("Images", "12", "ingest"), ("Arms", "3", "")))], [Section("one", "One", parts)]
    )


def links(html):
    return dict(re.findall(r'data-task="([^"]*)">([^<]*)<', html))


def test_every_number_leads_to_the_row_of_its_task():
    html = a_page()
    assert links(html) == {
        "ingest": "12", "compare": "0.5", "predict x y": "0.6", "analyze_subgroups": "0.5",
        "pretrain first": "pretrain first",
    }  # fmt: skip
    assert '<a href="#task-predict:x:y" data-task="predict x y">0.6</a>' in html
    assert "2020.</p>" in html


def test_tasks_of_parts_are_those_that_the_page_links_to():
    section = Section("one", "One", (a_table(), Details("More", (a_table("folded", "analyze_subgroups"),))))
    facts = Facts((("Images", "12", "ingest"), ("Arms", "3", "")))
    assert page.tasks_of([facts, *section.parts]) == set(links(page.render("Title", [facts], [section])))


def test_links_lead_to_where_tasks_are_kept_and_others_stay_in_the_page():
    urls = {"predict x y": "http://host/#/runs/ab?a=1&b=2", "compare": "https://host/x", "unknown": "http://y"}
    html = page.with_links(a_page(), urls)
    assert '<a href="http://host/#/runs/ab?a=1&amp;b=2" data-task="predict x y">0.6</a>' in html
    assert html.count('<a href="https://host/x" data-task="compare">') == 1
    assert '<a href="#task-analyze_subgroups" data-task="analyze_subgroups">' in html
    assert "http://y" not in html


def test_linking_changes_nothing_but_links_and_no_links_change_nothing():
    html = a_page()
    assert page.with_links(html, {}) == html
    linked = page.with_links(html, {"compare": "https://host/x"})
    assert linked.replace("https://host/x", "#task-compare") == html


def test_a_url_cannot_leave_its_attribute_or_run_a_script():
    html = page.with_links(a_page(), {"compare": 'https://host/"><script>alert(1)</script>'})
    assert "<script" not in html
    for url in ("javascript:alert(1)", "data:text/html,x", " JavaScript:alert(1)", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="expected http, https or none"):
            page.with_links(a_page(), {"compare": url})


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_tasks_of_different_names_have_different_anchors_that_are_valid_ids(one, other):
    anchor = tables.task_anchor(one)
    assert re.fullmatch(r"[\w.:-]+", anchor, re.ASCII)
    assert (anchor == tables.task_anchor(other)) == (one == other)


def test_a_task_of_any_name_is_found_again_when_links_are_filled_in():
    name = 'predict <b>"x" & y</b>'
    html = page.render("T", [], [Section("s", "S", (a_table(task=name),))])
    assert 'href="https://host/run"' in page.with_links(html, {name: "https://host/run"})


def test_a_section_added_later_stands_last_and_in_the_list():
    section = Section("card", "Model <card>", ("Words & more.",))
    html = page.with_section(a_page(), section)
    assert html.index('<section id="one">') < html.index('<section id="card">') < html.index("</main>")
    assert '<li><a href="#card">Model &lt;card&gt;</a></li></ol></nav>' in html
    assert html.count("Words &amp; more.") == 1
    whole = page.render("T", [], [Section("one", "One", ("x",)), section])
    assert page.with_section(page.render("T", [], [Section("one", "One", ("x",))]), section) == whole


def test_the_page_has_styles_for_dark_print_and_phone_and_lets_nothing_load():
    html = a_page()
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem", "width=device-width"):
        assert rule in html
    assert "default-src 'none'" in html

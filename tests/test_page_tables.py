"""README.md and the pages behind it: every table is what the committed records say, and every table has its page."""

from collections import Counter

import pytest

from benchmarks.pages import BLOCK, TABLES, filled, pages


@pytest.mark.parametrize("page", pages(), ids=[page.stem for page in pages()])
def test_tables_are_those_of_the_records(page):
    for _, name, shown, _ in BLOCK.findall(page.read_text(encoding="utf-8")):
        assert shown == TABLES[name](), f"{name}: run `python -m benchmarks.pages`"


def test_every_table_stands_on_one_page():
    found = Counter(name for page in pages() for _, name, _, _ in BLOCK.findall(page.read_text(encoding="utf-8")))
    assert found == Counter(TABLES.keys())


def test_only_what_stands_between_a_tables_marks_is_written(monkeypatch):
    monkeypatch.setitem(TABLES, "one", lambda: "| new |")
    before, after = "above\n<!-- table: one -->\n", "\n<!-- end -->\nbetween\n<!-- table: one -->\nold\n<!-- end -->\nbelow\n"
    written = filled(f"{before}old\nold{after}")
    assert written == f"{before}| new |{after.replace('old', '| new |')}" and filled(written) == written
    assert filled("no table\n<!-- table: one -->\n") == "no table\n<!-- table: one -->\n"
    with pytest.raises(KeyError, match="unknown"):
        filled("<!-- table: unknown -->\nold\n<!-- end -->")

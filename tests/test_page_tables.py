"""README.md and the pages behind it: every table is what the committed records say, and every table has its page."""

from collections import Counter

import pytest

from benchmarks.pages import BLOCK, TABLES, pages


@pytest.mark.parametrize("page", pages(), ids=[page.stem for page in pages()])
def test_tables_are_those_of_the_records(page):
    for _, name, shown, _ in BLOCK.findall(page.read_text(encoding="utf-8")):
        assert shown == TABLES[name](), f"{name}: run `python -m benchmarks.pages`"


def test_every_table_stands_on_one_page():
    found = Counter(name for page in pages() for _, name, _, _ in BLOCK.findall(page.read_text(encoding="utf-8")))
    assert found == Counter(TABLES.keys())

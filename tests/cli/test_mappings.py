"""Mappings as CSV: every wrong row is told at once, by the number a spreadsheet shows."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.errors import BadInput
from hub.mappings import CategoryMapping, Kept, read, write

REMOTES = {"MC-1": "Moda > Tênis", "MC-2": "Casa"}


def told(raw: str | bytes, remotes: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(BadInput) as refused:
        read(raw if isinstance(raw, bytes) else raw.encode(), remotes)
    return [problem.sentence() for problem in refused.value.problems]


@pytest.mark.parametrize(
    "text",
    [
        "category,remote,name\n1,MC-1,Tênis\n",
        "category;remote;name\r\n1;MC-1;Tênis\r\n",
        "\ufeffName,Category,Remote\nTênis,1,MC-1\n\n",
        'category,remote,name\n 1 ,"MC-1",Tênis\n1,MC-1,Tênis\n',
    ],
)
def test_what_spreadsheets_write_is_read(text: str) -> None:
    assert read(text.encode()) == [CategoryMapping("1", "MC-1", "Tênis")]


def test_a_missing_name_is_the_marketplaces() -> None:
    assert read(b"category,remote\n1,MC-1\n", REMOTES) == [CategoryMapping("1", "MC-1", "Moda > Tênis")]


def test_every_wrong_row_is_told_at_once_with_its_number() -> None:
    text = "category,remote,name\n1,MC-1,\n,MC-1,\n2,,\n1,MC-2,\n3,MC-9,\n4,casa,\n5,MC-7,Moda > Tenis\n6,MC-1,x,y\n"
    assert told(text, REMOTES) == [
        "row 3, category: is empty; fill it, or leave the row out",
        "row 4, remote: is empty; fill it, or leave the row out",
        "row 5, category is '1': row 2 maps it to 'MC-1'; keep one of them",
        "row 6, remote is 'MC-9': is no category there; did you mean 'MC-2'?",
        "row 7, remote is 'casa': is no category there; write its id 'MC-2' instead of its name",
        "row 8, remote is 'MC-7': is no category there; did you mean 'MC-1' (Moda > Tênis)?",
        "row 9: has 1 cells too many; put a text with commas in quotes",
    ]


def test_a_category_that_vtex_cannot_have_is_told_with_its_row() -> None:
    fix = "write the number of the VTEX category: 1 to 2147483647, without zeros in front"
    assert told("category,remote\nx,a\n-3,a\n99999999999,a\n2147483648,a\n0,a\n07,a\n2147483647,a\n") == [
        f"row {row}, category is '{found}': {fix}"
        for row, found in enumerate(("x", "-3", "99999999999", "2147483648", "0", "07"), start=2)
    ]


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "row 1: the column category is missing; write category,remote,name"),
        (b"category,remoto\n1,2\n", "row 1 is 'category,remoto': the column remote is missing"),
        (b"category,remote\n", "file: holds no row below its header"),
        (b"category,remote\n1,\xff\xfe\n", "row 2: is no UTF-8 text; save the file as CSV UTF-8"),
        (b"category,remote\n1," + b"x" * 300 + b"\n", "row 2, remote is"),
        (b"category,remote\n1,a\x00b\n", "row 2"),
        (b'category,remote\n1,a\n2,"b\n3,c\n', "row 3: begins a text with a quote that is never closed"),
        (b'category,remote\n1,a\n2,"b\n' + b"3,c\n" * 50_000, "row 3: holds a text of more than 131072 characters"),
        (b'category,remote\n1,"a"b\n', "row 2: has something behind the quote that closes a text"),
        (b'category,"remote\n1,a\n', "row 1: begins a text with a quote that is never closed"),
        (b"category,remote,category\n1,2,3\n", "row 1 is 'category': is there twice; keep one"),
        (b"x" * (16 * 1_048_576 + 1), "file is '16777217 bytes': split it"),
    ],
)
def test_a_file_that_is_no_table_of_mappings_is_refused_in_a_sentence(raw: bytes, sentence: str) -> None:
    assert told(raw)[0].startswith(sentence)


def test_a_column_that_is_there_twice_is_told_once() -> None:
    assert told("category,remote,category,Name,name\n1,2,3,4,5\n") == [
        f"row 1 is '{name}': is there twice; keep one" for name in ("category", "name")
    ]


_texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(
    lambda text: text == text.strip()
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(st.dictionaries(st.integers(1, 2**31 - 1).map(str), st.tuples(_texts, _texts), min_size=1, max_size=20))
def test_what_is_exported_is_imported_unchanged(table: dict[str, tuple[str, str]]) -> None:
    rows = [Kept(category, remote, name, 0, None) for category, (remote, name) in table.items()]
    assert read(write(rows).encode()) == [CategoryMapping(row.category, row.remote, row.name) for row in rows]

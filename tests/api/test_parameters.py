"""Whatever stands in a query string: an answer or problems that can be acted on, never anything else."""

import uuid
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hub.errors import BadInput, Problem
from hub.interactions import MOST_SKIPPED, Cursor
from hub.messages import LANGUAGES
from tasks.api import LARGEST_PAGE, read_question, spoken
from tests.api.conftest import CONTEXTS

TODAY = date(2026, 1, 31)
NAMES = ["DateAt", "date", "status", "operation", "context", "sku", "order", "page", "size", "after", "language", "x"]
VALUES = (
    st.text()
    | st.dates().map(str)
    | st.integers().map(str)
    | st.lists(st.sampled_from(["all", "sucess", "ERROR", "alert", "x", ""])).map(",".join)
    | st.sampled_from(["pt-BR", "Price update", "stock", "1-0"])
)


@given(st.lists(st.tuples(st.sampled_from(NAMES) | st.text(), VALUES), max_size=8), st.text())
@example([("size", "٣")], "")
@example([("DateAt", "２０２６-01-01")], "")
@example([("page", "999999999"), ("size", "1000")], "")
def test_a_query_is_a_question_or_problems_with_field_and_fix(given_: list[tuple[str, str]], accept: str) -> None:
    problems: tuple[Problem, ...] | None = None
    try:
        question, language = read_question(given_, today=TODAY, contexts=CONTEXTS, accept_language=accept)
    except BadInput as wrong:
        problems = wrong.problems
    if problems is not None:
        assert problems
        assert all(problem.field and problem.fix for problem in problems)
        return
    assert language in LANGUAGES
    assert 1 <= question.size <= LARGEST_PAGE
    assert 0 <= (question.page - 1) * question.size < MOST_SKIPPED
    assert question.statuses <= {"success", "error", "warning", "pending"}
    assert question.context is None or question.context in CONTEXTS
    assert not (question.sku and question.order)
    assert all(key is None or "\0" not in key for key in (question.sku, question.order))


@given(
    st.dates(date(2000, 1, 1), date(2999, 12, 31)), st.sets(st.sampled_from(["success", "error", "warning", "pending"]))
)
def test_what_is_written_well_is_understood(day: date, statuses: set[str]) -> None:
    given_ = [("DateAt", day.isoformat()), ("STATUS", ",".join(statuses).upper())]
    question, _ = read_question(given_, today=TODAY, contexts=CONTEXTS)
    assert (question.day, question.statuses) == (day, statuses)


@given(st.integers(946_684_800_000_000, 32_503_679_999_999_999), st.uuids())
def test_a_cursor_survives_its_own_writing(microseconds: int, id_: uuid.UUID) -> None:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    assert Cursor.parse(str(Cursor(at, id_))) == Cursor(at, id_)


@pytest.mark.parametrize("text", ["", "x", "1-2", "-1", "99999999999999999999-" + "0" * 32, "١" * 15 + "-" + "0" * 32])
def test_no_other_text_is_a_cursor(text: str) -> None:
    assert Cursor.parse(text) is None


@given(st.text())
def test_any_header_speaks_some_language(header: str) -> None:
    assert spoken(header) in LANGUAGES

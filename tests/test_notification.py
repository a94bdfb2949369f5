"""The written table of vtex.md 4.4, whole, and the body variants of 4.2, in any casing and typing."""

import itertools
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.errors import BadInput, Problem
from hub.model import Urgency
from hub.notification import MOST_IN_ONE_BODY, Notification, announces_change, asks, parse

FLAGS = {
    "StockModified": "stock_modified",
    "PriceModified": "price_modified",
    "HasStockKeepingUnitModified": "sku_modified",
    "HasStockKeepingUnitRemovedFromAffiliate": "removed",
}


def read(body: Any) -> Notification:
    (one,) = parse(json.dumps(body).encode(), account="acme", affiliate="MKT")
    return one


def problems(body: Any) -> dict[str, str]:
    with pytest.raises(BadInput) as refused:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), account="acme", affiliate="MKT")
    return {problem.field: problem.value for problem in refused.value.problems}


@pytest.mark.scenario("NOT-14", "NOT-15", "NOT-16", "NOT-17", "NOT-18", "NOT-19", "NOT-20", "NOT-21", rule=True)
@pytest.mark.parametrize(
    ("active", "stock", "price", "sku", "removed"), list(itertools.product((None, True, False), *[(False, True)] * 4))
)
def test_every_combination_of_flags_asks_what_the_table_says(
    active: bool | None, stock: bool, price: bool, sku: bool, removed: bool
) -> None:
    said = Notification("15", "acme", "MKT", active, stock, price, sku, removed)
    if removed or active is False:
        expected = {("catalog", Urgency.REMOVE)}
    elif sku:
        expected = {("catalog", Urgency.NOTIFIED)}
    elif not (stock or price):
        expected = {("catalog", Urgency.CHECK)}
    else:
        expected = {(name, Urgency.NOTIFIED) for name, flag in (("price", price), ("stock", stock)) if flag}
    assert set(asks(said)) == expected
    assert len(asks(said)) == len(expected)
    assert announces_change(said) == (("catalog", Urgency.CHECK) not in expected)


@pytest.mark.scenario("NOT-03", rule=True)
def test_the_real_sample_with_seven_fraction_digits_is_read() -> None:
    said = read(
        {
            "IdSku": "15",
            "An": "accountname",
            "IdAffiliate": "SPT",
            "DateModified": "2018-08-20T15:11:28.1978783Z",
            "IsActive": False,
            "StockModified": False,
            "PriceModified": False,
            "HasStockKeepingUnitModified": True,
            "HasStockKeepingUnitRemovedFromAffiliate": False,
        }
    )
    assert (said.sku_id, said.account, said.affiliate, said.is_active) == ("15", "accountname", "SPT", False)


@pytest.mark.scenario("NOT-04", "NOT-06", rule=True)
def test_what_is_missing_or_null_is_false_unknown_or_the_tokens() -> None:
    for body in ({"IdSku": 1}, {"IdSku": 1, "An": None, "IsActive": None, "StockModified": None, "ProductId": None}):
        said = read(body)
        assert (said.account, said.affiliate, said.is_active) == ("acme", "MKT", None)
        assert not any((said.stock_modified, said.price_modified, said.sku_modified, said.removed))


def test_an_unreadable_date_or_product_loses_no_notification() -> None:
    said = read({"IdSku": 1, "DateModified": "yesterday", "ProductId": "p-1", "StockModified": True})
    assert (said.sku_id, said.stock_modified) == ("1", True)


def test_two_spellings_that_differ_read_as_what_makes_us_look() -> None:
    said = read(
        {"IdSku": 1, "idSKU": "1", "isActive": True, "active": False, "StockModified": "False", "stockmodified": True}
    )
    assert (said.is_active, said.stock_modified) == (False, True)
    assert "IdSku and idSKU" in problems({"IdSku": 1, "idSKU": 2})


@pytest.mark.scenario("NOT-09", rule=True)
@pytest.mark.parametrize(
    "sku", [0, -1, 2**31, 10**30, "", "x", "1 2", "15\u0000", "1" * 5_000, True, 1.5, [1], {"a": 1}]
)
def test_a_sku_id_that_cannot_be_one_is_refused(sku: object) -> None:
    assert list(problems({"idSku": sku})) == ["idSku"]


@pytest.mark.parametrize(
    "body", ['{"IdSku":1,"IdSku":2}', '{"IdSku" :1,"IdSku":2}', '{"x":{"IdSku":3},"IdSku":1,"IdSku":2}']
)
@pytest.mark.parametrize("frame", ["%s", "[%s]"])
def test_a_key_written_twice_reads_as_one_in_two_spellings(body: str, frame: str) -> None:
    (value,) = problems((frame % body).encode()).values()
    assert value == "[1, 2]"
    same = frame % '{"IdSku":5,"IdSku":null,"IdSku":5,"StockModified":true,"StockModified":false,"y":1,"y":2}'
    (said,) = parse(same.encode(), account="a", affiliate="b")
    assert (said.sku_id, said.stock_modified) == ("5", True)


@pytest.mark.parametrize(("found", "shown"), [("é\\", "é\\"), ("a\u0000b\n", "a\ufffdb\ufffd"), (["é"], '["é"]')])
def test_what_was_found_is_shown_without_escapes_of_its_own(found: object, shown: str) -> None:
    assert problems({"IdSku": found}) == {"IdSku": shown}


@pytest.mark.scenario("NOT-27", rule=True)
def test_an_array_is_read_element_by_element_and_bounded() -> None:
    body = json.dumps([{"IdSku": n} for n in range(1, MOST_IN_ONE_BODY + 1)]).encode()
    assert [said.sku_id for said in parse(body, account="a", affiliate="b")][-1] == str(MOST_IN_ONE_BODY)
    assert "body" in problems([{"IdSku": 1}] * (MOST_IN_ONE_BODY + 1))
    assert len(problems([{}] * 500)) == 20


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"a":1} x', b"\xff", b'"text"', b"null", b"[]", b'{"IdSku":NaN}', b"1" * 9_999]
)
def test_what_is_no_notification_names_the_body_and_shows_little_of_it(body: bytes) -> None:
    found = problems(body)
    assert len(found) == 1
    assert all(len(value) <= 90 and value.isprintable() for value in found.values())


@st.composite
def spelt(draw: st.DrawFn, name: str) -> str:
    return "".join(draw(st.sampled_from((letter.lower(), letter.upper()))) for letter in name)


def typed(value: bool) -> st.SearchStrategy[object]:
    words = ("true", "True", "TRUE") if value else ("false", "False", "FALSE")
    return st.sampled_from((value, *words))


@pytest.mark.scenario("NOT-05", "NOT-07", "NOT-08", rule=True)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_casing_and_typing_reads_the_same(data: st.DataObject) -> None:
    sku = data.draw(st.integers(1, 2**31 - 1))
    flags = {name: data.draw(st.booleans()) for name in FLAGS}
    active = data.draw(st.sampled_from((None, True, False)))
    body: dict[str, object] = {
        data.draw(spelt("IdSku")): data.draw(st.sampled_from((sku, str(sku), f" {sku} "))),
        data.draw(spelt("An")): data.draw(
            st.sampled_from(("acme", "Acme", "ACME.myvtex", "acme.vtexcommercestable.com"))
        ),
        data.draw(spelt("IdAffiliate")): data.draw(st.sampled_from(("MKT", "mkt", "Mkt"))),
        "Version": data.draw(st.one_of(st.none(), st.text(), st.integers())),
    }
    for name, value in flags.items():
        body[data.draw(spelt(name))] = data.draw(typed(value))
    if active is not None:
        body[data.draw(st.sampled_from(("isActive", "IsActive", "active", "ACTIVE")))] = data.draw(typed(active))
    keys = data.draw(st.permutations(list(body)))
    text = json.dumps({key: body[key] for key in keys})
    (said,) = parse(text.encode(), account="acme", affiliate="MKT")
    expected = {FLAGS[name]: value for name, value in flags.items()}
    assert said == Notification(str(sku), "acme", "MKT", active, **expected, raw=text)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_bring_it_down(body: bytes) -> None:
    with suppress(BadInput):
        assert parse(body, account="acme", affiliate="MKT")


_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10) | st.sampled_from(list(FLAGS)), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["IdSku", "idsku", "An", "isActive", "active", *FLAGS]), _TREES))
def test_no_tree_brings_it_down(tree: dict[str, object]) -> None:
    refusals: list[Problem] = []
    try:
        parse(json.dumps(tree).encode(), account="acme", affiliate="MKT")
    except BadInput as refused:
        refusals.extend(refused.problems)
    assert all(problem.field and problem.fix for problem in refusals)

"""Every code says what happened and what to do, in every language, and names all it must (vtex.md 15.3, 15.4)."""

import string

import pytest

from hub import messages
from hub.errors import BadInput

CODES = sorted(messages.catalogue())
CATALOG = ["S1", "A1", "A2", "A3", "E1", "E2", "E3", "E4", "E5"]
ORDER = [f"O.{letter}" for letter in "ACDFGHIKLMNQRSTX"]

DEMANDED = {
    "S1": {"sku", "name", "remote", "link"},
    "A1": {"sku"},
    "A3": {"defaults"},
    "E1": {"errors"},
    "E2": {"marketplace"},
    "E3": {"errors"},
    "E4": {"category", "name", "sku", "mapping"},
    "O.A": {"order", "vtex_order", "link"},
    "O.C": {"vtex_order"},
    "O.D": {"sku"},
    "O.G": {"vtex_order"},
    "O.H": {"defaults"},
    "O.I": {"errors"},
    "O.L": {"marketplace"},
    "O.M": {"order"},
    "O.N": {"errors"},
    "O.Q": {"order", "marketplace"},
    "O.T": {"account"},
}
ADVISED = {
    "A1": {
        "en": ("trade policy", "carrier", "price"),
        "pt": ("política", "transportadora", "preço"),
        "es": ("política", "transportista", "precio"),
    },
    "A2": {
        "en": ("activate SKU", "image", "carrier", "price"),
        "pt": ("ativar SKU", "imagem", "transportadora", "preço"),
        "es": ("activar SKU", "imagen", "transportista", "precio"),
    },
    "E2": {"en": ("minutes", "support"), "pt": ("minutos", "suporte"), "es": ("minutos", "soporte")},
    "E5": {"en": ("minutes", "support"), "pt": ("minutos", "suporte"), "es": ("minutos", "soporte")},
}  # fmt: skip – one line per code


def placeholders(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_no_code_of_the_tables_is_missing():
    assert {*CATALOG, *ORDER, "P0", "D0"} <= set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_every_field_of_an_entry_is_one_of_the_known_words(code):
    entry = messages.entry(code)
    assert entry.family in {"catalog", "order", "common"}
    assert (entry.family == "order") == code.startswith("O.")
    assert entry.http_class in {200, 201, 400, 401, 404, 500}
    assert entry.status in {"success", "error", "warning", "pending"}
    assert entry.actor in {"seller", "operator", "vtex", "marketplace", "nobody"}
    assert entry.closes_on in {"final", "change", "mapping", "retry", "result", "approval", "correction", "replay"}
    assert set(entry.messages) == set(entry.advice) == set(messages.LANGUAGES)


@pytest.mark.parametrize("code", CODES)
def test_all_languages_name_the_same_things(code):
    entry = messages.entry(code)
    for texts in (entry.messages, entry.advice):
        assert len({frozenset(placeholders(text)) for text in texts.values()}) == 1
        assert all(text.strip() == text and len(text) >= 10 for text in texts.values())
        assert len(set(texts.values())) == len(texts)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("language", messages.LANGUAGES)
def test_every_placeholder_shows_its_value_and_a_question_mark_without_one(code, language):
    names = messages.entry(code).placeholders
    shown = messages.text(code, language, {name: f"<{name}>" for name in names})
    assert all(f"<{name}>" in shown for name in names)
    assert "{" not in shown
    assert messages.text(code, language, {}).count("?") >= len(names)


@pytest.mark.parametrize("code", DEMANDED)
def test_a_message_contains_what_vtex_demands(code):
    assert DEMANDED[code] <= messages.entry(code).placeholders


@pytest.mark.parametrize("code", ADVISED)
def test_the_advice_names_what_to_check(code):
    for language, words in ADVISED[code].items():
        shown = messages.text(code, language, {})
        assert all(word in shown for word in words), (language, shown)


@pytest.mark.parametrize(
    ("code", "status", "http_class"),
    [
        ("S1", "success", 201),
        ("A1", "warning", 400),
        ("A2", "warning", 400),
        ("A3", "warning", 200),
        ("E1", "error", 400),
        ("E2", "error", 500),
        ("E3", "error", 400),
        ("E4", "error", 400),
        ("E5", "error", 500),
        ("P0", "pending", 200),
        ("O.A", "success", 201),
        ("O.C", "success", 201),
        ("O.D", "warning", 400),
        ("O.F", "warning", 400),
        ("O.G", "error", 500),
        ("O.H", "warning", 200),
        ("O.I", "error", 400),
        ("O.K", "error", 401),
        ("O.L", "error", 500),
        ("O.M", "warning", 404),
        ("O.N", "error", 400),
        ("O.Q", "error", 400),
        ("O.R", "pending", 200),
        ("O.S", "success", 200),
        ("O.T", "warning", 200),
        ("O.X", "warning", 400),
    ],
)
def test_status_and_class_are_those_of_the_tables(code, status, http_class):
    assert (messages.entry(code).status, messages.entry(code).http_class) == (status, http_class)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((), None),
        (("EOI003",), None),
        (("S1", "A3"), "A3"),
        (("A1", "E4", "E1"), "E4"),
        (("S1", "P0"), "P0"),
        (("A2", "A1"), "A2"),
        (("EOI003", "O.R"), "O.R"),
    ],
)
def test_the_worst_code_decides_and_the_first_of_equals(codes, expected):
    assert messages.worst(codes) == expected


def test_an_unknown_code_is_told_with_those_there_are():
    with pytest.raises(BadInput, match="S1"):
        messages.entry("Q7")


def test_a_value_with_braces_is_shown_as_it_is():
    assert "{sku}" in messages.message("E3", "en", {"errors": "{sku}", "sku": "1"})

"""What is written down about an operation shows no person and no secret (LOG-09, PRV-02).

Pure. Texts lose e-mail addresses, CPF and CNPJ numbers, telephone numbers and secrets wherever they stand, and endless
ones are cut; values under keys that hold people's particulars, or secrets, are masked whole. Ids of SKUs, listings and
orders stay: without them a record explains nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal

from stdnum.br import cnpj, cpf

from hub.model import JsonTree
from hub.redaction import REDACTED, without_secrets

_SECRET: Final = re.compile(r"token|secret|passw|authorization|cookie|apikey|appkey|signature|credential|privatekey")
_PERSONAL: Final = frozenset(
    """
    email mail phone phonenumber homephone cellphone corporatephone businessphone mobile mobilephone telephone fax
    document documentnumber corporatedocument cpf cnpj taxid taxpayerid passport stateinscription
    firstname lastname fullname surname middlename nickname birthdate birthday dateofbirth
    receiver receivername recipient recipientname buyername customername clientname contactname cardholder
    cardholdername corporatename tradename cardnumber iban
    street streetname streetnumber addressline addressline1 addressline2 address1 address2 neighborhood complement
    postalcode zipcode zip cep geocoordinates latitude longitude ip ipaddress clientip
    """.split()  # noqa: SIM905 – a list of a hundred quoted words reads worse
)
"""Keys of one particular: lower case, letters and digits only."""

_PEOPLE: Final = frozenset(
    """
    address addresses availableaddresses selectedaddresses shippingaddress billingaddress deliveryaddress
    invoiceaddress pickupaddress clientprofiledata clientprofile client customer buyer consumer person identification
    """.split()  # noqa: SIM905 – as above
)
"""Keys under which everything is about a person, but for `_HARMLESS`."""

_HARMLESS: Final = frozenset({"country", "countrycode", "state", "addresstype", "kind", "type", "iscorporate"})
_IDS: Final = frozenset(
    "order vtexorder remote link key sku ean gtin barcode code hash reference ticket lot".split()  # noqa: SIM905 – as above
)
"""Keys of ids and links: a long number there is nobody's document, a long word nobody's secret."""

# Whatever could be masked has one of these in it. Most texts have none and cost one look, which matters: every story
# of every claim is looked through. (One pattern of alternatives would cost ten times as much.)
_MARKS: Final = (
    *("@", "+", "eyj", "bearer", "basic", "token", "appkey", "app_key", "apikey", "api_key", "api-key", "cookie"),
    *("secret", "password", "signature", "authorization"),
)
_DIGITS: Final = re.compile(r"\d{2}[/.) -]{0,2}\d{3,4}[ .-]?\d{2,4}|\d{11}")
_LONG_PART: Final = re.compile(r"/[\w-]{32}")
_CNPJ: Final = re.compile(r"(?<!\w)[\dA-Z]{2}\.[\dA-Z]{3}\.[\dA-Z]{3}/[\dA-Z]{4}-\d{2}(?!\d)")
_BARE: Final = re.compile(r"(?<![\w.-])(?:\d{14}|\d{11})(?![\w-]|\.\d)")
_PHONE: Final = re.compile(
    r"(?:\+\d{1,3}\s?)?\(0?\d{2,3}\)\s?\d{4,5}[\s.-]?\d{4}(?!\w)"  # (11) 98888-7777, +55 (11) 98888-7777
    r"|(?<![\w+])\+\d(?:[\s.-]?\d){7,14}(?!\w)"  # +55 11 98888-7777
    r"|(?<![\w.-])\d{2}\s9?\d{4}-\d{4}(?![\w-])"  # 11 98888-7777
)
_WORD: Final = re.compile(r"[^a-z0-9]")


def masked(tree: JsonTree) -> JsonTree:
    """A JSON tree without personal data and secrets; the same again for what is masked already.

    A text that is a JSON document itself (a peer's raw answer) is looked through like one. Of a tree nested too deep to
    be looked through, nothing is left.
    """
    try:
        return _masked(tree, "", people=False)
    except RecursionError:
        return REDACTED


_LONGEST: Final = 8_000
"""Characters of one text that are kept."""

_Nature = Literal["particular", "people", "harmless", "id", ""]


@lru_cache(2048)
def _nature(name: str) -> _Nature:
    """What stands under a key of this name; of a dotted one, the last part counts."""
    plain = _WORD.sub("", name.rpartition(".")[2].lower())
    if plain in _PERSONAL or _SECRET.search(plain):
        return "particular"
    if plain in _PEOPLE:
        return "people"
    if plain in _HARMLESS:
        return "harmless"
    return "id" if plain in _IDS or plain.endswith(("id", "ids")) else ""


def _masked(tree: JsonTree, nature: _Nature, *, people: bool) -> JsonTree:
    if isinstance(tree, str):
        if people:
            return tree and REDACTED
        return _document(tree) if tree[:1] in ("{", "[") else _text(tree, nature)
    if tree is None or isinstance(tree, bool):
        return tree
    if isinstance(tree, dict | Mapping):
        return _object(tree, people=people)
    if isinstance(tree, list | tuple):
        return [_masked(value, nature, people=people) for value in tree]
    if people:
        return REDACTED
    return REDACTED if isinstance(tree, int) and nature != "id" and _somebodys(str(tree)) else tree


def _object(tree: Mapping[str, JsonTree], *, people: bool) -> JsonTree:
    named = tree.get("field")  # a problem: its `field` says what its `value` is
    found = {}
    for name, value in tree.items():
        nature = _nature(named if name == "value" and isinstance(named, str) else name)
        if nature == "particular":
            found[name] = _blank(value)
        else:
            found[name] = _masked(value, nature, people=(people or nature == "people") and nature != "harmless")
    return found


def _blank(tree: JsonTree) -> JsonTree:
    """Nothing of it but whether there was something."""
    if tree is None or isinstance(tree, bool):
        return tree
    return REDACTED if not isinstance(tree, str | Mapping | list | tuple) or tree else tree


def _document(text: str) -> str:
    if len(text) > _LONGEST:
        return _text(text, "")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return _text(text, "")
    found = masked(tree)
    return text if found == tree else json.dumps(found, ensure_ascii=False)


def _text(text: str, nature: _Nature) -> str:
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    if len(text) < 5 or not _is_suspicious(text):
        return text
    text = _PHONE.sub(REDACTED, _CNPJ.sub(REDACTED, without_secrets(text, paths=nature != "id")))
    return text if nature == "id" else _BARE.sub(lambda number: REDACTED if _somebodys(number[0]) else number[0], text)


def _is_suspicious(text: str) -> bool:
    lower = text.lower()
    return any(mark in lower for mark in _MARKS) or bool(_DIGITS.search(text) or _LONG_PART.search(text))


def _somebodys(digits: str) -> bool:
    """Whether these digits are a valid CPF or CNPJ."""
    return (len(digits) == 11 and cpf.is_valid(digits)) or (len(digits) == 14 and cnpj.is_valid(digits))

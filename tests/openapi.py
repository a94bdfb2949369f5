"""Validators made of the official OpenAPI documents, for the simulators' answers and the hub's requests alike.

Known defects of the documents (their README lists them) are repaired here while loading; answers are never bent to
fit a defect. The documents live beside the repository and may be absent: use `needs_openapi` to skip.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS30Validator

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "openapi"

needs_openapi = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"the official OpenAPI documents are not present at {FOLDER}"
)

Schema = dict[str, Any]
# Typed integer, decimals in practice.
DECIMALS = frozenset({"unitMultiplier", "rawValue", "height", "length", "width", "weight", "cubicweight"})
# Typed non-null, null in practice: without an address, without a price, without a merchant (vtex.md 6.3).
NULLABLE_IN_SIMULATION = frozenset(
    {"postalCode", "country", "merchantName", "price", "listPrice", "priceValidUntil", "pickupStoreInfo"}
)
# Belong to the root of a simulation's answer, described inside paymentData.paymentSystems[].
ROOT_OF_SIMULATION = (
    "selectableGifts",
    "marketingData",
    "postalCode",
    "country",
    "logisticsInfo",
    "messages",
    "purchaseConditions",
    "pickupPoints",
    "subscriptionData",
    "totals",
    "itemMetadata",
)


class Checked:
    """A schema with its document's references at hand."""

    def __init__(self, schema: Schema, components: Schema) -> None:
        self._schema, self._components = schema, components
        self._validator = OAS30Validator({**schema, "components": components})

    def problems(self, content: object) -> list[str]:
        """Every breach as `place: what`."""
        return [
            f"{'.'.join(map(str, error.absolute_path)) or '(root)'}: {error.message[:300]}"
            for error in self._validator.iter_errors(content)
        ]

    def check(self, content: object) -> None:
        """Fail the test with every breach, and when nothing in it is described.

        Most of the documents demand no name: by them alone an empty answer and an error are as good as what is meant.
        """
        found = self.problems(content)
        assert not found, "\n".join(found)
        for one in content if isinstance(content, list) else [content]:
            assert self._describes(one), f"the document describes nothing of {str(one)[:300]}"
        assert content != [], "a list of nothing fits every document"

    def _describes(self, content: object) -> bool:
        schema = _resolved(self._schema, {"components": self._components})
        if schema.get("type") == "array":
            schema = _resolved(schema["items"], {"components": self._components})
        return not isinstance(content, dict) or bool(content.keys() & schema.get("properties", {}).keys())


@cache
def _document(file: str) -> Schema:
    document: Schema = json.loads((FOLDER / file).read_text(encoding="utf-8"))
    document["paths"] = {re.sub(r":(\w+)", r"{\1}", path): item for path, item in document["paths"].items()}
    for schema in list(_nodes(document)):
        _repair_everywhere(schema)
    for path, item in document["paths"].items():
        if path.endswith("orderForms/simulation"):
            _repair_simulation(item["post"], document)
    return document


def _nodes(tree: Any) -> Iterator[Schema]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _repair_everywhere(schema: Schema) -> None:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return
    for name, inner in properties.items():
        if name in DECIMALS and isinstance(inner, dict) and inner.get("type") == "integer":
            inner["type"] = "number"
    code = properties.get("code")
    if isinstance(code, dict) and code.get("enum") == [f"FMT00{n}" for n in range(1, 6)]:
        del code["enum"]  # real codes go far beyond


def _repair_simulation(operation: Schema, document: Schema) -> None:
    answer = _resolved(operation["responses"]["200"]["content"]["application/json"]["schema"], document)
    payment = answer["properties"].get("paymentData", {}).get("properties", {})
    misplaced = payment.get("paymentSystems", {}).get("items", {}).get("properties", {})
    if "logisticsInfo" in misplaced:
        for name in ROOT_OF_SIMULATION:
            answer["properties"].setdefault(name, misplaced.pop(name, {}))
    _allow_null(answer, document, seen=set())
    request = operation.get("requestBody")
    if request:
        wanted = _resolved(next(iter(request["content"].values()))["schema"], document)
        at_root = [name for name in wanted.get("required", []) if name not in wanted.get("properties", {})]
        misplaced_names = {"id", "quantity", "seller", *at_root}
        wanted["required"] = [name for name in wanted.get("required", []) if name not in misplaced_names]
        if not wanted["required"]:
            del wanted["required"]
        _allow_null(wanted, document, seen=set(), names=None)


def _allow_null(
    schema: Schema, document: Schema, *, seen: set[int], names: frozenset[str] | None = NULLABLE_IN_SIMULATION
) -> None:
    schema = _resolved(schema, document)
    if id(schema) in seen:
        return
    seen.add(id(schema))
    for name, inner in schema.get("properties", {}).items():
        target = _resolved(inner, document)
        if (names is None and name != "items") or (names is not None and name in names):
            target["nullable"] = True
        _allow_null(target, document, seen=seen, names=names)
    if isinstance(schema.get("items"), dict) and names is not None:
        _allow_null(schema["items"], document, seen=seen, names=names)


def _resolved(schema: Schema, document: Schema) -> Schema:
    while "$ref" in schema:
        at: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            at = at[step.replace("~1", "/").replace("~0", "~")]
        schema = at
    return schema


def schema_for(file: str, path: str, method: str, part: int | str) -> Checked:
    """The validator for one operation.

    Args:
        file: document below the folder, for example `vtex/catalog.cut.json`.
        path: as in the document, `:name` written `{name}`.
        method: HTTP method, any casing.
        part: a status (200, "default") for its answer, or "request" for the body.

    Raises:
        KeyError: the document does not describe it.
    """
    document = _document(file)
    operation: Mapping[str, Any] = document["paths"][path][method.lower()]
    holder = operation["requestBody"] if part == "request" else operation["responses"][str(part)]
    content = _resolved(holder, document)["content"]
    return Checked(next(iter(content.values()))["schema"], document.get("components", {}))


Validate = Callable[[object], None]

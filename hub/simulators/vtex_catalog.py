"""The simulated VTEX account: its products, channels, affiliates and what it would sell now.

The promise: the JSON that leaves here has VTEX's shape (vtex.md 5, 6; openapi/vtex), and `truth` says what a
marketplace has to show in the end. Data are synthetic and repeat for the same seed. Money is integer cents.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

UNLIMITED_BALANCE = 1_000_000  # what VTEX shows for unlimited stock: a very large balance

BRANDS = ("Aurora", "Brisa", "Cedro", "Duna", "Estrela", "Farol", "Granito", "Horizonte", "Ipê", "Jade")
COLOURS = ("Vermelho", "Azul", "Verde", "Preto", "Branco", "Amarelo")
SIZES = ("P", "M", "G", "GG")
NOUNS = ("Cadeira", "Mesa", "Camiseta", "Tênis", "Mochila", "Garrafa", "Luminária", "Relógio", "Fone", "Panela")
ADJECTIVES = ("Clássica", "Leve", "Compacta", "Premium", "Urbana", "Esportiva", "Infantil", "Dobrável")


@dataclass(frozen=True, slots=True)
class Offer:
    """What decides a simulation. Cents; `discount` is the promotion's; `channel_prices` overrides per channel."""

    price: int | None = 9990
    list_price: int | None = None
    discount: int = 0
    stock: int = 10
    unlimited: bool = False
    channel_prices: Mapping[int, int] = field(default_factory=dict)

    def base(self, channel: int) -> int | None:
        """Price of the channel before promotions."""
        return self.channel_prices.get(channel, self.price)

    def selling(self, channel: int) -> int | None:
        """Price of the channel with promotions."""
        base = self.base(channel)
        return None if base is None else max(0, base - self.discount)

    def struck(self, channel: int) -> int | None:
        """List price; the base price when none is set."""
        return self.list_price if self.list_price is not None else self.base(channel)

    @property
    def balance(self) -> int:
        """Stock as VTEX shows it."""
        return UNLIMITED_BALANCE if self.unlimited else self.stock


@dataclass(slots=True)
class Sku:
    """One SKU with its product's fields. Lengths in cm, weight in grams (vtex.md 5.1)."""

    id: int
    product_id: int
    name: str
    sku_name: str
    description: str
    brand_id: int
    brand_name: str
    category_path: tuple[int, ...]
    channels: tuple[int, ...]
    ean: str | None
    ref_id: str
    images: tuple[str, ...]
    height: float = 10.0
    length: float = 20.0
    width: float = 15.0
    weight: float = 500.0
    active: bool = True
    product_active: bool = True
    brand_active: bool = True
    category_active: bool = True
    unit_multiplier: float = 1.0
    measurement_unit: str = "un"
    specifications: dict[str, tuple[str, ...]] = field(default_factory=dict)
    product_specifications: dict[str, tuple[str, ...]] = field(default_factory=dict)
    offer: Offer = field(default_factory=Offer)
    before: Offer | None = None  # the offer before the last change, for stale reads
    offer_changed: float = float("-inf")  # monotonic seconds
    rendered: bytes | None = None  # the SKU's JSON, dropped at every change

    @property
    def category(self) -> int:
        """The SKU's own category: the last of its path."""
        return self.category_path[-1]

    @property
    def selling(self) -> bool:
        """Whether SKU and product are active."""
        return self.active and self.product_active


@dataclass(frozen=True, slots=True)
class Category:
    """One category; `parent` None at the top."""

    id: int
    name: str
    parent: int | None = None
    active: bool = True


@dataclass(frozen=True, slots=True)
class Channel:
    """A sales channel (trade policy)."""

    id: int
    name: str = "Marketplace"
    active: bool = True
    currency: str = "BRL"
    country: str = "BRA"
    time_zone: str = "E. South America Standard Time"


@dataclass(frozen=True, slots=True)
class Affiliate:
    """A marketplace as the account knows it (vtex.md 3.2)."""

    id: str
    name: str
    sales_channel: str
    follow_up_email: str = "ops@example.org"
    search_uri_endpoint: str | None = None
    use_seller_payment_method: bool = False
    minimum_value_accumulated: int | None = None

    def as_json(self) -> dict[str, object]:
        """As the affiliates API answers."""
        return {
            "id": self.id,
            "followUpEmail": self.follow_up_email,
            "useSellerPaymentMethod": self.use_seller_payment_method,
            "name": self.name,
            "salesChannel": self.sales_channel,
            "searchURIEndpoint": self.search_uri_endpoint,
            "searchURIEndpointVersion": "1.x.x",
            "searchURIEndpointAvailableVersions": ["1.x.x"],
            "minimumValueAccumulated": self.minimum_value_accumulated,
        }


@dataclass(slots=True)
class CatalogHabits:
    """How an account's reads behave; all harmless at first."""

    paging: str = "honoured"  # honoured; ignored: the whole list at every page; repeated: the last page for ever
    duplicate_share: float = 0.0  # share of ids that appear twice in a page
    stale_seconds: float = 0.0  # so long a simulation shows the stock from before a change
    missing_price: str = "null"  # null: item with null price; absent: not among the items
    missing_stock: str = "zero"  # zero: item with quantity 0; absent: not among the items


@dataclass(slots=True)
class Catalog:
    """Everything an account sells, and through which channels and affiliates."""

    account: str
    seed: int
    channels: dict[int, Channel] = field(default_factory=dict)
    categories: dict[int, Category] = field(default_factory=dict)
    mapper: dict[str, str] = field(
        default_factory=dict
    )  # category → marketplace category, as the seller's app knows it
    affiliates: dict[str, Affiliate] = field(default_factory=dict)
    skus: dict[int, Sku] = field(default_factory=dict)
    products: dict[int, list[int]] = field(default_factory=dict)
    habits: CatalogHabits = field(default_factory=CatalogHabits)
    _listed: dict[tuple[int, bool], list[int]] = field(default_factory=dict)

    def put(self, sku: Sku) -> None:
        """Add or replace a SKU."""
        if sku.id in self.skus:
            self.drop(sku.id)
        self.skus[sku.id] = sku
        self.products.setdefault(sku.product_id, []).append(sku.id)
        self._listed.clear()

    def drop(self, sku_id: int) -> Sku:
        """Remove a SKU. Raises KeyError when there is none."""
        sku = self.skus.pop(sku_id)
        self.products[sku.product_id].remove(sku_id)
        self._listed.clear()
        return sku

    def memberships_changed(self) -> None:
        """Call after changing a SKU's channels."""
        self._listed.clear()

    def listed(self, channel: int, *, only_assigned: bool) -> list[int]:
        """Ids of the channel in ascending order; without `only_assigned` also those of no channel at all."""
        key = (channel, only_assigned)
        if key not in self._listed:
            self._listed[key] = sorted(
                sku.id
                for sku in self.skus.values()
                if channel in sku.channels or (not only_assigned and not sku.channels)
            )
        return self._listed[key]

    def siblings(self, sku_id: int) -> list[int]:
        """Every SKU of the product of this one, itself included."""
        return list(self.products[self.skus[sku_id].product_id])

    def category_names(self, path: Sequence[int]) -> dict[str, str]:
        """Id → name along a path."""
        return {str(id_): self.categories[id_].name for id_ in path if id_ in self.categories}

    def path_of(self, category_id: int) -> tuple[int, ...]:
        """Ids from the top down to the category. Raises KeyError when it or a parent is unknown."""
        path: list[int] = []
        at: int | None = category_id
        while at is not None:
            path.append(at)
            at = self.categories[at].parent
        return tuple(reversed(path))

    def truth(self, channel: int) -> dict[str, dict[str, object]]:
        """What VTEX sells right now through a channel, by SKU id: for comparison at the end of a run."""
        found: dict[str, dict[str, object]] = {}
        for sku in self.skus.values():
            price, in_channel = sku.offer.selling(channel), channel in sku.channels
            found[str(sku.id)] = {
                "active": sku.active,
                "product_active": sku.product_active,
                "in_channel": in_channel,
                "sellable": sku.selling and in_channel and bool(price) and sku.offer.balance > 0,
                "price": price,
                "list_price": sku.offer.struck(channel),
                "stock": sku.offer.balance,
                "name": full_name(sku),
                "product_id": sku.product_id,
                "category": sku.category,
                "description": sku.description,
                "ean": sku.ean,
                "brand": sku.brand_name,
                "images": list(sku.images),
                "unit_multiplier": sku.unit_multiplier,
            }
        return found


def check_digit(digits: str) -> str:
    """The EAN-13 check digit of twelve digits."""
    return str(-sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits)) % 10)


def ean13(number: int) -> str:
    """A valid EAN-13 of the Brazilian prefix for any number."""
    twelve = f"789{number % 10**9:09d}"
    return twelve + check_digit(twelve)


def full_name(sku: Sku) -> str:
    """Product and SKU name together."""
    return f"{sku.name} {sku.sku_name}".strip()


@dataclass(frozen=True, slots=True)
class Range:
    """From lowest to highest, both possible."""

    lowest: int
    highest: int

    def draw(self, chance: random.Random) -> int:
        """One value."""
        return chance.randint(self.lowest, self.highest)


@dataclass(frozen=True, slots=True)
class Assortment:
    """A compact order for many SKUs. Shares are between 0 and 1."""

    count: int
    first_id: int = 1
    skus_per_product: int = 1
    category_ids: tuple[int, ...] = (1,)
    channels: tuple[int, ...] = (1,)
    price: Range = Range(990, 99_990)
    stock: Range = Range(1, 100)
    discount_share: float = 0.0
    inactive_share: float = 0.0
    unlimited_share: float = 0.0
    without_ean_share: float = 0.0
    without_stock_share: float = 0.0
    images: int = 2


def grown(catalog: Catalog, wanted: Assortment) -> list[Sku]:
    """Make the SKUs of an assortment, each from its own chance, so that its data do not depend on the others."""
    made = []
    for place in range(wanted.count):
        sku_id = wanted.first_id + place
        chance = random.Random(f"{catalog.seed}:{catalog.account}:{sku_id}")  # noqa: S311 – repeatable data, no secret
        product_id = 100_000 + (sku_id - 1) // wanted.skus_per_product
        product = random.Random(f"{catalog.seed}:{catalog.account}:p{product_id}")  # noqa: S311 – as above
        noun, adjective, brand = product.choice(NOUNS), product.choice(ADJECTIVES), product.randrange(len(BRANDS))
        category_id = wanted.category_ids[product_id % len(wanted.category_ids)]
        colour, size = chance.choice(COLOURS), chance.choice(SIZES)
        price = wanted.price.draw(chance)
        offer = Offer(
            price=price,
            list_price=price * chance.choice((100, 110, 125)) // 100,
            discount=price // 10 if chance.random() < wanted.discount_share else 0,
            stock=0 if chance.random() < wanted.without_stock_share else wanted.stock.draw(chance),
            unlimited=chance.random() < wanted.unlimited_share,
        )
        made.append(
            Sku(
                id=sku_id,
                product_id=product_id,
                name=f"{noun} {adjective} {BRANDS[brand]} {product_id}",
                sku_name=f"{colour} {size}",
                description=f"<p>{noun} {adjective.lower()} da marca {BRANDS[brand]}, modelo {product_id}.</p>",
                brand_id=2_000_000 + brand,
                brand_name=BRANDS[brand],
                category_path=catalog.path_of(category_id),
                channels=wanted.channels,
                ean=None if chance.random() < wanted.without_ean_share else ean13(sku_id),
                ref_id=f"REF-{sku_id}",
                images=tuple(
                    f"http://{catalog.account}.vteximg.com.br/arquivos/ids/{sku_id * 10 + n}/{sku_id}_{n}.jpg"
                    for n in range(wanted.images)
                ),
                height=float(chance.randint(2, 60)),
                length=float(chance.randint(5, 90)),
                width=float(chance.randint(5, 60)),
                weight=float(chance.randint(50, 20_000)),
                active=chance.random() >= wanted.inactive_share,
                specifications={"Cor": (colour,), "Tamanho": (size,)},
                product_specifications={"Fabricante": (BRANDS[brand],)},
                offer=offer,
            )
        )
    return made


def sku_json(catalog: Catalog, sku: Sku) -> bytes:
    """`stockkeepingunitbyid` (vtex.md 5.1), kept until the SKU changes."""
    if sku.rendered is None:
        sku.rendered = json.dumps(_sku_fields(catalog, sku), ensure_ascii=False).encode()
    return sku.rendered


def _sku_fields(catalog: Catalog, sku: Sku) -> dict[str, object]:
    path = "/" + "".join(f"{id_}/" for id_ in sku.category_path)
    prefixes = ["/" + "".join(f"{id_}/" for id_ in sku.category_path[:n]) for n in range(len(sku.category_path), 0, -1)]
    cubic = round(sku.height * sku.length * sku.width / 6000, 4)
    images: list[dict[str, object]] = [
        {"ImageUrl": url, "ImageName": "" if n else "Principal", "FileId": sku.id * 10 + n}
        for n, url in enumerate(sku.images)
    ]
    return {
        "Id": sku.id,
        "ProductId": sku.product_id,
        "NameComplete": full_name(sku),
        "ComplementName": "",
        "ProductName": sku.name,
        "ProductDescription": sku.description,
        "SkuName": sku.sku_name,
        "ProductRefId": f"P-{sku.product_id}",
        "TaxCode": "",
        "IsActive": sku.active,
        "IsTransported": True,
        "IsInventoried": True,
        "IsGiftCardRecharge": False,
        "ImageUrl": sku.images[0] if sku.images else "",
        "DetailUrl": f"/produto-{sku.product_id}/p",
        "CSCIdentification": None,
        "BrandId": str(sku.brand_id),
        "BrandName": sku.brand_name,
        "IsBrandActive": sku.brand_active,
        "Dimension": {
            "cubicweight": cubic,
            "height": sku.height,
            "length": sku.length,
            "weight": sku.weight,
            "width": sku.width,
        },
        "RealDimension": {
            "realCubicWeight": cubic,
            "realHeight": sku.height,
            "realLength": sku.length,
            "realWeight": sku.weight,
            "realWidth": sku.width,
        },
        "ManufacturerCode": "",
        "IsKit": False,
        "KitItems": [],
        "Services": [],
        "Categories": [],
        "CategoriesFullPath": prefixes,
        "Attachments": [],
        "Collections": [],
        "SkuSellers": [
            {
                "SellerId": "1",
                "StockKeepingUnitId": sku.id,
                "SellerStockKeepingUnitId": str(sku.id),
                "IsActive": True,
                "FreightCommissionPercentage": 0.0,
                "ProductCommissionPercentage": 0.0,
            }
        ],
        "SalesChannels": list(sku.channels),
        "Images": images,
        "Videos": [],
        "SkuSpecifications": _specifications(sku.specifications, 100, "Especificações"),
        "ProductSpecifications": _specifications(sku.product_specifications, 200, "Produto"),
        "ProductClustersIds": "",
        "PositionsInClusters": {},
        "ProductClusterNames": {},
        "ProductClusterHighlights": {},
        "ProductCategoryIds": path,
        "IsDirectCategoryActive": sku.category_active,
        "ProductGlobalCategoryId": None,
        "ProductCategories": catalog.category_names(sku.category_path),
        "CommercialConditionId": 1,
        "RewardValue": 0.0,
        "AlternateIds": {**({"Ean": sku.ean} if sku.ean else {}), "RefId": sku.ref_id},
        "AlternateIdValues": [*([sku.ean] if sku.ean else []), sku.ref_id],
        "EstimatedDateArrival": None,
        "MeasurementUnit": sku.measurement_unit,
        "UnitMultiplier": sku.unit_multiplier,
        "InformationSource": "Indexer",
        "ModalType": None,
        "KeyWords": sku.name.lower(),
        "ReleaseDate": "2025-01-06T00:00:00Z",
        "ProductIsVisible": True,
        "ShowIfNotAvailable": True,
        "IsProductActive": sku.product_active,
        "ProductFinalScore": 0,
    }


def _specifications(named: Mapping[str, Sequence[str]], first_field: int, group: str) -> list[dict[str, object]]:
    return [
        {
            "FieldId": first_field + place,
            "FieldName": name,
            "FieldValueIds": [first_field * 100 + place * 10 + n for n in range(len(values))],
            "FieldValues": list(values),
            "IsFilter": False,
            "FieldGroupId": first_field,
            "FieldGroupName": group,
        }
        for place, (name, values) in enumerate(named.items())
    ]


def product_json(catalog: Catalog, product_id: int) -> dict[str, object]:
    """`productget` (vtex.md 5.2). Raises KeyError when the product has no SKU."""
    sku_ids = catalog.products.get(product_id)
    if not sku_ids:
        raise KeyError(product_id)
    sku = catalog.skus[sku_ids[0]]
    channels = sorted({channel for sku_id in sku_ids for channel in catalog.skus[sku_id].channels})
    return {
        "Id": product_id,
        "Name": sku.name,
        "DepartmentId": sku.category_path[0],
        "CategoryId": sku.category,
        "BrandId": sku.brand_id,
        "LinkId": f"produto-{product_id}",
        "RefId": f"P-{product_id}",
        "IsVisible": True,
        "Description": sku.description,
        "DescriptionShort": "",
        "ReleaseDate": "2025-01-06T00:00:00Z",
        "KeyWords": sku.name.lower(),
        "Title": sku.name,
        "IsActive": sku.product_active,
        "TaxCode": "",
        "MetaTagDescription": "",
        "SupplierId": 1,
        "ShowWithoutStock": True,
        "ListStoreId": channels,
        "AdWordsRemarketingCode": "",
        "LomadeeCampaignCode": "",
    }


def tree_json(catalog: Catalog, levels: int) -> list[dict[str, object]]:
    """`category/tree/{levels}`."""
    children: dict[int | None, list[Category]] = {}
    for category in sorted(catalog.categories.values(), key=lambda one: one.id):
        children.setdefault(category.parent, []).append(category)

    def branch(category: Category, deeper: int) -> dict[str, object]:
        below = children.get(category.id, [])
        return {
            "id": category.id,
            "name": category.name,
            "hasChildren": bool(below),
            "url": f"https://{catalog.account}.vtexcommercestable.com.br/{category.id}",
            "children": [branch(one, deeper - 1) for one in below] if deeper > 0 else [],
            "Title": category.name,
            "MetaTagDescription": "",
        }

    return [branch(category, levels - 1) for category in children.get(None, [])]


def category_json(catalog: Catalog, category_id: int, *, with_path: bool) -> dict[str, object]:
    """`/api/catalog/pvt/category/{id}`. Raises KeyError when there is none."""
    category = catalog.categories[category_id]
    path = catalog.path_of(category_id)
    names = [catalog.categories[id_].name for id_ in path]
    return {
        "Id": category.id,
        "Name": category.name,
        "FatherCategoryId": category.parent,
        "Title": category.name,
        "Description": "",
        "Keywords": category.name,
        "IsActive": category.active,
        "LomadeeCampaignCode": "",
        "AdWordsRemarketingCode": "",
        "ShowInStoreFront": True,
        "ShowBrandFilter": True,
        "ActiveStoreFrontLink": True,
        "GlobalCategoryId": 0,
        "StockKeepingUnitSelectionMode": "LIST",
        "Score": None,
        "LinkId": category.name.replace(" ", "-"),
        "HasChildren": any(one.parent == category.id for one in catalog.categories.values()),
        "TreePath": names if with_path else None,
        "TreePathIds": list(path) if with_path else None,
        "TreePathLinkIds": [name.replace(" ", "-") for name in names] if with_path else None,
    }


def channel_json(channel: Channel, position: int) -> dict[str, object]:
    """`saleschannel/{id}` and each entry of `saleschannel/list`."""
    return {
        "Id": channel.id,
        "Name": channel.name,
        "IsActive": channel.active,
        "ProductClusterId": None,
        "CountryCode": channel.country,
        "CultureInfo": "pt-BR",
        "TimeZone": channel.time_zone,
        "CurrencyCode": channel.currency,
        "CurrencySymbol": "R$" if channel.currency == "BRL" else channel.currency,
        "CurrencyLocale": 1046,
        "CurrencyFormatInfo": {
            "CurrencyDecimalDigits": 2,
            "CurrencyDecimalSeparator": ",",
            "CurrencyGroupSeparator": ".",
            "CurrencyGroupSize": 3,
            "StartsWithCurrencySymbol": True,
        },
        "Origin": None,
        "Position": position,
        "ConditionRule": None,
        "CurrencyDecimalDigits": 2,
    }


def inventory_json(sku: Sku) -> dict[str, object]:
    """`/api/logistics/pvt/inventory/skus/{id}`: two warehouses that add up to the stock."""
    first = (sku.offer.stock + 1) // 2
    return {
        "skuId": str(sku.id),
        "balance": [
            {
                "warehouseId": f"wh-{n}",
                "warehouseName": f"Warehouse {n}",
                "totalQuantity": quantity,
                "reservedQuantity": 0,
                "hasUnlimitedQuantity": sku.offer.unlimited,
                "timeToRefill": None,
                "dateOfSupplyUtc": None,
                "leadTime": "00:00:00",
            }
            for n, quantity in ((1, first), (2, sku.offer.stock - first))
        ],
    }


@dataclass(frozen=True, slots=True)
class Wanted:
    """One item of a simulation request."""

    id: str
    quantity: int
    seller: str


@dataclass(frozen=True, slots=True)
class Cart:
    """A simulation request. `country` and `postal_code` both or none."""

    items: tuple[Wanted, ...]
    postal_code: str | None = None
    country: str | None = None
    coordinates: tuple[float, ...] = ()

    @property
    def has_address(self) -> bool:
        """Whether freight can be told."""
        return bool(self.postal_code and self.country) or bool(self.coordinates)


def simulated(
    catalog: Catalog, cart: Cart, channel: int, *, checkout: bool, now: float, stale: bool = False
) -> dict[str, object]:
    """Answer a simulation (vtex.md 6.3): `checkout` gives the Checkout form, else the seller's form.

    `now` is monotonic seconds; `stale` shows the whole offer as before its last change.
    """
    habits = catalog.habits
    items: list[dict[str, object]] = []
    logistics: list[dict[str, object]] = []
    messages: list[dict[str, object]] = []
    total = 0
    for place, wanted in enumerate(cart.items):
        sku = catalog.skus.get(int(wanted.id)) if wanted.id.isdecimal() else None
        if sku is None or not sku.selling or channel not in sku.channels or wanted.seller != "1":
            messages.append({"code": "itemUnavailable", "text": f"Item {wanted.id} unavailable", "status": "error"})
            continue
        offer = _seen(sku, habits, now, stale=stale)
        price = offer.selling(channel)
        if (price is None and habits.missing_price == "absent") or (
            offer.balance <= 0 and habits.missing_stock == "absent"
        ):
            messages.append({"code": "withoutStock", "text": f"Item {wanted.id} unavailable", "status": "error"})
            continue
        granted = min(wanted.quantity, max(0, offer.balance))
        if granted < wanted.quantity:
            text = f"Only {granted} of item {wanted.id} available"
            messages.append({"code": "itemQuantityNotAvailable", "text": text, "status": "warning"})
        index = len(items)
        item = _item(sku, offer, wanted.id, price, offer.struck(channel))
        item |= {"requestIndex": place, "quantity": granted}
        unit = round((price or 0) * sku.unit_multiplier)
        total += unit * granted
        item |= _checkout_part(price, unit, granted) if checkout else {"merchantName": None, "attachmentOfferings": []}
        items.append(item)
        logistics.append(_logistics(offer, index, granted, cart, checkout=checkout))
    answer: dict[str, object] = {
        "items": items,
        "logisticsInfo": logistics,
        "postalCode": cart.postal_code,
        "country": cart.country,
        "messages": messages,
    }
    if checkout:
        answer |= {
            "ratesAndBenefitsData": {"rateAndBenefitsIdentifiers": [], "teaser": []},
            "paymentData": {"installmentOptions": [], "paymentSystems": [], "payments": []},
            "selectableGifts": [],
            "marketingData": None,
            "geoCoordinates": list(cart.coordinates),
            "purchaseConditions": {"itemPurchaseConditions": []},
            "pickupPoints": [],
            "subscriptionData": None,
            "totals": [{"id": "Items", "name": "Total dos Itens", "value": total}],
            "itemMetadata": {"items": []},
        }
    else:
        answer["allowMultipleDeliveries"] = True
    return answer


def _seen(sku: Sku, habits: CatalogHabits, now: float, *, stale: bool) -> Offer:
    if sku.before is None:
        return sku.offer
    if stale:
        return sku.before
    if now - sku.offer_changed < habits.stale_seconds:
        return replace(sku.offer, stock=sku.before.stock, unlimited=sku.before.unlimited)
    return sku.offer


def _item(sku: Sku, offer: Offer, asked_id: str, price: int | None, struck: int | None) -> dict[str, object]:
    tags: list[dict[str, object]] = []
    if offer.discount and price is not None:
        tags.append(
            {
                "identifier": "promo-1",
                "isPercentual": False,
                "name": "DISCOUNT@MARKETPLACE",
                "rawValue": -offer.discount / 100,
                "value": -offer.discount,
            }
        )
    valid_until = (datetime.now(UTC) + timedelta(days=365)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": asked_id,
        "seller": "1",
        "price": price,
        "listPrice": None if price is None else struck,
        "priceValidUntil": valid_until,
        "offerings": [],
        "priceTags": tags,
        "measurementUnit": sku.measurement_unit,
        "unitMultiplier": sku.unit_multiplier,
    }


def _checkout_part(price: int | None, unit: int, granted: int) -> dict[str, object]:
    return {
        "sellerChain": ["1"],
        "tax": 0,
        "rewardValue": 0,
        "sellingPrice": unit,
        "parentItemIndex": None,
        "parentAssemblyBinding": None,
        "availability": "withoutPrice" if price is None else "available" if granted else "withoutStock",
        "priceDefinition": {
            "calculatedSellingPrice": unit,
            "total": unit * granted,
            "sellingPrices": [{"value": unit, "quantity": granted}],
        },
    }


def _logistics(offer: Offer, index: int, granted: int, cart: Cart, *, checkout: bool) -> dict[str, object]:
    slas: list[dict[str, object]] = []
    if cart.has_address and granted:
        slas = [_sla("Normal", 1500, "7bd", granted), _sla("Expressa", 2900, "2bd", granted)]
        if not checkout:
            for sla in slas:
                sla |= {"availableDeliveryWindows": [], "pickupStoreInfo": None}
    pickup = min(offer.balance, 12)
    entry: dict[str, object] = {
        "itemIndex": index,
        "quantity": granted,
        "stockBalance": offer.balance,
        "shipsTo": ["BRA"],
        "slas": slas,
        "deliveryChannels": [
            {"id": "delivery", "stockBalance": offer.balance},
            {"id": "pickup-in-point", "stockBalance": pickup},
        ],
    }
    if checkout:
        entry |= {"addressId": None, "selectedSla": None, "selectedDeliveryChannel": None}
    return entry


def _sla(name: str, price: int, estimate: str, quantity: int) -> dict[str, object]:
    return {
        "id": name,
        "deliveryChannel": "delivery",
        "name": name,
        "deliveryIds": [
            {
                "courierId": "1",
                "warehouseId": "wh-1",
                "dockId": "1",
                "courierName": "Transportadora",
                "quantity": quantity,
            }
        ],
        "shippingEstimate": estimate,
        "shippingEstimateDate": None,
        "lockTTL": "10d",
        "price": price,
        "listPrice": price,
        "tax": 0,
        "pickupStoreInfo": {
            "isPickupStore": False,
            "friendlyName": "",
            "address": None,
            "additionalInfo": "",
            "dockId": None,
        },
        "pickupPointId": None,
        "pickupDistance": 0,
        "polygonName": None,
        "transitTime": estimate,
    }


def page_of(ids: Sequence[int], page: int, size: int, habits: CatalogHabits, chance: random.Random) -> list[int]:
    """A page of a listing as the account's habits bend it. Pages count from 1."""
    if habits.paging == "ignored":
        found = list(ids)
    else:
        last = max(1, -(-len(ids) // size))
        at = min(page, last) if habits.paging == "repeated" else page
        found = list(ids[(at - 1) * size : at * size])
    if habits.duplicate_share:
        return [one for id_ in found for one in [id_] * (1 + (chance.random() < habits.duplicate_share))]
    return found

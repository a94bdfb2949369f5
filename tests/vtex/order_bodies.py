"""An order as the order context sends it, with synthetic people."""

from typing import Any


def order_body(order: str = "900100200", **changed: Any) -> dict[str, Any]:
    """A complete body of kind 5 (vtex.md 9.3) without connector name and endpoint."""
    return {
        "marketplaceOrderId": order,
        "marketplaceOrderStatus": "approved",
        "marketplacePaymentValue": 21930,
        "marketplaceInterestValue": 0,
        "allowFranchises": False,
        "items": [{"id": "1", "price": 9990, "quantity": 2}],
        "clientProfileData": {
            "email": "buyer@example.org",
            "firstName": "Ana",
            "lastName": "Silva",
            "phone": "11999990000",
            "document": "00000000191",
            "corporateDocument": None,
            "corporatePhone": None,
            "corporateName": None,
            "tradeName": None,
            "stateInscription": None,
        },
        "shippingData": {
            "logisticsInfo": [
                {
                    "price": 1950,
                    "selectedDeliveryChannel": "delivery",
                    "selectedSla": "Normal",
                    "lockTTL": "5d",
                    "shippingEstimate": "7bd",
                    "deliveryIds": [],
                }
            ],
            "selectedAddresses": [
                {
                    "addressType": "residential",
                    "addressId": "1",
                    "receiverName": "Ana Silva",
                    "postalCode": "01310-100",
                    "country": "BRA",
                    "city": "São Paulo",
                    "state": "SP",
                    "street": "Avenida Paulista",
                    "number": "1000",
                    "neighborhood": "Bela Vista",
                }
            ],
            "isFob": False,
            "isMarketplaceFulfillment": False,
        },
        "invoiceData": {"userPaymentInfo": {"paymentMethods": ["creditCardPaymentGroup"]}},
        **changed,
    }

"""What a peer says about when to come back."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from requests.structures import CaseInsensitiveDict

from hub.transport import LONGEST_HOLD, rate_reset, retry_after

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def at(seconds: float) -> str:
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12),
        ({"retry-after": " 12 "}, 12),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "0"}, 1),
        ({"Retry-After": "999999999"}, LONGEST_HOLD),
        ({"Retry-After": at(30)}, 30),
        ({"Retry-After": at(30), "Date": at(10)}, 20),
        ({"Retry-After": at(-30)}, 1),
        ({"Retry-After": at(86400)}, LONGEST_HOLD),
        ({"Retry-After": "Sun Mar  1 12:00:30 2026"}, 30),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "Sun, 99 Mar 99999 12:00:30 GMT"}, None),
        ({"Retry-After": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_absurd_values_are_bounded(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(CaseInsensitiveDict(headers), NOW) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Ratelimit-Remaining": "0", "Ratelimit-Reset": "7"}, 7),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "7"}, 7),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW.timestamp()) + 9)}, 9),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW.timestamp() + 9) * 1000)}, 9),
        ({"X-RateLimit-Remaining": "-1", "X-RateLimit-Reset": "1000000"}, LONGEST_HOLD),
        ({"Ratelimit-Remaining": "0, 0;w=60", "Ratelimit-Reset": "3"}, 3),
        ({"Ratelimit-Remaining": "1", "Ratelimit-Reset": "7"}, None),
        ({"Ratelimit-Remaining": "0"}, None),
        ({"Ratelimit-Remaining": "none", "Ratelimit-Reset": "7"}, None),
        ({"Ratelimit-Remaining": "0", "X-RateLimit-Reset": "7"}, None),
        ({}, None),
    ],
)
def test_nothing_remaining_holds_until_the_reset_in_either_spelling(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert rate_reset(CaseInsensitiveDict(headers), NOW) == seconds

"""Personal data in a text: e-mail addresses, telephone, card and social security numbers, IP addresses, passwords."""

import ipaddress
import re

_PATTERNS = {  # in the order in which they are looked for
    "url_credentials": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/?#:@]+:[^\s/?#@]+@", re.IGNORECASE),
    "email": re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+"),
    "ssn": re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
    "card": re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])"),
    "phone": re.compile(
        r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,4}"
        r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])"
    ),
    "ip": re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]{4}(?::[0-9a-f]{0,4}){2,7})(?![\w:]|\.\d)", re.I),
}


def personal_data(text: str) -> str | None:
    """The kind of the first personal data found in a text, or None.

    Patterns alone: names and addresses are not found, and a version number may be taken for an IP address.

    Args:
        text: any text.

    Returns:
        url_credentials, email, ssn, card (with a valid check digit), phone, ip, or None.
    """
    for kind, pattern in _PATTERNS.items():
        if any(_CONFIRMED.get(kind, bool)(match[0]) for match in pattern.finditer(text)):
            return kind
    return None


def _luhn(number: str) -> bool:
    """Whether the check digit is right: of the digits from the right, every second counts twice, less 9 above 9."""
    digits = [int(character) for character in reversed(number) if character.isdigit()]
    twice = [2 * digit - 9 * (digit > 4) for digit in digits[1::2]]
    return any(digits) and (sum(digits[::2]) + sum(twice)) % 10 == 0


def _address(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return False


_CONFIRMED = {"card": _luhn, "ip": _address}

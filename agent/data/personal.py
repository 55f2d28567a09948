"""Finds e-mail addresses, phone numbers, card numbers and bank accounts in text.

What has the right form is judged by libraries: phone numbers by libphonenumber's metadata, card numbers and IBANs by
python-stdnum's check digits. Every pattern here is bounded, so that no text takes long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import phonenumbers
from stdnum import iban, luhn

from agent.data.findings import Finding

_LOCAL_PART = re.compile(r"[\w.%+'-]{1,64}\Z")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}([^\W\d_]{2,24}|xn--[a-z0-9-]{2,40})(?![\w(\[@-])")
_FILES = frozenset(
    {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "py", "html", "json", "service", "git"}
)
_NO_MAIL = frozenset({"git", "hg", "svn"})

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,4})?(?![A-Za-z0-9])")
_CARD = re.compile(
    r"(?<![\w.,+=/-])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|\d{4}([ -])\d{6}\2\d{4,5}|\d{13,19})"
    r"(?![\w=/-]|[.,]\d)"
)
_NETWORKS = (
    (re.compile(r"4"), (16, 19)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"30[0-5]|36|38|39"), (14, 16)),
    (re.compile(r"6011|64[4-9]|65|35(?:2[89]|[3-8])"), (16, 19)),
    (re.compile(r"62|81"), (16, 17, 18, 19)),
    (re.compile(r"5018|5020|5038|58|6304|6759|676[1-3]"), (16, 18, 19)),
)
"""First digits and lengths of Visa, Mastercard, American Express, Diners, Discover and JCB, UnionPay, Maestro."""

_BETWEEN = r"[ ./\u2010-\u2013\u00a0-]"
_DIGITS = re.compile(
    rf"(?<![\w.,+/=#$€£-])(?:\+|\(\+?|)\d(?:\d|{_BETWEEN}(?=[\d(])|\){_BETWEEN}?(?=\d)|\((?=\d)){{5,22}}\d(?![\w=%]|[.,:/-]\d)"
)
_AMERICAN = re.compile(r"(?:\+?1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d([.-]))[2-9]\d\d(?(1)\1|[.-])\d{4}")
_TRUNK = re.compile(r"\(?0[1-9]")
_WORDS = re.compile(
    r"(?:\b(?:phone|tel|telephone|telefon|cell|mobile?|mobil|handy|fax|call|dial|ring|sms|whatsapp|rufnummer|t\u00e9l"
    r"|tel\u00e9fono)\b|\u260e|\U0001f4de)(?:\W{1,3}(?:is|no|nr|number|me|us|at|on|my|your|office|home|work)\b){0,2}\W{0,4}\Z",
    re.IGNORECASE,
)
_BEFORE = 40
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "AT", "CH", "AU", "IN", "JP", "BR")
"""Where a number without a country code is looked up; it must be written there as it is here."""


def find_personal(text: str) -> Iterator[Finding]:
    """Give the addresses and numbers in a text, which may overlap."""
    yield from _emails(text)
    yield from _accounts(text)
    yield from _cards(text)
    yield from _phones(text)


def _emails(text: str) -> Iterator[Finding]:
    """Give e-mail addresses, found from their ``@``."""
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1)
        local = _LOCAL_PART.search(text, max(0, at - 64), at) if domain else None
        if local and domain and _is_mail(text, local, domain):
            begin = local.start() + len(local[0]) - len(local[0].lstrip(".'"))
            if begin < at:
                yield Finding(begin, domain.end(), "EMAIL")
        at = text.find("@", at + 1)


def _is_mail(text: str, local: re.Match[str], domain: re.Match[str]) -> bool:
    """Tell an address from a file's name, a repository's, and what a program does with ``@``."""
    if domain[1].lower() in _FILES or local[0].endswith("."):
        return False
    before = text[local.start() - 1] if local.start() else " "
    return not (local[0] in _NO_MAIL and text.startswith((":", "/"), domain.end())) and before not in "/@"


def _accounts(text: str) -> Iterator[Finding]:
    """Give IBANs, without the capitals that may follow one."""
    for match in _IBAN.finditer(text):
        found = match[0]
        while found and not iban.is_valid(found):
            found = found.rpartition(" ")[0]
        if found:
            yield Finding(match.start(), match.start() + len(found), "IBAN")


def _cards(text: str) -> Iterator[Finding]:
    """Give card numbers of the known networks whose check digit is right."""
    for match in _CARD.finditer(text):
        digits = match[0].replace(" ", "").replace("-", "")
        known = any(len(digits) in lengths and begins.match(digits) for begins, lengths in _NETWORKS)
        if known and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield Finding(match.start(), match.end(), "CARD")


def _phones(text: str) -> Iterator[Finding]:
    """Give phone numbers: international ones that exist, and national ones that are written like one."""
    for match in _DIGITS.finditer(text):
        written = match[0]
        count = sum(letter.isdigit() for letter in written)
        if 7 <= count <= 15 and _is_phone(written, text[max(0, match.start() - _BEFORE) : match.start()]):
            yield Finding(match.start(), match.end(), "PHONE")


def _is_phone(written: str, before: str) -> bool:
    """Judge something that is written in digits and separators by itself and by the words before it."""
    if len(_groups(written)[-1]) < 2:
        return False
    if written.startswith(("+", "(+", "00")):
        return _exists(written if "+" in written else "+" + written[2:], None)
    if _AMERICAN.fullmatch(written):
        return True
    separated = not written.isdigit()
    announced = _WORDS.search(before) is not None
    if not announced and not (separated and _TRUNK.match(written) and sum(map(str.isdigit, written)) >= 9):
        return False
    return any(_exists(written, region) and _grouped(written, region, announced=announced) for region in _REGIONS)


def _exists(written: str, region: str | None) -> bool:
    """Say whether libphonenumber knows a number of this form, as seen from a region."""
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(written, region)))
    except phonenumbers.NumberParseException:
        return False


def _grouped(written: str, region: str, *, announced: bool) -> bool:
    """Say whether the digits stand in the groups in which that region writes them; with a word before, any will do."""
    if announced:
        return True
    number = phonenumbers.parse(written, region)
    usual = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    return _groups(written)[0] == _groups(usual)[0]


def _groups(written: str) -> list[str]:
    """Give the groups of digits."""
    return re.findall(r"\d+", written)

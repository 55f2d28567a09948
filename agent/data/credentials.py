"""Finds keys, tokens and passwords in text.

The shapes of tokens, the names that secrets are kept under, and the signs of a value that is none come from
detect-secrets; how much text one pattern may look at is bounded here, so that no text takes long. detect-secrets is
imported on the first use: it brings an HTTP client, which is never called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from agent.data.findings import Finding, Kind

_BLOCK = 8192
_LONGEST_LINE = 1024
_OVERLAP = 256
_LONGEST_KEY = 16_384
_SHORTEST_KEY = 64

# Module and class in detect_secrets.plugins, and texts of which one occurs wherever the detector could find something
# (those in lower case in whatever case); none where the pattern is quick by itself.
_DETECTORS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("artifactory", "ArtifactoryDetector", ("AKC", "AP")),
    ("aws", "AWSKeyDetector", ("aws", "A3T", "ABIA", "ACCA", "AKIA", "ASIA")),
    ("azure_storage_key", "AzureStorageKeyDetector", ("accountkey=",)),
    ("basic_auth", "BasicAuthDetector", ("://",)),
    ("discord", "DiscordBotTokenDetector", ()),
    ("github_token", "GitHubTokenDetector", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    ("gitlab_token", "GitLabTokenDetector", ("gl", "GR1348941")),
    ("jwt", "JwtTokenDetector", ("eyJ",)),
    ("mailchimp", "MailchimpDetector", ("-us",)),
    ("npm", "NpmDetector", ("_authtoken",)),
    ("openai", "OpenAIDetector", ("T3BlbkFJ",)),
    ("pypi_token", "PypiTokenDetector", ("pypi-",)),
    ("sendgrid", "SendGridDetector", ("SG.",)),
    ("slack", "SlackDetector", ("xox", "hooks.slack.com")),
    ("square_oauth", "SquareOAuthDetector", ("sq0csp-",)),
    ("stripe", "StripeDetector", ("k_live_",)),
    ("telegram_token", "TelegramBotTokenDetector", ()),
    ("twilio", "TwilioKeyDetector", ()),
)
# Of services that the detectors above do not know yet, from their documentation.
_MORE = re.compile(
    r"\bgithub_pat_\w{40,120}|\bsk-(?:ant-|proj-|or-)[\w-]{24,200}|\bsk-[A-Za-z0-9]{40,100}\b|\bhf_[A-Za-z0-9]{30,60}\b"
    r"|\bAIza[\w-]{35}\b|\bya29\.[\w-]{20,400}|\bdop_v1_[a-f0-9]{64}\b|\bnpm_[A-Za-z0-9]{36}\b"
)
_BEARER = re.compile(r"\bBearer\s{1,4}([\w.~+/-]{20,400}={0,2})", re.IGNORECASE)
_TOKEN_REST = re.compile(r"[\w=-]{0,1024}")
_KEY_BEGINS = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_LINE = re.compile(r"\n[ \t]{0,80}[A-Za-z0-9+/=:, -]{1,200}(?=\n|$)")
_MORE_NAMES = (
    "passphrase",
    "access_?key",
    "auth_?token",
    "access_?token",
    "api_?token",
    "bot_?token",
    "refresh_?token",
)
_PLAIN_VALUE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[A-Za-z_.\-]+|\W+|\d[\d.,:_/-]*|v?\d+(?:\.\d+)+\S*")
_PLACE = re.compile(r"[./~]|[A-Za-z]:[\\/]|[A-Za-z][\w+.-]{0,20}://|\w+(?:\.\w+)+[(\[]")
_PLACEHOLDERS = frozenset({"pass", "password", "passwd", "pw", "pwd", "secret", "token", "mypassword", "your_password"})
_STATEMENT_BEGINS = re.compile(r"[ \t]{0,80}(?:(?:export|set|ENV|ARG|-)[ \t]{1,4})?[\"']?[\w.-]{0,60}")


@dataclass(frozen=True, slots=True)
class _Shape:
    """One detector's patterns; ``valid`` has the last word on a match."""

    patterns: tuple[re.Pattern[str], ...]
    triggers: tuple[str, ...]
    kind: Kind
    valid: Callable[[str], bool]


def find_credentials(text: str) -> Iterator[Finding]:
    """Give the private keys, tokens and passwords in a text, which may overlap."""
    yield from _private_keys(text)
    names, stems = _names()
    for start, piece in _pieces(text):
        lower = piece.lower()
        yield from _tokens(start, piece, lower)
        if any(stem in lower for stem in stems):
            yield from _assigned(start, piece, names)


def _private_keys(text: str) -> Iterator[Finding]:
    """Give PEM and PGP blocks of private keys; where the end is missing, the lines that look like one."""
    place = 0
    while begin := _KEY_BEGINS.search(text, place):
        end = text.find("-----END", begin.end(), begin.end() + _LONGEST_KEY)
        close = text.find("-----", end + 8, end + 80) if end >= 0 else -1
        if close >= 0:
            place = close + 5
        else:
            place = begin.end()
            while (line := _KEY_LINE.match(text, place)) and place - begin.end() < _LONGEST_KEY:
                place = line.end()
        if place - begin.end() >= _SHORTEST_KEY:
            yield Finding(begin.start(), place, "KEY")


def _tokens(start: int, piece: str, lower: str) -> Iterator[Finding]:
    """Give what has the shape of a service's token, and passwords in addresses."""
    for shape in _shapes():
        if shape.triggers and not any(trigger in piece or trigger in lower for trigger in shape.triggers):
            continue
        for pattern in shape.patterns:
            for match in pattern.finditer(piece):
                first, last = _secret_span(match, shape.kind)
                inside = first > 0 and piece[first].isalpha() and piece[first - 1].isalnum()  # of a longer word
                if shape.valid(piece[first:last]) and not inside:
                    last = last if shape.kind == "PASSWORD" else _rest_of_token(piece, last)
                    yield Finding(start + first, start + last, shape.kind)


def _rest_of_token(piece: str, last: int) -> int:
    """Give the end of a token that a pattern knows only the beginning of."""
    rest = _TOKEN_REST.match(piece, last)
    return rest.end() if rest and (piece[last - 1].isalnum() or piece[last - 1] == ".") else last


def _secret_span(match: re.Match[str], kind: Kind) -> tuple[int, int]:
    """Give where in a match the secret is: in a group where that is long or the pattern's own, else all of it."""
    spans = [match.span(group) for group in range(1, match.re.groups + 1) if match[group]]
    longest = max(spans, key=lambda span: span[1] - span[0], default=match.span())
    if kind == "PASSWORD" or longest[1] - longest[0] >= 16:
        return longest
    first, last = match.span()
    text = match[0]
    return first + len(text) - len(text.lstrip(' \t\n=:"')), last - len(text) + len(text.rstrip(' \t\n"'))


@cache
def _shapes() -> tuple[_Shape, ...]:
    """Load the detectors."""
    shapes = [
        _Shape((_MORE,), ("github_pat_", "sk-", "hf_", "AIza", "ya29.", "dop_v1_", "npm_"), "TOKEN", _has_digit),
        _Shape((_BEARER,), ("bearer",), "TOKEN", _has_digit),
    ]
    for module, name, triggers in _DETECTORS:
        detector = getattr(import_module(f"detect_secrets.plugins.{module}"), name)()
        password = module == "basic_auth"
        valid = detector.is_formally_valid if module == "jwt" else _any_password if password else _has_digit
        shapes.append(_Shape(tuple(detector.denylist), triggers, "PASSWORD" if password else "TOKEN", valid))
    return tuple(shapes)


def _has_digit(text: str) -> bool:
    """Tell tokens from long words."""
    return any(letter.isdigit() for letter in text)


def _any_password(text: str) -> bool:
    """Tell a password from the placeholder of one, and from a port."""
    word = text.strip("<>[]{}").lower()
    return not (text.isdigit() or text.startswith(("$", "{", "<", "[", "*", "%")) or word in _PLACEHOLDERS)


def _assigned(start: int, piece: str, names: re.Pattern[str]) -> Iterator[Finding]:
    """Give values that are assigned to a name such as ``DB_PASSWORD`` or ``"api_key"``."""
    for match in names.finditer(piece):
        which = "bare" if match["quoted"] is None else "quoted"
        if (which == "quoted" or _stands_alone(piece, match)) and _looks_secret(match[which], match[0]):
            first, last = match.span(which)
            yield Finding(start + first, start + last, "PASSWORD")


@cache
def _names() -> tuple[re.Pattern[str], tuple[str, ...]]:
    """Give the pattern of an assignment to a name that secrets are kept under, and a part of every such name."""
    from detect_secrets.plugins.keyword import DENYLIST  # noqa: PLC0415 (see the module's docstring)

    names = (*DENYLIST, *_MORE_NAMES)
    stems = {name.replace("_?", between) for name in names for between in ("", "_")}
    pattern = re.compile(
        rf"(?:{'|'.join(names)})\w{{0,40}}[\"'\]]{{0,2}}[ \t]{{0,4}}(?::=|={{1,3}}>?|:)[ \t]{{0,4}}"
        r"(?:(?P<quote>[\"'`])(?P<quoted>[^\s\"'`]{6,200})(?P=quote)"
        r"|(?P<bare>[^\s\"'`,;()\[\]{}<>]{6,200})[ \t]{0,8}(?:#[^\n]{0,200})?(?=\n|$))",
        re.IGNORECASE,
    )
    return pattern, tuple(sorted(stems))


def _stands_alone(piece: str, match: re.Match[str]) -> bool:
    """Tell whether an assignment without quotes is a line of its own, as in a file of settings."""
    line = piece.rfind("\n", 0, match.start()) + 1
    return match.start() - line <= 160 and _STATEMENT_BEGINS.fullmatch(piece, line, match.start()) is not None


def _looks_secret(value: str, line: str) -> bool:
    """Tell a secret from a word, a number, a placeholder, a path, or code that fetches it."""
    from detect_secrets.filters import heuristic  # noqa: PLC0415

    return not (
        _PLAIN_VALUE.fullmatch(value)
        or _PLACE.match(value)
        or len(set(value)) < 4
        or "..." in value
        or heuristic.is_sequential_string(value)
        or heuristic.is_templated_secret(value)
        or heuristic.is_prefixed_with_dollar_sign(value)
        or heuristic.is_not_alphanumeric_string(value)
        or heuristic.is_indirect_reference(line)
    )


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Cut text at line ends into blocks, and lines that are longer than writing has into pieces that overlap.

    Gives each piece with its place in the text. What a pattern can look at is bounded by the longest line.
    """
    start = 0
    while start < len(text):
        if len(text) - start <= _LONGEST_LINE:
            yield start, text[start:]
            return
        end = text.rfind("\n", start, start + _BLOCK) + 1
        block = text[start : end or start + _LONGEST_LINE]
        if end and max(map(len, block.split("\n"))) <= _LONGEST_LINE:
            yield start, block
            start = end
            continue
        end = text.find("\n", start, start + _LONGEST_LINE) + 1
        yield start, text[start : end or start + _LONGEST_LINE]
        start = end or start + _LONGEST_LINE - _OVERLAP

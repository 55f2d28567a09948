from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.data.documents import Document, Documents, Turn
from agent.data.findings import mask
from agent.data.redaction import filter_documents, find_private, redact
from tests.conftest import SHARED_DATA

# Made up; joined from parts where a scanner of this repository would take them for real.
LETTERS = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1bC3dE5f"
SK = "sk"
PEM = (
    f"-----BEGIN RSA {'PRIVATE'} KEY-----\n"
    + "\n".join(base64.b64encode(bytes(range(row, row + 48))).decode() for row in range(12))
    + f"\n-----END RSA {'PRIVATE'} KEY-----"
)
JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"1234567890","name":"A. Person"}', bytes(range(32)))
)
SECRETS = [
    ("KEY", "{}", PEM),
    ("KEY", "key = '''{}'''", PEM.replace("RSA ", "")),
    ("KEY", '{{"key": "{}"}}', PEM.replace("\n", "\\n").replace("RSA ", "OPENSSH ")),
    ("TOKEN", "aws_access_key_id = {}", "AKIA" + "Q3EGRZL7PXN2TK5V"),
    ("TOKEN", 'aws_secret_key = "{}"', LETTERS),
    ("PASSWORD", "AWS_SECRET_ACCESS_KEY={}\n", LETTERS),
    ("TOKEN", "git clone with {} please", "ghp" + "_" + LETTERS[:36]),
    ("TOKEN", "export GH={}", "github" + "_pat_" + LETTERS[:22] + "_" + LETTERS + LETTERS[:19]),
    ("TOKEN", "curl -H 'PRIVATE-TOKEN: {}'", "glpat" + "-" + LETTERS[:20]),
    ("TOKEN", "Authorization: Bearer {}", LETTERS),
    ("TOKEN", "the cookie was {};", JWT),
    ("TOKEN", "slack: {}", "xoxb" + "-123456789012-1234567890123-" + LETTERS[:24]),
    ("TOKEN", "{}", "https://hooks.slack.com/" + "services/T0AB12CD3/B0EF45GH6/" + LETTERS[:24]),
    ("TOKEN", "stripe {} live", SK + "_live_" + LETTERS[:24]),
    ("TOKEN", "key={}", SK + "-proj-" + LETTERS + "T3BlbkFJ" + LETTERS[:20]),
    ("TOKEN", "key={}", SK + "-ant-api03-" + LETTERS + LETTERS),
    ("TOKEN", "login with {}", "hf" + "_" + LETTERS[:34]),
    ("TOKEN", "maps {}", "AI" + "za" + LETTERS[:35]),
    ("TOKEN", "bot {} runs", "123456789:" + LETTERS[:35]),
    ("PASSWORD", "postgres://app:{}@db.internal:5432/app", "pw-4711-x"),
    ("PASSWORD", "https://someone:{}@host.example/repo.git", "hunter2"),
    ("PASSWORD", "DB_PASSWORD={}", "tr0ub4dor&3"),
    ("PASSWORD", "export API_KEY='{}'", "8f14e45fceea167a"),
    ("PASSWORD", "  password: {}  # rotate", "s3cr3t!Pa55"),
    ("PASSWORD", 'config = {{"client_secret": "{}"}}', "Zx81-9f"),
    ("PASSWORD", 'String dbPassword = "{}";', "geheim123"),
    ("EMAIL", "write to {} today", "jane.q.doe+lists@mail.example.co.uk"),
    ("EMAIL", "From: <{}>,", "o'neill_99@uni-köln.de"),
    ("EMAIL", "mailto:{}.", "me@example.museum"),
    ("PHONE", "call {} now", "+49 30 23125 777"),
    ("PHONE", "({})", "+1 (650) 253-0000"),
    ("PHONE", "ring 00{}.", "44 20 7031 3000"),
    ("PHONE", "me: {}", "+33 1 42 68 53 00"),
    ("PHONE", "at {} or", "(555) 867-5309"),
    ("PHONE", "at {},", "650-253-0000"),
    ("PHONE", "Büro {}", "030 23125777"),
    ("PHONE", "office {}", "020 7031 3000"),
    ("PHONE", "bureau {}", "01 42 68 53 00"),
    ("PHONE", "Telefon: {}", "03023125777"),
    ("PHONE", "mobile {}", "07911 123456"),
    ("CARD", "paid with {} in May", "4111 1111 1111 1111"),
    ("CARD", "{}", "5500005555555559"),
    ("CARD", "amex {}.", "3782-822463-10005"),
    ("IBAN", "to {} AND", "DE89 3704 0044 0532 0130 00"),
    ("IBAN", "{}", "GB82WEST12345698765432"),
]
INNOCENT = [
    "In 1999-2004 he wrote 12 books, 3000 pages, on 01.02.2003 and 2024-03-14 at 10:15:30.",
    "pi = 3.14159265358979323846264338327950288; phi = 1.6180339887498948482",
    "4111111111111112 has a wrong check digit; so does 5500 0055 5555 5558",
    "password = get_password()\nsecret = config.secret_key\napi_key: str\nPASSWORD=$DB_PASSWORD",
    'The password: see below. Secretary: "Madam, the secret is out."',
    'labels = {"password": "Your password", "secret": "password", "api_key": "<your key>"}',
    "@property\ndef f(self): return self.a@self.b.T + x@y.conj() # see icon@2x.png, git@github.com:a/b.git",
    "token_count = 4096\ntokenizer: llama3-8b\nclient_key_path = /etc/keys/client1.pem",
    "0xdeadbeefcafe, e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 (sha256)",
    "550e8400-e29b-41d4-a716-446655440000 192.168.100.200 10.0.0.1:8080 v1.22.333-4444",
    "The year 0900-0130 shift; $3000 / 200 + 1000 x 2000; ISBN 978-3-16-148410-0; lines 100-200, 300-4000",
    "APPENDIX APACHE2 APARTMENTS SKELETON ACCOUNT MONTAGUE Bearer of bad news from far-away-countries-2",
    "x = Decimal('+35236450.6'); PrivateKey = rust.hpke.MLKEM768PrivateKey; [86400000, 4031078400000]",
    'BEGIN = "-----BEGIN OPENSSH PRIVATE ' + 'KEY-----"\nEND = "-----END OPENSSH PRIVATE ' + 'KEY-----"',
    "mqtt://<username:password>@HOST, ftp://user:secret@host, AAwAaAKIAAQAAAAAABAAHAM0AAQAAAA, http://host:8080/x@y",
    "const tel = rows 12345678 ; size 1600 1200 800 600 ; 12 34 56 78 90",
]


@pytest.mark.parametrize(("kind", "around", "secret"), SECRETS, ids=[f"{n}-{s[0]}" for n, s in enumerate(SECRETS)])
def test_secrets_are_found_whole_and_named(kind: str, around: str, secret: str) -> None:
    text = "Some words before.\n" + around.format(secret) + "\nand some after."
    cleaned = redact(text, find_private(text))
    assert f"<{kind}>" in cleaned
    assert secret not in cleaned
    if kind in {"EMAIL", "CARD", "IBAN", "TOKEN"}:
        assert cleaned == "Some words before.\n" + around.format(f"<{kind}>") + "\nand some after."


@pytest.mark.parametrize("text", INNOCENT)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    found = [(finding.kind, text[finding.start : finding.end]) for finding in find_private(text)]
    assert found == []


def test_the_projects_own_source_has_no_secrets() -> None:
    for path in (Path(__file__).parents[2] / "agent").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert [text[found.start : found.end] for found in find_private(text)] == [], path


def test_real_questions_and_plays_are_not_mangled() -> None:
    for name in ("gsm8k-1500.jsonl", "tinyshakespeare.txt"):
        path = SHARED_DATA / name
        if not path.is_file():
            pytest.skip(f"{name} is not in ../shared/data")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            text = "\n".join("\n".join(json.loads(line).values()) for line in text.splitlines())
        assert [text[found.start : found.end] for found in find_private(text)] == []


@pytest.mark.parametrize(
    "unit",
    ["a", "@", "a@", "a.", "a@a.", "-----BEGIN PRIVATE " + "KEY-----", "password=", 'secret="', "eyJ", "://a:",
     "//_authToken", "1 ", "+1", "(0", "4111 ", "DE89 ", "aws key ", "sk-", "xoxb-1-", "`", "AP1", "0" * 19 + " ",
     "Bearer ", "api_key\n", "sk-T3BlbkFJ"],
    ids=lambda unit: unit[:8].strip() or "blank",
)  # fmt: skip
def test_no_text_takes_long(unit: str) -> None:
    text = (unit * (1 + 200_000 // len(unit)))[:200_000]
    began = time.process_time()
    find_private(text)
    assert time.process_time() - began < 2.0  # a fifth of a megabyte: ten times what writing takes would be 0.2


@given(st.lists(st.sampled_from(["a@b.de", " ", "+49 30 23125 777", "x", "password=", "\n", "p4ss-w0rd", '"', "@"])))
def test_what_is_found_is_in_order_and_apart_and_gone_afterwards(parts: list[str]) -> None:
    text = "".join(parts)
    found = find_private(text)
    borders = [place for finding in found for place in (finding.start, finding.end)]
    assert borders == sorted(borders)
    assert all(finding.start < finding.end <= len(text) for finding in found)
    cleaned = redact(text, found)
    rest = text
    for finding in found:
        rest = rest.replace(text[finding.start : finding.end], "", 1)
    assert len(cleaned) == len(rest) + sum(len(finding.kind) + 2 for finding in found)


def test_documents_and_conversations_are_cleaned_and_counted_with_masked_examples() -> None:
    turns = (Turn("user", "My mail is jane@example.org."), Turn("assistant", "I wrote to jane@example.org."))
    documents = Documents(
        (
            Document(Path("a.txt"), "call +49 30 23125 777 or mail joe@example.org"),
            Document.conversation(Path("b.jsonl"), turns, size=9),
        )
    )
    cleaned, removed = filter_documents(documents)
    assert cleaned.documents[0].text == "call <PHONE> or mail <EMAIL>"
    assert [turn.content for turn in cleaned.documents[1].turns] == ["My mail is <EMAIL>.", "I wrote to <EMAIL>."]
    assert cleaned.documents[1].text == "My mail is <EMAIL>.\n\nI wrote to <EMAIL>."
    assert cleaned.documents[1].size == 9
    assert removed.counts == {"EMAIL": 3, "PHONE": 1}
    assert removed.examples["EMAIL"] == ("jo…rg (15 characters)", "ja…rg (16 characters)")


@given(st.text(max_size=40))
def test_a_mask_gives_little_away(secret: str) -> None:
    assert len(mask(secret).split("(")[0].replace("…", "").strip()) <= min(4, len(secret) // 2)

"""Real text that every machine with Python has: the docstrings and comments of its standard library, by topic.

The seedling never saw any of it in training (its model card says how that was made sure).
"""

from __future__ import annotations

import ast
import inspect
import io
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.errors import DemoError

TOPICS: dict[str, tuple[str, ...]] = {
    "networking": (
        "asyncio", "email", "ftplib", "http", "imaplib", "ipaddress", "mailbox", "poplib", "selectors",
        "smtplib", "socket", "socketserver", "ssl", "urllib", "wsgiref", "xmlrpc", "webbrowser", "nntplib",
        "telnetlib", "cgi",
    ),
    "data-and-numbers": (
        "array", "bisect", "calendar", "collections", "datetime", "decimal", "_pydecimal", "_pydatetime",
        "fractions", "heapq", "numbers", "random", "statistics", "sqlite3", "queue", "operator", "functools",
        "enum", "dataclasses", "typing", "colorsys", "graphlib", "hashlib", "hmac", "secrets", "uuid",
        "zoneinfo", "struct", "types",
    ),
    "text-and-files": (
        "argparse", "codecs", "configparser", "csv", "difflib", "fileinput", "filecmp", "fnmatch", "gettext",
        "glob", "gzip", "html", "json", "linecache", "locale", "optparse", "os", "pathlib", "pprint", "re",
        "shlex", "shutil", "string", "tarfile", "tempfile", "textwrap", "xml", "zipfile", "lzma", "bz2", "stat",
        "posixpath", "ntpath", "plistlib",
    ),
    "running-programs": (
        "concurrent", "contextlib", "ctypes", "logging", "multiprocessing", "sched", "signal", "subprocess",
        "threading", "_threading_local", "timeit", "trace", "traceback", "warnings", "weakref", "atexit",
        "getpass", "pty", "platform",
    ),
    "tools-of-the-language": (
        "abc", "ast", "bdb", "cmd", "code", "codeop", "compileall", "copy", "dis", "doctest", "distutils",
        "ensurepip", "idlelib", "importlib", "inspect", "lib2to3", "pdb", "pickle", "pickletools", "pkgutil",
        "profile", "pydoc", "runpy", "shelve", "symtable", "sysconfig", "tokenize", "unittest", "venv",
        "zipapp", "zipimport",
    ),
    "windows-and-drawing": ("tkinter", "turtle", "turtledemo", "curses", "rlcompleter"),
}  # fmt: skip
"""Modules of the standard library by topic."""

_SHORTEST = 40
_MOST_CHARACTERS = 400_000


def device_topics(devices: int) -> list[tuple[str, int, int]]:
    """Say which text each device gets: topic, and which part of how many.

    With more devices than topics, devices share a topic, each with files of its own.
    """
    names = list(TOPICS)
    shares = [sum(1 for device in range(devices) if device % len(names) == index) for index in range(len(names))]
    return [
        (names[device % len(names)], device // len(names), shares[device % len(names)]) for device in range(devices)
    ]


def write_topic(directory: Path, topic: str, *, part: int = 0, parts: int = 1) -> int:
    """Write one topic's docstrings and comments, a text file a module.

    Returns:
        Characters written.

    Raises:
        DemoError: this Python comes without the source of its library.
    """
    directory.mkdir(parents=True, exist_ok=True)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = list(_sources(library, TOPICS[topic]))[part::parts]
    written = 0
    for path in sources:
        text = "\n\n".join(_pieces(path))
        if len(text) < _SHORTEST or written > _MOST_CHARACTERS:
            continue
        name = "-".join(path.relative_to(library).with_suffix("").parts)
        (directory / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        written += len(text)
    if not written:
        raise DemoError(
            f"this Python has no source of its standard library under {library}",
            advice="Give the demo text of your own: bramble demo --text DIR --text DIR --text DIR",
        )
    return written


def _sources(library: Path, names: Iterable[str]) -> Iterator[Path]:
    """Give the source files of modules, tests left out."""
    for name in names:
        single, package = library / f"{name}.py", library / name
        if single.is_file():
            yield single
        if package.is_dir():
            yield from sorted(
                path for path in package.rglob("*.py") if not {"test", "tests", "idle_test"} & set(path.parts)
            )


def _pieces(path: Path) -> Iterator[str]:
    """Give a file's docstrings, then its blocks of comments."""
    try:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=True)
            if text and len(text) >= _SHORTEST:
                yield inspect.cleandoc(text)
    yield from _comments(source)


def _comments(source: bytes) -> Iterator[str]:
    """Give runs of whole-line comments, each as one paragraph."""
    run: list[str] = []
    last_line = -2
    try:
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            if token.type != tokenize.COMMENT or token.line.strip() != token.string:
                continue
            if token.start[0] != last_line + 1 and run:
                yield from _paragraph(run)
                run = []
            run.append(token.string.lstrip("#").removeprefix(" ").rstrip())
            last_line = token.start[0]
    except (tokenize.TokenError, SyntaxError):
        pass
    yield from _paragraph(run)


def _paragraph(lines: list[str]) -> Iterator[str]:
    text = "\n".join(lines).strip("-=*# \n")
    if len(text) >= _SHORTEST:
        yield text

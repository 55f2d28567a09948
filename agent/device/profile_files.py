"""Profiles from their files: the built-in ones, then folders of others in order, each file checked by the schema.

A file may stand in the place of one of the same name that came before it, and may say ``extends = "NAME"`` to change
only some keys of another one. An error names the file, the key, what is wrong with it and what is allowed.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agent.device.profile import GENERIC, Profile
from agent.errors import SettingsError

SCHEMA_NAME = "profile.schema.json"
_PACKAGED = Path(__file__).parent / "firmware_profiles"
_CHECKOUT = Path(__file__).parents[2] / "firmware_profiles"
_MOST_PROBLEMS = 5
_MOST_BYTES = 256 * 1024

Raw = dict[str, Any]
"""A file's tables, not checked yet."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    raw: Raw


def built_in() -> Path:
    """Give the folder of the profiles that come along."""
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def load_profiles(*, extra: Sequence[Path] = ()) -> tuple[Profile, ...]:
    """Give all profiles, sorted by name: the built-in ones, and those of further folders.

    Args:
        extra: folders whose profiles replace those of the same name that came before; one that is not there is fine.

    Raises:
        SettingsError: a profile does not fit the schema, or there are none.
    """
    folders = [_read_folder(folder) for folder in (built_in(), *extra)]
    newest = {name: level for level, files in enumerate(folders) for name in files}
    if GENERIC not in newest:
        raise SettingsError(
            f"the profile {GENERIC} is missing from {built_in()}", advice="Reinstall Bramble; its files are incomplete."
        )
    return tuple(_resolved(folders, level, name) for name, level in sorted(newest.items()))


def read_profile(path: Path, *, extra: Sequence[Path] = ()) -> Profile:
    """Read one profile, on top of the built-in ones and those of further folders, which it may extend.

    Raises:
        SettingsError: it, or one that it extends, cannot be read or does not fit the schema.
    """
    folders = [*(_read_folder(folder) for folder in (built_in(), *extra)), {path.stem: _read_file(path)}]
    return _resolved(folders, len(folders) - 1, path.stem)


def origin_of(name: str, *, extra: Sequence[Path] = ()) -> Path:
    """Give the file that a profile of this name is read from, of those that :func:`load_profiles` reads."""
    places = [folder / f"{name}.toml" for folder in (*reversed(extra), built_in())]
    return next((path for path in places if path.is_file()), places[-1])


def json_schema() -> Raw:
    """Give the JSON Schema of a profile's file, which editors check it with as it is typed."""
    schema = Profile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A profile of a kind of machine, for Bramble"
    schema["required"] = ["name"]
    schema["anyOf"] = [{"required": ["title"]}, {"required": ["extends"]}]
    return schema


def schema_text() -> str:
    """Give the JSON Schema as it lies beside the built-in profiles."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _read_folder(folder: Path) -> dict[str, _File]:
    return {path.stem: _read_file(path) for path in sorted(folder.glob("*.toml"))}


def _read_file(path: Path) -> _File:
    """Read a file's tables; what they say is checked once what it extends is known."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise _refused(path, f"cannot be read: it is longer than {_MOST_BYTES:,} bytes")
        raw = tomllib.loads(data.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise _refused(path, f"cannot be read: {cause}") from cause
    if raw.get("name") != path.stem:
        said = f"calls itself {raw['name']}" if "name" in raw else "says no name"
        raise _refused(path, f"{said}; the name must be that of the file: name = {path.stem!r}")
    return _File(path, raw)


def _resolved(folders: Sequence[Mapping[str, _File]], level: int, name: str) -> Profile:
    """Give a profile with what it does not say from those that it extends."""
    file = folders[level][name]
    merged = _merged(folders, level, name, ())
    try:
        return Profile.model_validate(merged)
    except ValidationError as cause:
        found = list(_problems(cause, merged))
        more = f"; and {len(found) - _MOST_PROBLEMS} more" if len(found) > _MOST_PROBLEMS else ""
        raise _refused(file.path, "; ".join(found[:_MOST_PROBLEMS]) + more) from cause


def _merged(folders: Sequence[Mapping[str, _File]], level: int, name: str, below: tuple[tuple[int, str], ...]) -> Raw:
    file = folders[level][name]
    if (level, name) in below:
        circle = " → ".join([*(step for _level, step in below), name])
        raise _refused(file.path, f"extends: it extends itself ({circle})")
    parent = file.raw.get("extends")
    if not isinstance(parent, str):
        return file.raw
    top = level - 1 if parent == name else level
    where = next((place for place in range(top, -1, -1) if parent in folders[place]), None)
    if where is None:
        known = sorted({known for files in folders[: top + 1] for known in files} - {name})
        raise _refused(file.path, f"extends: there is no profile {parent!r}{_meant(parent, known)}")
    return _over(_merged(folders, where, parent, (*below, (level, name))), file.raw)


def _over(under: Raw, upper: Raw) -> Raw:
    """Put tables over tables key by key; anything else takes the place of what was there."""
    result = dict(under)
    for key, value in upper.items():
        old = result.get(key)
        result[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _refused(path: Path, what: str) -> SettingsError:
    return SettingsError(
        f"profile {path.name}: {what}",
        advice=f"Correct {path}. What a profile may say is in docs/devices.md, and in {SCHEMA_NAME} for editors.",
    )


def _problems(error: ValidationError, raw: Raw) -> Iterator[str]:
    """Give a sentence for each key that is wrong: the key, its value, and what is allowed."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for details in error.errors():
        by_key.setdefault(_key(details, raw), []).append(details)
    for key, found in by_key.items():
        first = found[0]
        if first["type"] == "extra_forbidden":
            table, _, last = key.rpartition(".")
            known = sorted(_keys(table))
            yield f"{key}: there is no such key{_meant(last, known)}"
        elif first["type"] == "missing":
            yield f"{key}: it is required"
        else:
            allowed = " or ".join(dict.fromkeys(_lowered(details["msg"]) for details in found))
            value = "" if isinstance(first["input"], dict) else f" is {_short(first['input'])}"
            yield f"{key}{value}: {allowed}"


def _key(details: ErrorDetails, raw: Raw) -> str:
    """Give the dotted key that an error is about, without the branches of unions that pydantic adds."""
    path: list[str] = []
    value: Any = raw
    for index, part in enumerate(details["loc"]):
        inside = (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        )
        if inside:
            value = value[part]
        elif index < len(details["loc"]) - 1 or details["type"] != "missing":
            break
        path.append(str(part))
    return ".".join(path) or "the file"


def _keys(table: str) -> set[str]:
    """Give the keys that a table of a profile may have."""
    model: type[BaseModel] = Profile
    for part in table.split(".") if table else ():
        if part.isdecimal() or part not in model.model_fields:
            continue
        inner = _model_of(model.model_fields[part].annotation)
        if inner is None:
            return set()
        model = inner
    return set(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Find the model in an annotation such as ``list[SuitedBase]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_of(inner)) is not None), None)


def _meant(wrong: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{hint}; there are: {', '.join(known)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _lowered(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"i{message[1:]}" if message.startswith("Input should") else message

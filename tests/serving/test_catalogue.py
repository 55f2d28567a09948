from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errors import AdapterError, StateError
from agent.serving.catalogue import Catalogue
from agent.serving.refusals import RequestRefusedError


class Shop:
    """A place where models change."""

    def __init__(self, directory: Path) -> None:
        self.sign = directory / "sign"
        self.base = directory / "base.gguf"
        self.adapter = directory / "a.gguf"
        for path in (self.sign, self.base, self.adapter):
            path.write_bytes(b"1")
        self.models: dict[str, list[Path]] = {"base": [], "personal": [self.adapter]}
        self.asked = 0
        self.shut = False
        rename = {"personal": "community+personal"}
        self.catalogue = Catalogue(base=self.base, read=self._read, watch=[self.sign], rename=rename)

    def _read(self) -> dict[str, list[Path]]:
        self.asked += 1
        if self.shut:
            raise StateError("shut", advice="Come back.")
        return self.models

    def change(self) -> None:
        """Write to what is watched."""
        os.utime(self.sign, ns=(0, self.sign.stat().st_mtime_ns + 1))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_models_are_found_by_id_and_alias(shop: Shop) -> None:
    assert [model.id for model in shop.catalogue.models()] == ["base", "community+personal"]
    assert shop.catalogue.find("personal") == shop.catalogue.find("community+personal")
    for name in ("", "nobody", "community"):
        with pytest.raises(RequestRefusedError, match="does not exist") as refused:
            shop.catalogue.find(name)
        assert refused.value.status == 404


def test_it_is_asked_again_only_when_something_changed(shop: Shop) -> None:
    before = shop.catalogue.find("personal")
    assert (shop.catalogue.find("personal"), shop.asked) == (before, 1)
    shop.adapter.write_bytes(b"22")
    shop.change()
    after = shop.catalogue.find("personal")
    assert shop.asked == 2
    assert (after.adapters, after.fingerprint) != (before.adapters, before.fingerprint)
    assert shop.catalogue.find("base").fingerprint != after.fingerprint
    shop.sign.unlink()
    shop.catalogue.models()
    assert shop.asked == 3


def test_what_cannot_be_read_is_offered_as_it_was_and_read_as_soon_as_it_can_be(shop: Shop) -> None:
    before = shop.catalogue.models()
    shop.shut = True
    shop.change()
    assert shop.catalogue.models() == before
    shop.shut = False
    shop.models = {"base": []}
    assert [model.id for model in shop.catalogue.models()] == ["base"]


def test_what_could_never_be_read_is_an_error(shop: Shop) -> None:
    shop.adapter.unlink()
    with pytest.raises(AdapterError, match=r"a\.gguf"):
        shop.catalogue.models()

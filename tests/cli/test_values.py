from __future__ import annotations

import click
import pytest

from agent.cli.values import MEMORY, NAMES, spoken


@pytest.mark.parametrize(
    ("word", "mib"),
    [("900MB", 858), ("1.5GB", 1430), ("900MiB", 900), ("2 GiB", 2048), ("700", 700), ("512m", 488), ("1.5g", 1430)],
)
def test_an_amount_of_memory_is_understood_as_mib(word: str, mib: int) -> None:
    assert MEMORY.convert(word, None, None) == mib


@pytest.mark.parametrize("word", ["", "lots", "-5", "5TB", "0", "1e3MB", "900 M B"])
def test_what_is_no_amount_of_memory_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(click.BadParameter, match="write 900MB"):
        MEMORY.convert(word, None, None)


def test_names_stand_between_commas_and_count_once() -> None:
    assert NAMES.convert("q_proj, v_proj,q_proj,", None, None) == ("q_proj", "v_proj")
    with pytest.raises(click.BadParameter, match="names nothing"):
        NAMES.convert(" , ", None, None)


def test_durations_are_spoken_in_the_unit_that_people_use() -> None:
    assert [spoken(seconds) for seconds in (12.4, 600, 9000)] == ["12 seconds", "10 minutes", "2.5 hours"]

"""Every committed input, and a bounded number of changed ones, through every target; atheris looks much longer."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutations
from tests.fuzz.target import CORPUS, REGRESSIONS
from tests.fuzz.targets import all_targets

TARGETS = all_targets()
KEPT = {name: tuple(path.read_bytes() for path in target.kept()) for name, target in TARGETS.items()}
MOST_BYTES = 1_000_000
_every_target = pytest.mark.parametrize("name", TARGETS)
_the_same_each_time = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    phases=[Phase.generate],  # a finding that is slow would be slow hundreds of times while it is made smaller
    suppress_health_check=list(HealthCheck),
)


@_every_target
def test_kept_inputs_are_read_or_refused(name: str) -> None:
    assert KEPT[name], "run python -m tests.fuzz.make_corpus"
    for data in KEPT[name]:
        TARGETS[name].check(data)


@_every_target
def test_a_good_input_is_among_the_seeds(name: str) -> None:
    """Else a target might refuse everything and nobody would notice."""
    target = TARGETS[name]

    def is_read(data: bytes) -> bool:
        try:
            target.run(data)
        except target.refusals:
            return False
        return True

    assert any(map(is_read, KEPT[name]))


@_every_target
@_the_same_each_time
@given(which=st.integers(0, 1000), seed=st.integers(0, 2**32), steps=st.integers(1, 6))
def test_changed_inputs_are_read_or_refused(name: str, which: int, seed: int, steps: int) -> None:
    target, kept = TARGETS[name], KEPT[name]
    target.check(mutations(kept[which % len(kept)], target.form, seed, steps, target.max_bytes))


@_every_target
@_the_same_each_time
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(name: str, data: bytes) -> None:
    TARGETS[name].check(data)


def test_corpus_is_small_and_belongs_to_targets() -> None:
    files = [path for root in (CORPUS, REGRESSIONS) for path in root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert {path.parent.name for path in files} == set(TARGETS)

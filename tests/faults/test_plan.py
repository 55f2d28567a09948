from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.plan import EVERY_REAL, KINDS, WIRE, make_plan


@given(st.integers(0, 2**32))
def test_a_seed_gives_the_same_plan_each_time(seed: int) -> None:
    assert make_plan(seed) == make_plan(seed)


@given(st.integers(0, 2**32))
def test_a_plan_is_one_that_can_be_lived_through(seed: int) -> None:
    plan = make_plan(seed)
    assert 2 <= len(plan.devices) <= 4
    assert 1 <= plan.quorum <= len(plan.devices)
    assert 1 <= plan.rounds <= 3
    assert 1 <= len(plan.faults) <= 6
    for fault in plan.faults:
        assert fault.at >= 1
        assert fault.who in {"hub", "broker", *plan.devices}
        assert fault.kind == "clock" or 0 <= fault.seconds <= 4


def test_300_seeds_have_every_kind_of_fault_many_times_everywhere() -> None:
    plans = [make_plan(seed) for seed in range(300)]
    faults = [fault for plan in plans for fault in plan.faults]
    kinds = Counter(fault.kind for fault in faults)
    assert set(kinds) == set(KINDS)
    assert all(count >= 40 for kind, count in kinds.items() if kind != "kill-worker")
    assert kinds["kill-worker"] == sum(plan.real_workers for plan in plans) == 300 // EVERY_REAL
    everywhere = {(kind, way) for kind in WIRE for way in ("to-broker", "to-client")}
    assert {(fault.kind, fault.direction) for fault in faults if fault.kind in WIRE} == everywhere
    for kind in ("kill-at-write", "full-disk", "clock", "kill-at-event"):
        assert {fault.who.split("-")[0] for fault in faults if fault.kind == kind} == {"hub", "device"}

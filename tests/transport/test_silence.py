from hypothesis import given
from hypothesis import strategies as st

from agent.transport.silence import Silence


def test_nothing_in_flight_is_no_silence() -> None:
    silence = Silence(patience=60)
    assert silence.left(1e9) is None
    silence.sent(1, 0)
    silence.acknowledged(1, 59)
    assert silence.left(1e9) is None


def test_a_publish_without_an_answer_uses_patience_up() -> None:
    silence = Silence(patience=60)
    silence.sent(1, 100)
    assert (silence.left(110), silence.left(160), silence.left(1000)) == (50, 0, 0)


def test_later_acknowledgements_do_not_excuse_the_oldest_publish() -> None:
    silence = Silence(patience=60)
    for mid in (1, 2, 3):
        silence.sent(mid, 0)
    silence.acknowledged(2, 50)
    assert silence.left(60) == 0
    silence.acknowledged(1, 70)
    assert silence.left(80) == 50


def test_a_new_connection_begins_anew() -> None:
    silence = Silence(patience=60)
    silence.sent(1, 0)
    silence.connected(100)
    assert silence.left(130) == 30


@given(st.lists(st.floats(0.1, 59), min_size=1, max_size=30))
def test_a_slow_line_that_acknowledges_in_order_is_never_too_silent(seconds: list[float]) -> None:
    silence = Silence(patience=60)
    for mid in range(len(seconds)):
        silence.sent(mid, 0)
    now = 0.0
    for mid, wait in enumerate(seconds):
        now += wait
        left = silence.left(now)
        assert left is not None
        assert left > 0
        silence.acknowledged(mid, now)
    assert silence.left(now + 1000) is None

"""What every link promises, whatever carries it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from agent.errors import BrokerRefusedError, BrokerUnreachableError, OversizedMessageError, StateError
from agent.transport.link import MAX_PACKET_BYTES, Link, LinkState, Presence
from agent.transport.topics import Topics
from tests.transport.conftest import ALICE, BOB, COMMUNITY, Net, take

T = Topics(COMMUNITY)


async def test_a_message_arrives_at_whoever_asked_for_it(net: Net) -> None:
    async with net.link("hub") as hub, net.link(ALICE) as alice:
        await hub.subscribe(T.all_from())
        await alice.publish(T.from_(ALICE, "update"), b"\x00\xff")
        (message,) = await take(hub, 1)
    assert (message.topic, message.payload, message.retained) == (T.from_(ALICE, "update"), b"\x00\xff", False)


async def test_many_messages_arrive_each_once_and_in_order(net: Net) -> None:
    async with net.link("hub") as hub, net.link(ALICE) as alice:
        await hub.subscribe(T.all_from())
        bodies = [str(number).encode() for number in range(150)]
        sending = asyncio.gather(*(alice.publish(T.from_(ALICE, "chunk"), body) for body in bodies))
        received = await take(hub, 150)
        await sending
    assert [message.payload for message in received] == bodies


async def test_the_largest_packet_arrives_and_a_larger_one_is_refused_here(net: Net) -> None:
    topic = T.from_(ALICE, "chunk")
    fits = MAX_PACKET_BYTES - 16 - len(topic)
    async with net.link("hub") as hub, net.link(ALICE) as alice:
        await hub.subscribe(T.all_from())
        with pytest.raises(OversizedMessageError):
            await alice.publish(topic, bytes(fits + 1))
        await alice.publish(topic, bytes(fits))
        (message,) = await take(hub, 1)
    assert message.payload == bytes(fits)


async def test_a_retained_message_reaches_a_later_subscriber_until_it_is_cleared(net: Net) -> None:
    async with net.link("hub") as hub, net.link(ALICE) as alice, net.link(BOB) as bob:
        await hub.publish(T.hub("card"), b"old", retain=True)
        await hub.publish(T.hub("card"), b"new", retain=True)
        await alice.subscribe(T.hub("card"))
        (kept,) = await take(alice, 1)
        assert (kept.payload, kept.retained) == (b"new", True)
        await hub.publish(T.hub("card"), b"", retain=True)
        await bob.subscribe(T.hub("card"))
        await hub.publish(T.hub("card"), b"live")
        (live,) = await take(bob, 1)
        assert (live.payload, live.retained) == (b"live", False)


async def test_what_is_not_acknowledged_comes_again_after_a_break(net: Net) -> None:
    async with net.link("hub") as hub, net.link(ALICE) as alice:
        await hub.subscribe(T.all_from())
        for body in (b"handled", b"lost"):
            await alice.publish(T.from_(ALICE, "update"), body)
        handled, lost = await take(hub, 2, ack=False)
        handled.ack()
        handled.ack()  # twice does no harm
        await hub.publish(T.hub("round"), b"fence")  # once it is taken, the broker has seen the acknowledgement
        net.cut(hub)
        again = await take(hub, 1, within=net.patience)
        lost.ack()  # of a connection that is gone: nothing may come of it
        assert [message.payload for message in again] == [b"lost"]
        await alice.publish(T.from_(ALICE, "update"), b"next")
        (following,) = await take(hub, 1)
        assert following.payload == b"next"


async def test_what_came_for_an_absent_session_waits_for_it(net: Net) -> None:
    async with net.link(ALICE) as alice:
        await alice.subscribe(T.all_to(ALICE))
    async with net.link("hub") as hub:
        await hub.publish(T.to(ALICE, "receipt"), b"while you were away")
    async with net.link(ALICE) as alice:
        (message,) = await take(alice, 1)
    assert message.payload == b"while you were away"


async def test_two_live_links_with_one_id_do_not_lose_what_is_sent_and_do_not_storm(net: Net) -> None:
    """They take turns, with longer and longer waits, and whoever is in gets what is sent."""
    changes: list[bool] = []
    async with net.link("hub") as hub, net.link(ALICE) as one, net.link(ALICE) as other:
        for link in (one, other):
            link.on_state(lambda state: changes.append(state.connected))
        await other.subscribe(T.all_to(ALICE))
        heard = asyncio.Event()

        async def listen(link: Link) -> None:
            async for message in link.messages():
                message.ack()
                heard.set()

        listening = [asyncio.create_task(listen(link)) for link in (one, other)]
        async with asyncio.timeout(2 * net.patience):
            while changes.count(True) < 4:
                await hub.publish(T.hub("round"), b"fence")
            await hub.publish(T.to(ALICE, "receipt"), b"for whoever is in")
            await heard.wait()
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


async def test_publishing_over_an_outage_waits_and_then_arrives(net: Net) -> None:
    async with net.link("hub") as hub, net.link(ALICE) as alice:
        await alice.subscribe(T.hub("round"))
        await net.go_down()
        waiting = asyncio.gather(*(hub.publish(T.hub("round"), b"open", retain=True) for _ in range(30)))
        cancelled = asyncio.create_task(hub.publish(T.hub("round"), b"given up", retain=True))
        await asyncio.sleep(0)
        cancelled.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        assert not waiting.done()
        await net.come_back()
        async with asyncio.timeout(10):
            await waiting
        await hub.publish(T.hub("round"), b"last", retain=True)
        async with asyncio.timeout(10):
            async for message in alice.messages():
                message.ack()
                if message.payload == b"last":
                    break


async def test_state_is_told_when_the_link_breaks_and_when_it_is_back(net: Net) -> None:
    async with net.link(ALICE) as alice:
        states: asyncio.Queue[LinkState] = asyncio.Queue()
        await alice.wait_connected(5)
        alice.on_state(states.put_nowait)
        await net.go_down()
        async with asyncio.timeout(10):
            while (await states.get()).connected:
                pass
            assert not alice.connected
            with pytest.raises(BrokerUnreachableError):
                await alice.wait_connected(0.01)
            await net.come_back()
            while not (await states.get()).connected:
                pass
        assert alice.connected


@pytest.mark.parametrize("when", ["it breaks", "it is back"])
async def test_a_listener_that_fails_ends_the_link_with_its_error_instead_of_its_mending(net: Net, when: str) -> None:
    def fail(state: LinkState) -> None:
        if state.connected is (when == "it is back"):
            raise StateError("no room to write down that the link has changed", advice="Free some.")

    async with net.link(ALICE) as alice:
        await alice.subscribe(T.all_to(ALICE))
        alice.on_state(fail)
        listening = asyncio.create_task(take(alice, 1))
        await net.go_down()
        waiting = asyncio.create_task(alice.publish(T.from_(ALICE, "x"), b""))
        await net.come_back()
        async with asyncio.timeout(10):
            results = await asyncio.gather(listening, waiting, return_exceptions=True)
        assert [type(result) for result in results] == [StateError, StateError]
        with pytest.raises(StateError):
            await alice.publish(T.from_(ALICE, "x"), b"")
        with pytest.raises(StateError):
            await alice.subscribe(T.hub("round"))


async def test_closing_releases_whoever_waits_for_the_broker(net: Net) -> None:
    async with net.link(ALICE) as alice:
        gone = asyncio.Event()
        alice.on_state(lambda state: None if state.connected else gone.set())
        await net.go_down()
        async with asyncio.timeout(10):
            await gone.wait()
        waiting = [asyncio.create_task(alice.publish(T.from_(ALICE, "x"), b"")) for _ in range(12)]
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, BrokerUnreachableError) for result in results)
    with pytest.raises(BrokerUnreachableError):
        await alice.publish(T.from_(ALICE, "x"), b"")
    assert [message async for message in alice.messages()] == []
    await net.come_back()


async def test_nobody_there_is_an_error_with_advice(net: Net) -> None:
    await net.go_down()
    with pytest.raises(BrokerUnreachableError) as caught:
        async with net.link(ALICE):
            pass
    assert caught.value.advice
    await net.come_back()


async def test_a_patient_link_waits_for_a_broker_that_is_down_at_first(net: Net) -> None:
    await net.go_down()
    states: asyncio.Queue[LinkState] = asyncio.Queue()
    link = net.link("hub", patient=True)
    link.on_state(states.put_nowait)
    async with link as hub:
        assert not hub.connected
        waiting = asyncio.gather(hub.subscribe(T.all_from()), hub.publish(T.hub("card"), b"late", retain=True))
        async with asyncio.timeout(10):
            assert "waiting for the broker" in (await states.get()).reason
            assert not waiting.done()
            await net.come_back()
            while not (state := await states.get()).connected:
                pass
            await waiting
        assert state.broker
        async with net.link(ALICE) as alice:
            await alice.subscribe(T.hub("card"))
            assert [message.payload for message in await take(alice, 1)] == [b"late"]
            await alice.publish(T.from_(ALICE, "update"), b"heard")
            assert [message.payload for message in await take(hub, 1)] == [b"heard"]


async def test_closing_a_patient_link_that_never_connected_releases_whoever_waits(net: Net) -> None:
    await net.go_down()
    async with net.link("hub", patient=True) as hub:
        waiting = asyncio.create_task(hub.publish(T.hub("card"), b""))
        await asyncio.sleep(0)
    with pytest.raises(BrokerUnreachableError):
        await waiting
    assert [message async for message in hub.messages()] == []
    await net.come_back()


async def test_a_wrong_password_ends_a_link_that_waited_for_the_broker_with_an_error(net: Net) -> None:
    if not net.checks_passwords:
        pytest.skip(f"{net.name} is not given passwords to check here; tests/transport/test_mqtt.py does that")
    await net.go_down()
    async with net.link("hub", password="wrong", patient=True) as hub:
        waiting = asyncio.gather(
            hub.subscribe(T.all_from()), hub.publish(T.hub("card"), b""), take(hub, 1), return_exceptions=True
        )
        await asyncio.sleep(0)
        await net.come_back()
        async with asyncio.timeout(10):
            assert [type(error) for error in await waiting] == [BrokerRefusedError] * 3
        with pytest.raises(BrokerRefusedError) as caught:
            await hub.publish(T.hub("card"), b"")
    assert caught.value.advice


async def test_birth_will_and_farewell_are_retained_and_paired_by_the_session(net: Net) -> None:
    sessions = iter(range(10))

    def presence() -> Presence:
        session = next(sessions)
        return Presence(topic=T.life(ALICE), birth=b"here %d" % session, will=b"gone %d" % session)

    async with net.link("hub") as hub:
        await hub.subscribe(T.all_lives())
        async with net.link(ALICE, presence=presence) as alice:
            assert (await take(hub, 1))[0].payload == b"here 0"
            net.cut(alice)
            assert [message.payload for message in await take(hub, 2)] == [b"gone 0", b"here 1"]
        assert (await take(hub, 1))[0].payload == b"gone 1"
        async with net.link("hub", client_id="later") as later:
            await later.subscribe(T.life(ALICE))
            (kept,) = await take(later, 1)
            assert (kept.payload, kept.retained) == (b"gone 1", True)


async def test_a_device_cannot_read_what_is_not_for_it(net: Net) -> None:
    """Denied at once, or granted and never served: brokers differ, and both are allowed."""
    async with net.link("hub") as hub, net.link(ALICE) as alice, net.link(BOB) as bob:
        await hub.publish(T.to(ALICE, "receipt"), b"secret", retain=True)
        await alice.publish(T.life(ALICE), b"secret", retain=True)
        for asked in ("#", T.all_from(), f"bramble/{COMMUNITY}/from/#", T.to(ALICE, "receipt"), T.all_lives()):
            with contextlib.suppress(BrokerRefusedError):
                await bob.subscribe(asked)
        await bob.subscribe(T.all_to(BOB))
        await alice.publish(T.from_(ALICE, "update"), b"secret")
        await hub.publish(T.to(ALICE, "receipt"), b"secret")
        await hub.publish(T.to(BOB, "receipt"), b"for bob")
        received = {(await take(bob, 1))[0].payload}
        net.cut(bob)
        await hub.publish(T.to(BOB, "receipt"), b"again for bob")
        while b"again for bob" not in received:  # the first may come twice, if its acknowledgement was cut off
            received.add((await take(bob, 1))[0].payload)
    assert received == {b"for bob", b"again for bob"}


async def test_a_device_cannot_speak_for_another(net: Net) -> None:
    async with net.link("hub") as hub, net.link(BOB) as bob:
        await hub.subscribe(f"bramble/{COMMUNITY}/#")
        for topic in (T.from_(ALICE, "update"), T.hub("release"), T.to(ALICE, "receipt"), T.life(ALICE)):
            if net.refuses_publishes:
                with pytest.raises(BrokerRefusedError):
                    await bob.publish(topic, b"forged", retain=True)
            else:
                await bob.publish(topic, b"forged", retain=True)
        await bob.publish(T.from_(BOB, "update"), b"mine")
        (message,) = await take(hub, 1)
    assert message.payload == b"mine"


async def test_no_more_comes_after_unsubscribing(net: Net) -> None:
    async with net.link("hub") as hub, net.link(ALICE) as alice:
        await alice.subscribe(T.hub("round"))
        await alice.subscribe(T.hub("trial"))
        await alice.unsubscribe(T.hub("round"))
        await alice.subscribe(T.hub("release"))  # a fence: the broker handles them in turn
        await hub.publish(T.hub("round"), b"unwanted")
        await hub.publish(T.hub("trial"), b"wanted")
        (message,) = await take(alice, 1)
    assert message.payload == b"wanted"


async def test_a_newer_link_takes_over_the_session_of_its_client_id(net: Net) -> None:
    async with net.link("hub") as hub:
        old = net.link(ALICE)
        await old.__aenter__()
        await old.subscribe(T.all_to(ALICE))
        net.cut(old)
        await old.__aexit__(None, None, None)
        async with net.link(ALICE) as new:
            await hub.publish(T.to(ALICE, "receipt"), b"to the new one")
            (message,) = await take(new, 1)
    assert message.payload == b"to the new one"

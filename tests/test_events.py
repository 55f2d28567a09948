from __future__ import annotations

import io
import json

from agent.events import Events


def test_an_event_is_one_line_of_json_for_programs() -> None:
    stream = io.StringIO()
    Events(stream=stream, as_json=True).say("merged", "two\nlines", round=3)
    found = json.loads(stream.getvalue())
    assert (found["event"], found["round"], found["text"]) == ("merged", 3, "two\nlines")
    assert stream.getvalue().count("\n") == 1


def test_an_event_without_words_is_not_shown_to_people() -> None:
    stream = io.StringIO()
    events = Events(stream=stream)
    events.say("progress", step=1)
    events.say("merged", "two updates became one")
    assert stream.getvalue().count("\n") == 1
    assert "two updates became one" in stream.getvalue()


def test_a_voice_says_what_it_is_about_with_every_event() -> None:
    heard = []
    events = Events(quiet=True, listeners=[lambda event, fields: heard.append((event, fields))])
    voice = events.about(device="ada")
    voice.context["round"] = 3
    voice.say("trained", steps=2)
    voice.say("receipt", round=2)
    events.say("link")
    assert heard == [
        ("trained", {"device": "ada", "round": 3, "steps": 2}),
        ("receipt", {"device": "ada", "round": 2}),
        ("link", {}),
    ]


def test_listeners_hear_events_even_when_nothing_is_printed() -> None:
    heard = []
    Events(quiet=True, listeners=[lambda event, fields: heard.append((event, fields))]).say("merged", "x", round=1)
    assert heard == [("merged", {"round": 1})]

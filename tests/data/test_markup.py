from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.data.markup import html_to_text


def test_a_page_becomes_what_a_reader_sees() -> None:
    page = """<!doctype html><html><head><title>Bees &amp; brambles</title><style>p {color: red}</style></head>
    <body><nav>Home | About</nav><h1>Bees</h1><p>They <b>like</b>
      brambles.<br>And sun.</p><ul><li>one<li>two</ul><script>if (a < b) alert("</p>")</script>
    <table><tr><td>a</td><td>b</td></tr></table></body></html>"""
    assert html_to_text(page) == ("Bees & brambles\n\nBees\n\nThey like brambles.\nAnd sun.\n\none\n\ntwo\n\na b")


def test_preformatted_text_keeps_its_lines() -> None:
    assert html_to_text("<p>see</p><pre>\ndef f():\n    return 1\n</pre><p>after\n it") == (
        "see\n\ndef f():\n    return 1\n\nafter it"
    )


def test_broken_markup_hides_nothing_after_it() -> None:
    assert html_to_text("<p>one</script><p>two <svg/> three</style></pre> four<svg><g>no</svg> five") == (
        "one\n\ntwo three\n\nfour five"
    )


@given(text=st.text(alphabet="<>/pre scriptb&;\n\"'=!-x", max_size=200))
def test_no_markup_stops_the_reader(text: str) -> None:
    assert len(html_to_text(text)) <= len(text) + 2


def test_tags_end_where_browsers_end_them() -> None:
    assert html_to_text("""<p title="a > b">one</p><p title='>'>two <a href=x/y>three</a><img alt="<p>"/>four""") == (
        "one\n\ntwo threefour"
    )
    assert html_to_text("1 < 2 <3 </ > <?php a ?> <!doctype x> <!-- <p> --> </3>end") == "1 < 2 <3 end"
    assert html_to_text("said <p class='never closed") == "said"


def test_text_of_a_script_is_not_seen_and_that_of_a_textarea_is() -> None:
    assert html_to_text("<SCRIPT>'</scripted>'</Script >a<textarea><b> &lt;</textarea><style>never closed") == "a<b> <"


def test_number_that_is_no_character_is_none() -> None:
    assert html_to_text(f"&#65;&#x42;&#{'9' * 5000};&#x{'f' * 5000}!") == "AB\ufffd\ufffd!"

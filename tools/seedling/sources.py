"""The Debian packages that the seedling's text comes from.

Every package is in Debian *main*: free to use, change and pass on, for any purpose. A package is named with the files
that hold its English prose. What Sphinx, Haddock or Doxygen generated out of source code is left out by path or, inside
a page, by its markup (see ``Source.drop_api``): the seedling must never have seen Python docstrings or comments, since
fine-tuning on those is what the project demonstrates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["html", "man", "info", "mallard", "markdown", "text", "preformatted", "wesnoth", "dict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One kind of file in one package."""

    package: str
    """Binary package in Debian main."""
    licence: str
    """Licence of the text, in the words of the package's copyright file."""
    kind: Kind = "html"
    paths: tuple[str, ...]
    """Glob patterns below the package's root."""
    skip: tuple[str, ...] = ()
    """Parts of a path that rule a file out (other languages, generated reference)."""
    drop_api: bool = False
    """Drop Sphinx ``dl`` blocks that were generated from docstrings or source comments."""
    prose: bool = True
    """Whether the text itself is used, or only exchanges (see ``chat``) made from it."""
    megabytes: float = 3.0
    """At most this much cleaned text is kept, spread over all files."""


def _html(package: str, licence: str, *paths: str, **options: object) -> Source:
    return Source(package=package, licence=licence, paths=paths, **options)  # type: ignore[arg-type]


def _man(package: str, licence: str, megabytes: float = 1.5) -> Source:
    paths = ("usr/share/man/man[0-9]*/*.gz",)
    return Source(package=package, licence=licence, kind="man", paths=paths, megabytes=megabytes)


def _info(package: str, licence: str) -> Source:
    return Source(package=package, licence=licence, kind="info", paths=("usr/share/info/*.gz",), megabytes=1.5)


def _wesnoth(campaign: str) -> Source:
    return Source(
        package=f"wesnoth-1.16-{campaign}",
        licence="GPL-2+",
        kind="wesnoth",
        paths=("usr/share/games/wesnoth/1.16/data/campaigns/**/*.cfg",),
    )


_DOC = "usr/share/doc"
_NO_INDEX = ("genindex", "modindex", "/search.html", "/_static/", "/_modules/", "/_sources/")

SOURCES: tuple[Source, ...] = (
    # Debian's own books and manuals.
    _html("debian-handbook", "GPL-2+ or CC-BY-SA-3.0", f"{_DOC}/debian-handbook/html/en-US/*.html"),
    _html("debian-reference-en", "GPL-2+", "usr/share/debian-reference/*.en.html"),
    _html("debian-policy", "GPL-2+", f"{_DOC}/debian-policy/**/*.html", skip=("policy.ja", "ja/")),
    _html("developers-reference", "GPL-2+", "usr/share/developers-reference/*.html", skip=_NO_INDEX),
    _html("aptitude-doc-en", "GPL-2+", f"{_DOC}/aptitude/html/en/*.html"),
    _html("installation-guide-amd64", "GPL-2+", f"{_DOC}/installation-guide-amd64/en/*.html"),
    _html("debian-faq", "GPL-2+", f"{_DOC}/debian/FAQ/*.en.html"),
    _html("debian-kernel-handbook", "GPL-2+", f"{_DOC}/debian-kernel-handbook/**/*.html", skip=(".ja", ".fr")),
    _html("harden-doc", "GPL-2", f"{_DOC}/harden-doc/html/en-US/*.html"),
    _html("maint-guide", "GPL-2+", f"{_DOC}/maint-guide/html/*.en.html"),
    _html("debian-edu-doc-en", "GPL-2+", f"{_DOC}/debian-edu-doc-en/debian-edu-bookworm-manual.html"),
    _html("freedombox-doc-en", "CC-BY-SA-4.0", "usr/share/freedombox/manual/en/*.html"),
    # Desktop, graphics, music, engineering.
    _html("gimp-help-en", "GFDL-1.2+", "usr/share/gimp/2.0/help/en/*.html", megabytes=5),
    _html("libreoffice-help-en-us", "MPL-2.0", "usr/share/libreoffice/help/en-US/text/**/*.html", megabytes=7),
    Source(package="gnome-user-docs", licence="CC-BY-SA-3.0", kind="mallard", paths=("usr/share/help/C/**/*.page",)),
    Source(package="gnumeric-doc", licence="GFDL-1.1+", kind="mallard", paths=("usr/share/help/C/**/*.xml",)),
    _html("kicad-doc-en", "GPL-3+ or CC-BY-3.0+", f"{_DOC}/kicad/help/en/*.html"),
    _html(
        "lilypond-doc-html",
        "GFDL-1.3+",
        f"{_DOC}/lilypond/html/Documentation/**/*.html",
        skip=(
            ".ca.",
            ".cs.",
            ".de.",
            ".es.",
            ".fr.",
            ".hu.",
            ".it.",
            ".ja.",
            ".nl.",
            ".pt.",
            ".zh.",
            ".ru.",
            "/internals/",
            "/snippets/",
            "-big-page",
        ),
        megabytes=5,
    ),
    _html("imagemagick-6-doc", "ImageMagick", f"{_DOC}/imagemagick-6-common/html/www/*.html", skip=("/api/",)),
    _html("grass-doc", "GPL-2+", f"{_DOC}/grass-doc/html/*.html", skip=("/libpython/",), megabytes=4),
    _html("octave-doc", "GPL-3+", f"{_DOC}/octave/octave.html/*.html"),
    _html("maxima-doc", "GPL-2+", f"{_DOC}/maxima-doc/html/*.html", skip=("/de/", "/es/", "/pt/", "/ja/")),
    _html("r-doc-html", "GPL-2", "usr/share/R/doc/manual/*.html"),
    # Servers, databases, networks.
    _html("postgresql-doc-15", "PostgreSQL", f"{_DOC}/postgresql-doc-15/html/*.html", megabytes=8),
    _html("sqlite3-doc", "public domain", f"{_DOC}/sqlite3/**/*.html", skip=("changes", "/c3ref/"), megabytes=5),
    _html("apache2-doc", "Apache-2.0", f"{_DOC}/apache2-doc/manual/en/**/*.html", megabytes=5),
    _html("bind9-doc", "MPL-2.0", f"{_DOC}/bind9-doc/arm/*.html", skip=(*_NO_INDEX, "notes", "changelog")),
    _html("exim4-doc-html", "GPL-2+", f"{_DOC}/exim4-doc-html/**/*.html"),
    _html("postfix-doc", "EPL-2.0 or IPL-1.0", f"{_DOC}/postfix/html/*.html"),
    _html("haproxy-doc", "GPL-2+", f"{_DOC}/haproxy/html/*.html"),
    _html("rsyslog-doc", "Apache-2.0 and GFDL-1.2+", f"{_DOC}/rsyslog-doc/html/**/*.html", skip=_NO_INDEX),
    _html("shorewall-doc", "GFDL-1.2+", f"{_DOC}/shorewall-doc/html/*.htm*"),
    _html("borgbackup-doc", "BSD-3-clause", f"{_DOC}/borgbackup/html/**/*.html", skip=(*_NO_INDEX, "changes")),
    Source(
        package="icinga2-doc",
        licence="GPL-2+",
        kind="markdown",
        paths=(f"{_DOC}/icinga2/**/*.md*",),
        skip=("CHANGELOG",),
    ),
    _html("ganeti-doc", "BSD-2-clause", f"{_DOC}/ganeti/html/*.html", skip=_NO_INDEX),
    _html("gnutls-doc", "GFDL-1.3+", f"{_DOC}/gnutls-doc/html/gnutls.html"),
    _html("mutt", "GPL-2+", f"{_DOC}/mutt/html/*.html"),
    # Tools of the trade, Python's own documentation among them.
    _html(
        "python3.11-doc",
        "PSF-2",
        f"{_DOC}/python3.11/html/**/*.html",
        skip=(*_NO_INDEX, "/changelog.html"),
        megabytes=12,
    ),
    _html("git-doc", "GPL-2", f"{_DOC}/git-doc/**/*.html", skip=("RelNotes",), megabytes=4),
    _html("vim-doc", "Vim", f"{_DOC}/vim/html/*.html", kind="preformatted", megabytes=5),
    _html("bash-doc", "GFDL-1.3+", f"{_DOC}/bash/bashref.html"),
    _html("zsh-doc", "MIT-like (zsh)", f"{_DOC}/zsh-common/html/*.html"),
    _html("abs-guide", "public domain", f"{_DOC}/abs-guide/html/*.html"),
    _html("cmake-doc", "BSD-3-clause", f"{_DOC}/cmake-data/html/**/*.html", skip=(*_NO_INDEX, "/release/")),
    _html(
        "erlang-doc",
        "Apache-2.0",
        f"{_DOC}/erlang-doc/**/*.html",
        skip=("/man/", "release_notes", "notes.html", "/wx-", "megaco"),
        megabytes=5,
    ),
    _html(
        "fp-docs-3.2.2",
        "LGPL-2.1+",
        f"{_DOC}/fp-docs/3.2.2/ref/*.html",
        f"{_DOC}/fp-docs/3.2.2/user/*.html",
        f"{_DOC}/fp-docs/3.2.2/prog/*.html",
    ),
    _html("ghc-doc", "BSD-3-clause", f"{_DOC}/ghc-doc/html/users_guide/**/*.html", skip=_NO_INDEX),
    _html(
        "rust-doc",
        "MIT or Apache-2.0",
        *(
            f"{_DOC}/rust-doc/html/{book}/**/*.html"
            for book in (
                "book",
                "reference",
                "nomicon",
                "cargo",
                "rustdoc",
                "rustc",
                "rust-by-example",
                "edition-guide",
                "embedded-book",
                "unstable-book",
            )
        ),
        skip=("print.html",),
        megabytes=7,
    ),
    _html(
        "linux-doc-6.1",
        "GPL-2",
        f"{_DOC}/linux-doc-6.1/html/**/*.html",
        skip=(*_NO_INDEX, "/translations/", "/core-api/kernel-api", "/gpu/", "/ABI", "/abi"),
        drop_api=True,
        megabytes=10,
    ),
    # Python libraries: only the prose that people wrote around the reference.
    _html(
        "python-django-doc",
        "BSD-3-clause",
        f"{_DOC}/python-django-doc/html/**/*.html",
        skip=(*_NO_INDEX, "/releases/"),
        drop_api=True,
        megabytes=5,
    ),
    _html(
        "python-sqlalchemy-doc",
        "MIT",
        f"{_DOC}/python-sqlalchemy-doc/html/**/*.html",
        skip=(*_NO_INDEX, "/changelog/"),
        drop_api=True,
        megabytes=4,
    ),
    _html(
        "python-pandas-doc",
        "BSD-3-clause",
        f"{_DOC}/python-pandas-doc/html/user_guide/*.html",
        f"{_DOC}/python-pandas-doc/html/development/*.html",
        f"{_DOC}/python-pandas-doc/html/getting_started/**/*.html",
        drop_api=True,
    ),
    _html(
        "python-scipy-doc",
        "BSD-3-clause",
        f"{_DOC}/python-scipy-doc/html/tutorial/**/*.html",
        f"{_DOC}/python-scipy-doc/html/dev/**/*.html",
        drop_api=True,
    ),
    _html(
        "python-sklearn-doc",
        "BSD-3-clause",
        f"{_DOC}/python-sklearn-doc/html/**/*.html",
        skip=(*_NO_INDEX, "/generated/", "/whats_new", "plot_"),
        drop_api=True,
    ),
    _html(
        "python-flask-doc",
        "BSD-3-clause",
        f"{_DOC}/python-flask-doc/html/**/*.html",
        skip=(*_NO_INDEX, "changes"),
        drop_api=True,
    ),
    _html(
        "python-celery-doc",
        "BSD-3-clause and CC-BY-SA-4.0",
        f"{_DOC}/python-celery-doc/html/**/*.html",
        skip=(*_NO_INDEX, "/reference/", "/internals/reference/", "changelog", "/history/"),
        drop_api=True,
    ),
    _html(
        "python-scrapy-doc",
        "BSD-3-clause",
        f"{_DOC}/python-scrapy-doc/html/**/*.html",
        skip=(*_NO_INDEX, "news"),
        drop_api=True,
    ),
    _html("python-tornado-doc", "Apache-2.0", f"{_DOC}/python-tornado-doc/html/guide/*.html", drop_api=True),
    _html(
        "sphinx-doc", "BSD-2-clause", f"{_DOC}/sphinx-doc/html/**/*.html", skip=(*_NO_INDEX, "changes"), drop_api=True
    ),
    _html("buildbot-doc", "GPL-2", f"{_DOC}/buildbot/html/**/*.html", skip=(*_NO_INDEX, "relnotes"), drop_api=True),
    _html("beets-doc", "MIT", f"{_DOC}/beets/html/**/*.html", skip=(*_NO_INDEX, "changelog"), drop_api=True),
    _html(
        "keystone-doc",
        "Apache-2.0",
        f"{_DOC}/keystone-doc/html/**/*.html",
        skip=(*_NO_INDEX, "/api/", "/code_"),
        drop_api=True,
    ),
    # Manual pages.
    _man("manpages", "GPL-2+, BSD and others (see copyright)"),
    _man("manpages-dev", "GPL-2+, BSD and others (see copyright)", 3),
    _man("perl-doc", "Artistic or GPL-1+", 5),
    _man("libssl-doc", "Apache-2.0", 2),
    _man("systemd", "LGPL-2.1+", 2),
    _man("util-linux", "GPL-2+"),
    _man("coreutils", "GPL-3+"),
    _man("iproute2", "GPL-2"),
    _man("openssh-client", "BSD-like"),
    _man("rsync", "GPL-3+"),
    _man("apt", "GPL-2+"),
    _man("dpkg", "GPL-2+"),
    _man("debhelper", "GPL-2+"),
    _man("devscripts", "GPL-2+"),
    _man("procps", "GPL-2+"),
    _man("wget", "GPL-3+"),
    _man("gnupg", "GPL-3+"),
    _man("git-doc", "GPL-2"),
    # Info manuals in main (no invariant sections).
    _info("coreutils", "GFDL-1.3+"),
    _info("wget", "GFDL-1.3+"),
    _info("findutils", "GFDL-1.3+"),
    _info("diffutils", "GFDL-1.3+"),
    _info("sed", "GFDL-1.3+"),
    _info("grep", "GFDL-1.3+"),
    _info("units", "GFDL-1.3+"),
    _info("gnupg", "GPL-3+"),
    # Stories, so that not everything is a manual.
    *(
        _wesnoth(c)
        for c in (
            "httt",
            "tsg",
            "utbs",
            "nr",
            "did",
            "dm",
            "thot",
            "trow",
            "sotbe",
            "low",
            "ei",
            "l",
            "sof",
            "sota",
            "dw",
        )
    ),
    Source(package="miscfiles", licence="public domain", kind="text", paths=("usr/share/state/*.gz",)),
    Source(
        package="doc-debian",
        licence="GPL-2+",
        kind="text",
        paths=(f"{_DOC}/debian/**/*.txt*",),
        skip=(".es", ".fr", ".de"),
    ),
    # Dictionaries.
    Source(
        package="dict-foldoc",
        licence="GFDL-NIV-1.1+",
        kind="dict",
        paths=("usr/share/dictd/foldoc.index",),
        megabytes=4,
    ),
    Source(
        package="dict-wn", licence="WordNet", kind="dict", paths=("usr/share/dictd/wn.index",), prose=False, megabytes=3
    ),
    Source(
        package="dict-vera",
        licence="GFDL-NIV-1.1+",
        kind="dict",
        paths=("usr/share/dictd/vera.index",),
        prose=False,
        megabytes=1,
    ),
)

"""The documentation: every figure is there with its command, and nothing comes from elsewhere."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpuconv.kernels.cuda import compiler

SOURCES = Path(__file__).parents[1] / "docs"
PAGES = sorted(path.name for path in SOURCES.glob("*.html"))
EXPLAIN = '<figure data-command="gpuconv explain --input 5 --kernel 3">In words.</figure>'
pytest.importorskip("matplotlib")


class Page(HTMLParser):
    """What a test needs of a page: its text by what it is in, and where it points to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []  # that a reader may follow
        self.loaded: list[str] = []  # without being asked
        self.unnamed: list[str] = []  # pictures that say nothing to those who cannot see them
        self.commands: list[str] = []
        self.inside: list[str] = []
        self.outputs = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "a":
            self.links.append(given["href"])
        self.loaded += [
            given[name] for name in ("src", "srcset", "data", "poster") if name in given
        ]
        self.loaded += [given["href"]] if tag == "link" else []
        self.loaded += re.findall(r"url\(([^)]*)\)", given.get("style", ""))
        if tag in ("img", "iframe") and not (given.get("alt") or given.get("title")):
            self.unnamed.append(given["src"])
        if tag == "pre":
            self.outputs += given.get("class") == "output"
            self.commands += [""] if given.get("class") == "command" else []
            self.inside.append(given.get("class", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre":
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if self.inside == ["command"]:
            self.commands[-1] += data


def build(out: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SOURCES / "build.py", str(out), *map(str, options)],
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )


def commands(source: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r'data-command="([^"]*)"', source)]


def broken_links(out: Path, name: str, page: Page) -> list[str]:
    broken = []
    for link in page.links + page.loaded:
        path, _, place = link.partition("#")
        target = out / (path or name)
        there = target.is_file() and (not place or place in Page(target).ids)
        if not there and not (link in page.links and link.startswith("https://")):
            broken.append(link)
    return broken


def test_the_pages(tmp_path: Path) -> None:
    """One test, so that all is built once however tests are spread over processes."""
    from PIL import Image

    out = tmp_path / "site"
    done = build(out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(path.name for path in out.glob("*.html")) == PAGES
    compiles = bool(compiler.version("numba-cuda"))
    assert done.stdout.count("no CUDA compiler here") == (not compiles)
    for name in PAGES:
        source = (SOURCES / name).read_text(encoding="utf-8")
        page, text = Page(out / name), (out / name).read_text(encoding="utf-8")
        assert page.commands == commands(source) != [], name
        assert "data-command" not in text, name
        written = [words[1] for c in page.commands if len(words := c.split(" -o ")) == 2]
        absent = 0 if compiles else source.count("data-needs")
        assert text.count('class="absent"') == absent, name
        assert page.outputs == len(page.commands) - len(written), name
        shown = {f"figures/{file}" for file in written}
        assert len(shown) == len(written), f"{name}: two commands write one file"
        assert len(shown & set(page.loaded)) == len(shown) - absent, name
        assert shown >= set(page.loaded) - {"style.css"}, f"{name} shows what no command made"
        assert broken_links(out, name, page) == [], name
        assert page.unnamed == [], name
    elsewhere = re.compile(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\((?!data:)|@import""")
    for file in [*out.glob("*.*"), *out.glob("figures/*.html")]:
        assert not elsewhere.search(file.read_text(encoding="utf-8")), file.name
    pictures = [p for p in out.glob("figures/*") if p.suffix in (".png", ".gif", ".jpg")]
    assert len(pictures) > 20
    for path in pictures:
        with Image.open(path) as image:
            image.load()
    assert sum(path.stat().st_size for path in out.glob("figures/*.*")) < 10e6


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/build.py, to build single pages to `tmp_path` in this process."""
    (tmp_path / "figures").mkdir()
    monkeypatch.chdir(tmp_path)  # and back, after `build_page` went elsewhere
    spec: Any = importlib.util.spec_from_file_location("docs_build", SOURCES / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ('<figure data-command="gpuconv viz conv --image 2x2 --kernel 3 -o x.png" data-alt="No.">'
         "</figure>", ["gpuconv viz conv --image 2x2 --kernel 3 -o x.png", "status 1", "kernel"]),
        ('<figure data-command="gpuconv explain --input 5"></figure>', ["status 2", "--kernel"]),
        ('<figure data-command="gpuconv viz matrix -o x.png"></figure>', ["data-alt"]),
        ('<figure data-command="gpuconv viz matrix -o x.png --help"></figure>', ["wrote no x.png"]),
        ('<figure data-command="python x.py"></figure>', ["python x.py", "one of gpuconv"]),
        ("<figure>A picture.</figure>", ["a figure is not"]),
    ],
)  # fmt: skip
def test_what_fails_the_build(
    figure: str, words: list[str], builder: ModuleType, tmp_path: Path
) -> None:
    page = tmp_path / "wrong.html"
    page.write_text(figure, encoding="utf-8")
    with pytest.raises(builder.DocsError) as caught:
        builder.build_page(page, tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    for word in ["wrong.html", *words]:
        assert word in said


def test_without_the_compiler_only_its_figures_are_left_out(
    builder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "version", lambda _: None)
    (tmp_path / "sources").mkdir()
    page = tmp_path / "sources" / "some.html"
    drawn = '<figure data-command="gpuconv viz tile -o t.png" data-alt="T." data-needs="compiler">'
    page.write_text(f"{EXPLAIN}{drawn}Blocks.</figure>", encoding="utf-8")
    (line,) = builder.build_page(page, tmp_path)
    assert "some.html" in line
    assert "left out: 1" in line
    built = Page(tmp_path / "some.html")
    assert built.commands == ["gpuconv explain --input 5 --kernel 3", "gpuconv viz tile -o t.png"]
    text = (tmp_path / "some.html").read_text(encoding="utf-8")
    assert text.count('class="absent"') == 1
    assert "Blocks." in text
    assert "t.png" not in built.loaded


def test_a_build_appears_whole_and_replaces_only_a_build(tmp_path: Path) -> None:
    sources, out = tmp_path / "sources", tmp_path / "out"
    sources.mkdir()
    (sources / "style.css").write_text("")
    page = sources / "page.html"
    page.write_text(f"<p>one</p>{EXPLAIN}")
    assert build(out, "--sources", sources).returncode == 0
    assert "<p>one</p>" in (out / "page.html").read_text()

    page.write_text('<p>two</p><figure data-command="gpuconv explain --input 5x"></figure>')
    failed = build(out, "--sources", sources)
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith("docs: error: page.html: gpuconv explain --input 5x: status 2: ")
    assert "<p>one</p>" in (out / "page.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sources"]

    page.write_text(f"<p>three</p>{EXPLAIN}")
    assert build(out, "--sources", sources).returncode == 0
    assert "<p>three</p>" in (out / "page.html").read_text()

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    refused = build(mine, "--sources", sources)
    assert refused.returncode == 1
    assert "mine holds other things" in refused.stderr
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]

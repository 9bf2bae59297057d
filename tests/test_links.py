"""What refers to a place in the repository: links within its pages, and the mutants written by hand."""

import pathlib
import re
import unicodedata

import mutation
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "tests" / "golden" / "README.md"])
GENERATED = {ROOT / "docs" / "reference" / "configuration.md"}  # by docs/conf.py


def without_code(text: str) -> str:
    return re.sub(
        r"```.*?```|`[^`\n]*`", lambda code: "`" if "\n" in code[0] else code[0].strip("`"), text, flags=re.DOTALL
    )


def anchors(page: pathlib.Path) -> set[str]:
    """Of its headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    plain = [unicodedata.normalize("NFKC", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)) for title in headings]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in plain}


def broken(page: pathlib.Path) -> list[str]:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):  # https: there is no network in the tests
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file in GENERATED:
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `b`, c\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[1](other.md) [2](other.md#a-b-c) [3](absent.md) [4](other.md#a) [5](#here) [6](other.md#no-heading)"
        " [7](https://example.org/absent)\n# There\n[8](#there)"
    )
    assert broken(page) == ["absent.md", "other.md#a", "#here", "other.md#no-heading"]


def test_all_pages_are_looked_at():
    assert {"README.md", "index.md", "data.md", "digits.md"} <= {page.name for page in PAGES}


def test_each_mutant_written_by_hand_is_of_a_text_that_is_there_once():
    assert mutation.hand_written()

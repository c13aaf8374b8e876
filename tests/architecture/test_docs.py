"""What the docs say and what the code does: pages that can lag fail here."""

import re
from pathlib import Path

import pytest

from service.metrics import RequestMetrics, SharedCounts
from service.settings_page import page

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def test_the_configuration_page_is_the_settings() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == page(), "run `make docs`"


def test_the_metrics_table_is_what_is_exposed() -> None:
    exposed = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in RequestMetrics(SharedCounts(1), 0).collect()
    }
    listed = set(re.findall(r"^\| `(shoal_\w+)`", (ROOT / "docs/operations.md").read_text(), re.MULTILINE))
    assert listed == exposed


@pytest.mark.parametrize("page_path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_exist(page_path: Path) -> None:
    text = page_path.read_text()
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in target]
    missing = [target for target in targets if not (page_path.parent / target).exists()]
    # `folder/file.py` in prose: a name without a placeholder must be there, seen from the root.
    named = re.findall(r"`((?:service|training|models|loadtests|tests|docs)/[\w./-]+\.\w+)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("module", sorted({*ROOT.glob("service/**/*.py"), *ROOT.glob("training/**/*.py")}), ids=str)
def test_files_named_in_module_heads_exist(module: Path) -> None:
    named = re.findall(r"\b((?:tests|docs)/[\w/-]+\.(?:py|md))", module.read_text())
    named += [f"docs/adr/{number}" for number in re.findall(r"docs/adr/(\d{4})\b", module.read_text())]
    for name in named:
        assert list(ROOT.glob(f"{name}*")), f"{module.name} names {name}"


def test_every_make_target_in_the_docs_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page_path in PAGES:
        used = set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", page_path.read_text(), re.MULTILINE))
        assert used <= targets, f"{page_path.name}: {used - targets}"


def test_the_benchmark_table_is_the_record() -> None:
    text = (ROOT / "README.md").read_text()
    record = ROOT / re.search(r"\[record\]\((loadtests/records/\S+/README\.md)\)", text).group(1)
    table = text[text.index("| requests/s, CPU per request |") :].split("\n\n")[0]
    figures = re.findall(r"\d[\d,.]*", "\n".join(row.split("|", 2)[2] for row in table.splitlines()[2:]))
    recorded = set(re.findall(r"\d[\d,.]*\d|\d", record.read_text()))
    assert len(figures) == 18
    assert not [figure for figure in figures if figure.rstrip(".,") not in recorded]

"""The documents say what the code does: their blocks run, their links lead somewhere, generated parts are current."""

from __future__ import annotations

import importlib
import re
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from redi.cli.app import app
from redi.cli.reference import markdown
from redi.experiments.costs import page
from redi.experiments.runner import EXPERIMENTS
from tiny import tiny_pipeline

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/design.md",
    "docs/cli.md",
    "docs/calibrating.md",
    "docs/combining.md",
    "docs/solvers.md",
    "docs/pipelines.md",
    "docs/operations.md",
    "docs/experiments.md",
    "docs/results.md",
    "docs/benchmarks.md",
)

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)")


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model in the place of the bundled one, which is as stock but slower."""
    tiny_pipeline(tmp_path / "vocabulary").save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr("redi.pipelines.miniature_folder", lambda: tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    Path("captions.txt").write_text("".join(f"a {color} cat\n" for color in ("red", "blue", "green", "pink")))
    names: dict[str, object] = {}
    ran = []
    for language, block in _BLOCK.findall((ROOT / "README.md").read_text()):
        if language == "python":
            exec(compile(block, "README.md", "exec"), names)
            ran.append(language)
        for line in block.splitlines() if language == "console" else ():
            if line.startswith("redi "):
                result = CliRunner().invoke(app, shlex.split(line)[1:])
                assert result.exit_code == 0, f"{line}\n{result.output}"
                ran.append(line.split()[1])
    assert ran == ["python", "build", "inspect", "generate", "stylize"]


def test_the_commands_reference_is_that_of_the_help_texts() -> None:
    assert (ROOT / "docs/cli.md").read_text() == markdown(), "make docs writes it again"
    assert f"{', '.join(EXPERIMENTS)}, or all." in " ".join(markdown().split()), "experiments run names every study"


def test_the_costs_of_experiments_are_those_of_the_studies() -> None:
    assert (ROOT / "docs/experiments.md").read_text() == page(), "make docs writes it again"


def test_the_figures_of_the_readme_are_those_of_the_kept_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    readme = (ROOT / "README.md").read_text()
    assert readme == importlib.import_module("readme").block(readme), "run: make figures"


def test_the_page_of_benchmarks_is_that_of_the_kept_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("page")
    assert (ROOT / "docs" / "benchmarks.md").read_text() == module.page(module.KEPT)
    told = (ROOT / "docs" / "operations.md").read_text()
    assert told == importlib.import_module("expectations").filled(told), "make bench-page writes it again"
    assert told.count("| 10⁴ | 10⁶ | 10⁸ |") == told.count("| nf4 |") // 4 == 1


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_file_leads_somewhere(document: str) -> None:
    path = ROOT / document
    linked = [link for link in _LINK.findall(path.read_text()) if "://" not in link]
    missing = [link for link in linked if not (path.parent / link).exists()]
    assert missing == []


def test_every_make_target_that_a_document_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    named = {name for document in DOCUMENTS for name in _TARGET.findall((ROOT / document).read_text())}
    assert named
    assert named <= targets


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version("redi")
    assert citation["license"] == "Apache-2.0"
    assert citation["references"][0]["authors"][0]["family-names"] == "Zhang"

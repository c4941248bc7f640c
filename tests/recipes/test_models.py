"""Model families most unlike each other, with each recipe, beside plain transformers.

The sweep over all of them is scripts/sweep_models.py, by the same functions.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
FAMILIES = {
    "mlm": "esm fnet luke mbart modernbert xlm",
    "classify": "bart deberta-v2 gpt2 ibert modernbert reformer t5",
    "generate": "bloom gemma2 got_ocr2 gpt2 mamba mixtral",
    "lora": "gpt2 gemma2 mixtral opt",
}


@pytest.fixture(scope="module")
def checks() -> Iterator[ModuleType]:
    """The script as a module."""
    path = SCRIPTS / "model_checks.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = [*sys.path]
    sys.path.insert(0, str(SCRIPTS))
    spec.loader.exec_module(module)
    sys.path[:] = before
    for recipe in ("mlm", "classify", "generate"):
        module.main_of(recipe)
    gc.freeze()  # Trainer collects garbage, among all of transformers
    yield module
    gc.unfreeze()


@pytest.mark.parametrize(
    ("task", "family"),
    [(task, name) for task, names in FAMILIES.items() for name in names.split()],
)
def test_a_family(checks: ModuleType, task: str, family: str, tmp_path: Path) -> None:
    lora = task == "lora"
    task = "generate" if lora else task
    found = checks.result(task, family, lora, tmp_path)
    assert found["result"] == checks.WORKS, "\n".join(found.values())


def test_an_adapter_that_peft_would_not_load(
    checks: ModuleType, tmp_path: Path
) -> None:
    found = checks.result("generate", "laguna", True, tmp_path)
    assert found["result"] == checks.REFUSED, "\n".join(found.values())
    assert "an adapter of this laguna model would lose 6 of its" in found["what"]
    assert (tmp_path / "whole" / "model").is_dir()  # merged, it is right


def test_most_families_can_be_built_tiny(checks: ModuleType) -> None:
    """On torch's meta device: with their sizes small, they are made without error."""
    least = {"mlm": 50, "classify": 120, "generate": 178}
    built = sys.modules["tiny_configs"].can_be_built
    for task, count in least.items():
        assert sum(built(task, family) for family in checks.families(task)) >= count

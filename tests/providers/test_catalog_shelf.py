"""A catalog that is reloaded is replaced whole, or kept."""

from pathlib import Path

import pytest

from providers.catalog import CatalogError, Shelf, load_catalog

MODEL = """
id = "made-up"
name = "Made up"
modes = ["edit"]
created = 1

[[offers]]
provider = "local"
endpoint = "made-up"
source = "nowhere"
checked = 2026-01-01
price = { local = true }

[offers.params]
image = { passthrough = true, max = 3 }
"""


def test_reload_takes_new_files_and_keeps_the_old_catalog_over_a_broken_one(tmp_path: Path):
    """The error names the file, the line and the reason; what was served goes on being served."""
    shelf = Shelf(lambda: load_catalog(tmp_path))
    assert "made-up" not in shelf.catalog.models

    file = tmp_path / "made-up.toml"
    file.write_text(MODEL)
    assert "made-up" in shelf.reload().models
    assert "made-up" in shelf.catalog.taking(3)

    file.write_text(MODEL.replace("max = 3", "maximum = 3"))
    with pytest.raises(CatalogError, match=r"made-up\.toml:15: .*maximum"):
        shelf.reload()
    assert "made-up" in shelf.catalog.models

"""Amounts in Kubernetes' units."""

import pytest

from millrace_operator.quantity import whole_units


@pytest.mark.parametrize(
    ("quantity", "units"),
    [("2", 2), ("1.5", 2), ("500m", 1), ("1k", 1000), ("1Ki", 1024), ("1.5Gi", 1_610_612_736), ("20G", 20_000_000_000), ("1Pi", 1024**5)],
)
def test_a_quantity_counts_whole_units(quantity: str, units: int) -> None:
    assert whole_units(quantity) == units


@pytest.mark.parametrize("quantity", ["", "Gi", "-1", "1GB", "1e3", "1 Gi", "2\n"])
def test_anything_else_is_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        whole_units(quantity)

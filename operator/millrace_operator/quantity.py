"""Amounts in Kubernetes' units (`500m`, `8Gi`), as far as a spec may state them. Pure."""

import math
import re
from decimal import Decimal

QUANTITY_PATTERN = r"^([0-9]{1,15}(?:\.[0-9]{1,9})?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

_DECIMAL = {suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTP", start=1)}
_BINARY = {f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTP", start=1)}
_FACTORS = {"": Decimal(1), "m": Decimal("0.001"), **_DECIMAL, **_BINARY}


def whole_units(quantity: str) -> int:
    """Bytes of a size or whole cores of a CPU amount, rounded up. Raises ValueError."""
    return math.ceil(_exact(quantity))


def require_whole_bytes(size: str) -> str:
    """The size as it is. Raises ValueError: Kubernetes takes fractions of a byte, but warns of them in every pod template."""
    if _exact(size) % 1:
        raise ValueError(f"{size!r} is not a whole number of bytes, such as 8Gi or 500M")
    return size


def _exact(quantity: str) -> Decimal:
    parts = re.fullmatch(QUANTITY_PATTERN, quantity)
    if parts is None:
        raise ValueError(f"{quantity!r} is not a quantity such as 2, 500m or 8Gi")
    return Decimal(parts[1]) * _FACTORS[parts[2] or ""]

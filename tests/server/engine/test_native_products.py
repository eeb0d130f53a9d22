"""Products of the compiled library: right for every shape and both kernels, and each row as if it were alone."""

import pytest
import torch
from torch import Tensor

from millrace_server.engine import native
from millrace_server.engine.native import Library

BFLOAT16_STEP = 2**-8
"""Half of the distance between neighbouring bfloat16 numbers, relative: what rounding a result costs."""
SUM_ERROR = 1e-4
"""Of float32 sums of a few hundred products, relative to the sum of their sizes."""

pytestmark = pytest.mark.skipif(not native.pays(), reason="the compiled library does not serve this CPU")


@pytest.fixture(params=["widening", "pairing"])
def library(request: pytest.FixtureRequest) -> Library:
    if request.param == "pairing" and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this CPU has no AVX512-BF16")
    openmp = native._openmp()
    assert openmp is not None
    return Library(native.LIBRARY, openmp, pairing=request.param == "pairing")


def exact(rows: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The product, and how far a good one may be away from it."""
    x, w = rows.double(), weight.double()
    result, size = x @ w.t(), x.abs() @ w.abs().t()
    if bias is not None:
        result, size = result + bias.double(), size + bias.double().abs()
    return result, result.abs() * BFLOAT16_STEP + size * SUM_ERROR


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33, 130])
@pytest.mark.parametrize(("outputs", "inputs"), [(5, 16), (16, 48), (200, 64), (576, 160), (1000, 32)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_is_the_exact_one_rounded(library: Library, rows: int, outputs: int, inputs: int, has_bias: bool) -> None:
    torch.manual_seed(rows * outputs + inputs)
    weight, x = torch.randn(outputs, inputs).bfloat16(), torch.randn(rows, inputs).bfloat16()
    bias = torch.randn(outputs).bfloat16() if has_bias else None
    found = library.linear(x, library.pack(weight, bias))
    expected, allowed = exact(x, weight, bias)
    assert found.dtype is torch.bfloat16
    assert ((found.double() - expected).abs() <= allowed).all()


def test_a_row_does_not_depend_on_its_batch_mates(library: Library) -> None:
    weight, x = library.pack(torch.randn(330, 96).bfloat16(), None), torch.randn(41, 96).bfloat16()
    together = library.linear(x, weight)
    for size in (1, 2, 3, 5, 8, 13, 40):
        assert torch.equal(torch.cat([library.linear(part, weight) for part in x.split(size)]), together)


def test_what_is_no_number_stays_in_its_row(library: Library) -> None:
    weight, x = torch.randn(40, 32).bfloat16(), torch.randn(9, 32).bfloat16()
    packed = library.pack(weight, None)
    clean = library.linear(x, packed)
    x[3, 7], x[5, 0] = float("nan"), float("inf")
    found = library.linear(x, packed)
    assert found[3].isnan().all()
    assert not found[5].isfinite().any()
    others = [row for row in range(9) if row not in (3, 5)]
    assert torch.equal(found[others], clean[others])


def test_rounding_is_that_of_torch(library: Library) -> None:
    numbers = torch.cat([torch.randn(4000) * 10.0**exponent for exponent in range(-30, 30, 5)])
    halfway = (numbers.bfloat16().view(torch.int16).to(torch.int32) << 16 | 0x8000).view(torch.float32)
    given = torch.cat([numbers, halfway, torch.tensor([0.0, -0.0, 3.4e38])])
    one = torch.zeros(len(given), 16).bfloat16()
    one[:, 0] = 1
    # A bias is added in float32: what comes out is the bias, rounded.
    for rows in given.split(512):
        weight = library.pack(torch.zeros(len(rows), 16).bfloat16(), rows)
        assert torch.equal(library.linear(one[:1], weight)[0], rows.bfloat16())


@pytest.mark.parametrize("shape", [(32,), (1, 32), (0, 32), (1, 0, 32), (2, 70, 32)])
def test_rows_of_any_shape_are_multiplied(library: Library, shape: tuple[int, ...]) -> None:
    weight, x = torch.randn(24, 32).bfloat16(), torch.randn(shape).bfloat16()
    torch.testing.assert_close(library.linear(x, library.pack(weight, None)), torch.nn.functional.linear(x, weight))


def test_rows_of_another_size_or_type_are_refused(library: Library) -> None:
    weight = library.pack(torch.zeros(16, 32).bfloat16(), None)
    for rows in (torch.zeros(2, 16).bfloat16(), torch.zeros(2, 32)):
        with pytest.raises(ValueError, match="multiplied"):
            library.linear(rows, weight)

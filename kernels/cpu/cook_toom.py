"""Winograd's transforms, worked out exactly from the points they evaluate polynomials at.

F(m, r) computes m outputs of a correlation with r weights, y[i] = sum_j g[j] d[i + j], from
n = m + r - 1 products instead of m r:

    y = AT [ (G g) * (BT d) ]            with * element by element

Multiplying polynomials g(x) e(x) of r and m coefficients needs their values at n points only, one
of them infinity (the leading coefficient); AT and G are these evaluations. The correlation is the
transpose of that product, as a function of e, hence BT the transpose of the interpolation. In two
dimensions both axes are transformed. (Lavin and Gray, arXiv 1509.09308; points and their accuracy:
Barabasz, Anderson, Soodhalter and Gregg, arXiv 1803.10986.)
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import prod

Matrix = tuple[tuple[Fraction, ...], ...]


def matrices(m: int, r: int, points: Sequence[int | Fraction]) -> tuple[Matrix, Matrix, Matrix]:
    """(AT, G, BT) of F(m, r): m x n, n x r and n x n with n = m + r - 1.

    `points` are n - 1 different numbers; infinity is the last row of G and BT. BT has the
    polynomials that vanish at all points but one, with leading coefficient 1; G has the divisors
    that this leaves.
    """
    return _matrices(m, r, tuple(Fraction(p) for p in points))


@cache
def _matrices(m: int, r: int, points: tuple[Fraction, ...]) -> tuple[Matrix, Matrix, Matrix]:
    n = m + r - 1
    if len(points) != n - 1 or len(set(points)) != n - 1:
        raise ValueError(f"F({m}, {r}) needs {n - 1} different points, not {points}")
    zero, one = Fraction(0), Fraction(1)
    at = tuple(
        (*(p**i for p in points), one if i == m - 1 else zero)  # infinity: the leading one
        for i in range(m)
    )
    others = [[q for q in points if q is not p] for p in points]
    g = [
        tuple(p**i / prod((p - q for q in rest), start=one) for i in range(r))
        for p, rest in zip(points, others, strict=True)
    ]
    g.append((*[zero] * (r - 1), one))
    bt = [(*_with_roots(rest), zero) for rest in others]
    bt.append(_with_roots(points))
    return at, tuple(g), tuple(bt)


def _with_roots(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """The coefficients of the product of (x - root), lowest first."""
    found = [Fraction(1)]
    for root in roots:
        lower, higher = [Fraction(0), *found], [*found, Fraction(0)]
        found = [a - root * b for a, b in zip(lower, higher, strict=True)]
    return tuple(found)

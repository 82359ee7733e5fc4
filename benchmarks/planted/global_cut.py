"""Ranks by one cut through the singular values of all matrices, instead of by shares of a sum.

With σ_{k,1} ≥ σ_{k,2} ≥ ... of every matrix, rank r_k captures σ_{k,1}² + ... + σ_{k,r_k}². Under a rank budget the sum over
all matrices is largest when the R_total largest values are taken, wherever they are. Under a parameter budget a direction of
matrix k is worth σ²/(d_in + d_out); to take the worthiest first is at most one direction short of the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def global_cut(
    singular_values: Mapping[str, Sequence[float]], total_rank: int, costs: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The rank of each matrix.

    Args:
        singular_values: By name, in falling order; a matrix gets no more ranks than it has values.
        total_rank: R_total.
        costs: d_in + d_out by name. With it the budget is what R_total ranks cost spread evenly, as in glora.allocate_ranks.
    """
    price = costs or dict.fromkeys(singular_values, 1)
    left = total_rank * sum(price[name] for name in singular_values) / len(singular_values)
    worth = [(-(s**2) / price[name], name, place) for name, of in singular_values.items() for place, s in enumerate(of)]
    ranks = dict.fromkeys(singular_values, 0)
    for _, name, place in sorted(worth):
        if place == ranks[name] and price[name] <= left:
            ranks[name] += 1
            left -= price[name]
    return ranks

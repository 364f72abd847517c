r"""What training in several places sends over the wire."""

from __future__ import annotations

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.federated import require_rounds
from sokmerge.params import Params

__all__ = ["bytes_communicated"]


def bytes_communicated(model: Params, *, clients: int, rounds: int) -> int:
    r"""Return how many bytes all clients together receive and send in some rounds.

    .. math:: B = 2\,R\,K\,\sum_i n_i b_i

    In each of R rounds each of K clients receives one copy of the model, or of the averaged
    gradient, and sends one: :math:`n_i` entries of :math:`b_i` bytes, 4 in float32. Data-parallel
    training is a round for each step, a merge at the end of training one round. How the copies
    travel is left out (a ring of clients sends nearly as much), and so are compression,
    the examples themselves, and the delivery of the result.

    Args:
        model: the parameters that are sent; their values do not matter.
        clients: those that take part in a round.
        rounds: how often they talk.

    Raises:
        ArgumentError: fewer than one client, or rounds that cannot be used.

    >>> import torch
    >>> bytes_communicated({"w": torch.zeros(10, 3)}, clients=4, rounds=1)
    960
    """
    require_rounds(rounds)
    if not (isinstance(clients, int) and clients >= 1):
        raise ArgumentError("clients", found=f"{clients}", expected="a whole number, at least 1")
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.values())
    return 2 * rounds * clients * size

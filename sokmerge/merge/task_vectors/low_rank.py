r"""Low-rank modules (LoRA): factors of a task vector, and arithmetic on them.

A module holds, for each matrix :math:`W` that it adapts, two thin factors: ``up``, :math:`B` of
shape (out, r), and ``down``, :math:`A` of shape (r, in). The adapted matrix is :math:`W+BA`. The
factors of ``layer.weight`` are called ``layer.up`` and ``layer.down``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.operands import model_weights, require_models
from sokmerge.merge.task_vectors.matrices import as_matrix, is_matrix, singular
from sokmerge.merge.task_vectors.vectors import differences, names, prepare, step, weighted_sum
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, require_finite, wide

__all__ = ["expand", "low_rank", "module_arithmetic"]


def low_rank(model: Params, *, base: Params, rank: int) -> dict[str, Tensor]:
    r"""Return the factors that come nearest to a task vector, matrix by matrix.

    .. math:: B = U_r\Sigma_r^{1/2},\qquad A = \Sigma_r^{1/2}V_r^\top,\qquad
              \theta_i-\theta_0 = U\Sigma V^\top

    Of all pairs with inner dimension r, this one leaves the smallest Frobenius norm (Eckart and
    Young 1936). It is for networks that were not trained as low-rank modules; factors that were
    trained are used as they are.

    Args:
        model: parameters of the network fine-tuned from the base.
        base: parameters of the network from which it started.
        rank: r, the most directions to keep in each matrix.

    Returns:
        ``<layer>.up`` and ``<layer>.down`` for each tensor with two axes or more, in the dtype of
        the base, but at least single precision. Other tensors have no factors: their difference
        is left out.

    Raises:
        ArgumentError: the parameters do not match or are not finite, or the rank is below one.

    >>> import torch
    >>> base, model = {"0.weight": torch.zeros(3, 2)}, {"0.weight": torch.ones(3, 2)}
    >>> factors = low_rank(model, base=base, rank=1)
    >>> {name: tuple(t.shape) for name, t in factors.items()}
    {'0.up': (3, 1), '0.down': (1, 2)}
    """
    prepare([model], base)
    if rank < 1:
        raise ArgumentError("rank", found=f"{rank}", expected="at least one direction")
    factors = {}
    for name in names(base):
        if is_matrix(base[name]):
            [tau] = differences([model], base, name)
            u, values, vt = singular(as_matrix(tau))
            root = values[:rank].sqrt()
            kept = base[name].dtype if base[name].dtype.itemsize >= 4 else None
            up, down = _called(name)
            for key, factor in ((up, u[:, :rank] * root), (down, root[:, None] * vt[:rank])):
                factors[key] = factor.to(kept) if kept else factor.float()
    return factors


def expand(module: Params, *, base: Params, scale: float = 1.0) -> dict[str, Tensor]:
    r"""Return the network that a low-rank module makes of its base, :math:`W+\lambda BA`.

    Args:
        module: the factors.
        base: parameters of the network that the module adapts. What has no factors stays.
        scale: :math:`\lambda`.

    Raises:
        ArgumentError: factors that do not belong to the base, or are not finite.

    >>> import torch
    >>> module = {"0.up": torch.ones(3, 1), "0.down": torch.ones(1, 2)}
    >>> expand(module, base={"0.weight": torch.zeros(3, 2)})["0.weight"].sum()
    tensor(6.)
    """
    _require_factors("module", module, base)
    require_finite(module=module, base=base)

    def direction(name: str) -> Tensor:
        up, down = _called(name)
        if up not in module:
            return base[name].new_zeros(())
        return (wide(module[up]) @ wide(module[down])).reshape(base[name].shape)

    return step(base, direction, scale)


@method(
    branch="weight aggregation",
    paper="zhang2023composing",
    needs=("base",),
    scope="tensor",
    equation=r"W=W_0+\lambda\bigl(\textstyle\sum_i w_iB_i\bigr)\bigl(\sum_i|w_i|A_i\bigr)",
)
def module_arithmetic(
    models: Sequence[Params],
    *,
    base: Params,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Params:
    r"""Add and negate low-rank modules, factor by factor, and apply the result to the base.

    .. math:: W = W_0 + \lambda\Bigl(\sum_i w_i B_i\Bigr)\Bigl(\sum_i |w_i|\,A_i\Bigr)

    (Zhang et al. 2023.) A module is negated in one factor only, since two negative factors would
    leave their product as it is. The result is again a module of rank r, which has its price: the
    product of sums holds the products :math:`w_i|w_j|B_iA_j` of factors that were never trained
    together, and those of one task come with :math:`w_i^2`. Their sum without the others,
    :math:`\sum_i w_i B_iA_i`, is :func:`~sokmerge.merge.task_arithmetic` of the networks that
    :func:`~sokmerge.merge.task_vectors.expand` makes; its rank is up to nr.

    Factors are not unique: :math:`(BR)(R^{-1}A)` is the same network for every invertible R. So
    the result depends on how the modules were started, and the paper starts them alike.

    * **Scope**: each matrix with factors. What has none is the base's.
    * There is neither a tie rule nor a sign rule. The order of the modules does not matter.

    Args:
        models: the factors of each module, all with the same names, shapes and ranks.
        base: parameters of the network that they adapt.
        scale: :math:`\lambda`, the length of the step.
        weights: one number of any sign for each module; by default 1/n each, the paper's choice.

    Raises:
        ArgumentError: no modules, modules that do not match each other or the base, numbers that
            are not finite, or a scale or weights that cannot be used.

    >>> import torch
    >>> base = {"0.weight": torch.zeros(2, 2)}
    >>> module = {"0.up": torch.tensor([[1.0], [2.0]]), "0.down": torch.tensor([[1.0, 0.0]])}
    >>> module_arithmetic([module, module], base=base)["0.weight"]
    tensor([[1., 0.],
            [2., 0.]])
    >>> module_arithmetic([module], base=base, weights=[-1])["0.weight"]
    tensor([[-1.,  0.],
            [-2.,  0.]])
    """
    require_models(models)
    prepare([base], base, scale=scale)
    weights = model_weights(
        weights or [1 / max(len(models), 1)] * len(models), models, negative=True
    )
    for i, module in enumerate(models):
        _require_factors(f"models[{i}]", module, base)
    magnitudes = [abs(weight) for weight in weights]
    combined = {
        name: weighted_sum(
            [wide(module[name]) for module in models],
            magnitudes if name.endswith("down") else weights,
        )
        for name in models[0]
    }
    return expand(combined, base=base, scale=scale)


def _called(name: str) -> tuple[str, str]:
    """Return the names of the factors of a parameter."""
    stem = name.removesuffix("weight").removesuffix(".")
    return (f"{stem}.up", f"{stem}.down") if stem else ("up", "down")


def _require_factors(argument: str, module: Params, base: Params) -> None:
    """Raise unless each factor has its other one and the two fit a matrix of the base."""
    fitting = set()
    for name in names(base):
        up, down = (module.get(key) for key in _called(name))
        if up is None or down is None or not is_matrix(base[name]):
            continue
        rows, columns = as_matrix(base[name]).shape
        if up.dim() == down.dim() == 2 and (len(up), down.shape[1]) == (rows, columns):
            fitting.update(_called(name) if up.shape[1] == len(down) else ())
    if not module or module.keys() - fitting:
        wrong = sorted(module.keys() - fitting)
        raise ArgumentError(
            argument,
            found=f"entries {wrong[:4]} that fit no matrix of the base" if wrong else "no factors",
            expected="for each adapted matrix of shape (out, in) a factor '<layer>.up' of shape "
            "(out, r) and a factor '<layer>.down' of shape (r, in)",
        )

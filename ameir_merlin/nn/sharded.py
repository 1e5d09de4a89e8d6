"""Embedding tables larger than one device: their rows shared out over processes by TorchRec (optional).

TorchRec (Ivchenko et al., RecSys 2022) moves ids to the process that has their rows and vectors back, and gradients the
same way. It is no dependency: `requirements-torchrec.txt` names what works with our torch.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ameir_merlin.errors import UserError
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.ranks import Ranks
from ameir_merlin.schema import PADDING

TABLE = "rows"  # the one table that TorchRec knows: all of ours stand in it, below each other
EPS = 1e-8
ALIGNED = 4  # fbgemm's kernels for GPUs read rows in pieces of four numbers


class ShardedEmbeddings(FieldEmbeddings):
    """`FieldEmbeddings` of which each of n processes has 1/n of the rows, one block of rows after the other.

    `weight` is this rank's rows, `[ceil(F / n), K rounded up to a multiple of 4]` (the last rank has what is left); the
    columns above K stay zero. `step` trains them, not an optimizer of the rest of the model: no gradient is left on it.

    A look-up, and a step, is one exchange between all ranks: they have to make the same ones in the same order, with as
    many ids as each likes. float32. whole: the tables to share out, equal on all ranks; not changed. l2: penalty, on
    rows of the batch alone. `UserError` where TorchRec is missing.
    """

    def __init__(self, whole: FieldEmbeddings, ranks: Ranks, l2: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.schema, self.dim, self.by_row, self.offsets = whole.schema, whole.dim, False, whole.offsets
        width = -(-self.dim // ALIGNED) * ALIGNED
        # In a tuple: TorchRec's module, whose one parameter is `weight`, would name it a second time.
        self._torchrec = (_torchrec(len(whole.weight), width, whole.weight.device, ranks, l2),)
        (self.weight,) = self._torchrec[0].parameters()
        self._asked: list[tuple[Tensor, Tensor]] = []
        start = sum(ranks.gather(len(self.weight))[: ranks.rank])
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:, : self.dim] = whole.weight[start : start + len(self.weight)]

    def look_up(self, rows: Tensor) -> Tensor:
        """See `FieldEmbeddings.look_up`. Padding stays here: it is neither asked for nor trained.

        `UserError` in evaluation mode: ranks that score batches of their own would wait for each other for ever.
        """
        if not self.training:
            raise UserError("tables that are shared out over processes are for training; unshard the model first")
        flat = rows.flatten()
        real = (flat != PADDING).nonzero().squeeze(1)
        with torch.no_grad():
            vectors = self._exchange(flat[real])
        if torch.is_grad_enabled():
            self._asked.append((flat[real], vectors.requires_grad_()))
        found = vectors.new_zeros(len(flat), vectors.shape[1]).index_copy(0, real, vectors)
        return found[:, : self.dim].view(*rows.shape, self.dim)

    def step(self, learning_rate: float) -> None:
        """Train the rows by the gradients that `backward` has left on all vectors looked up since the last step.

        Row-wise Adagrad (Mudigere et al. 2021), made by TorchRec, one number of state a row: G += mean(g^2) over the
        columns of `weight`, w -= lr g / (sqrt(G) + 1e-8), where g is the row's gradient of all ranks' loss and of the
        penalty. TorchRec by itself would make such a step for each look-up; here those of a batch are one.
        """
        used = [(rows, vectors.grad) for rows, vectors in self._asked if vectors.grad is not None]
        self._asked.clear()
        rows = torch.cat([self.weight.new_empty(0, dtype=torch.int64), *(r for r, _ in used)])
        gradients = torch.cat([self.weight.new_empty(0, self.weight.shape[1]), *(g for _, g in used)])
        optimizer = self._torchrec[0].fused_optimizer
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()  # makes the rate known
        with torch.enable_grad():
            self._exchange(rows).backward(gradients)

    def _exchange(self, rows: Tensor) -> Tensor:
        from torchrec import KeyedJaggedTensor

        asked = KeyedJaggedTensor([TABLE], rows, lengths=torch.tensor([len(rows)], device=rows.device))
        return self._torchrec[0](asked)[TABLE].values()

    def sums(self, rows: Tensor) -> Tensor:
        """See `FieldEmbeddings.sums`."""
        return self.look_up(rows).sum(1)

    def table(self, name: str) -> Tensor:
        """No rank has a whole table: `UserError`."""
        raise UserError(f"table '{name}' is shared out over processes; unshard the model first")

    def whole(self, ranks: Ranks) -> FieldEmbeddings:
        """The tables in one piece, on the CPU; every rank gets them."""
        tables = FieldEmbeddings(self.schema, self.dim)
        parts = ranks.gather(self.weight.detach()[:, : self.dim].cpu())
        with torch.no_grad():
            tables.weight.copy_(torch.cat(parts))
        return tables


def shard(model: nn.Module, ranks: Ranks, l2: float = 0.0) -> nn.Module:
    """Share out every `FieldEmbeddings` of a click `model` over the processes `ranks`, in place; returns `model`.

    All ranks call it, with equal weights, before the optimizer of the rest is made. Then train as without, through
    `train.shared.shared(model, ranks)` and `ranks.add(gradients(model))`, and `step` the tables beside the optimizer.
    To score, save or derive, `unshard` the model: scoring deals batches out to ranks, which make unequal look-ups.
    l2: of the tables. `UserError` for next items: a softmax over all items needs a whole table.
    """
    schema: Any = model.schema
    if schema.label.task != "click":
        raise UserError("sharded tables are for clicks; next items are scored against a whole table of items")
    _replace(model, {m: ShardedEmbeddings(m, ranks, l2) for m in _embeddings(model)})
    return model


def step(model: nn.Module, learning_rate: float) -> None:
    """`ShardedEmbeddings.step` of every sharded table of `model`, after `backward`; all ranks call it."""
    for module in _embeddings(model):
        if isinstance(module, ShardedEmbeddings):
            module.step(learning_rate)


def unshard(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The inverse of `shard`, in place; returns `model`. The tables are on the CPU then. All ranks call it."""
    _replace(model, {m: m.whole(ranks) for m in _embeddings(model) if isinstance(m, ShardedEmbeddings)})
    return model


def _embeddings(model: nn.Module) -> list[FieldEmbeddings]:
    return [m for m in model.modules() if isinstance(m, FieldEmbeddings)]


def _replace(model: nn.Module, by: dict[Any, FieldEmbeddings]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in by:
                setattr(parent, name, by[child])


def _torchrec(rows: int, width: int, device: torch.device, ranks: Ranks, l2: float) -> Any:
    """TorchRec's collection of one table `[rows, width]`, shared out by rows and trained within `backward`."""
    try:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
        from torchrec import EmbeddingCollection, EmbeddingConfig
        from torchrec.distributed.comm_ops import set_gradient_division
        from torchrec.distributed.embedding import EmbeddingCollectionSharder
        from torchrec.distributed.embedding_types import EmbeddingComputeKernel
        from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
        from torchrec.distributed.types import ShardingEnv
    except ImportError as error:
        raise UserError(
            f"sharded tables need TorchRec ({error}): pip install --no-deps -r requirements-torchrec.txt"
        ) from error
    set_gradient_division(False)  # a loss here is a rank's part of the batch's, and parts are summed
    config = EmbeddingConfig(num_embeddings=rows, embedding_dim=width, name=TABLE, feature_names=[TABLE])
    collection = EmbeddingCollection(tables=[config], device=torch.device("meta"))
    training = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "eps": EPS}
    if l2:
        training |= {"weight_decay": l2, "weight_decay_mode": WeightDecayMode.L2}
    sharder = EmbeddingCollectionSharder(fused_params=training)
    plan = construct_module_sharding_plan(
        collection,
        per_param_sharding={TABLE: row_wise(compute_kernel=EmbeddingComputeKernel.FUSED.value)},
        sharder=sharder,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size)),
        world_size=ranks.size,
        device_type=device.type,
    )
    world = ShardingEnv.from_process_group(torch.distributed.group.WORLD)
    return sharder.shard(collection, plan, world, device)

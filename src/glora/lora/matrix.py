"""One adapted weight matrix: its two factors, and their change of rank.

A LoRA layer adds Δ = s·B·A to a weight matrix W of shape (d_out, d_in). For every kind of layer the rank can be brought to the
middle:

    A as (E, r, d_in) and B as (d_out, r, E)

E is 1 except for a stack of E experts (PEFT's `target_parameters`), whose A is stored expert by expert, (E·r, d_in), and
whose B rank by rank, (d_out, r·E). For a convolution d_in counts the elements of its kernel. An embedding is LoRA the other
way round: d_in is the vocabulary, A starts at zero and B at random.

The scaling s is held when the rank changes: with r the layer's α becomes s·r (s·√r under rsLoRA), so PEFT computes the same s
from what is saved.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, get_args

import torch
from peft.tuners.lora import variants
from peft.tuners.lora.layer import Embedding, LoraLayer, ParamWrapper
from torch import nn

from glora.config import Keep
from glora.lora.layout import class_of, whole
from glora.lora.optimizer_state import check_optimizer, replace_parameter
from glora.lora.resize import by_rank_A, by_rank_B, carry_state, columns_at

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SUPPORTED_VARIANTS = (
    variants.DoraLinearVariant,  # the embedding's DoRA derives from it
    variants.DoraConv1dVariant,
    variants.DoraConv2dVariant,
    variants.DoraConv3dVariant,
)


class LoraMatrix:
    """A weight matrix that an adapter updates, or a stack of experts' matrices.

    Args:
        name: The matrix's name, as in PEFT's patterns: relative to the base model.
        layer: PEFT's LoRA layer.
        adapter_name: The adapter.
        bias: `LoraConfig.bias`, which says what PEFT saves beside the factors.

    Attributes:
        name, layer, adapter_name: As given.
        experts: E, the number of weight matrices.
    """

    def __init__(self, name: str, layer: LoraLayer, adapter_name: str = "default", *, bias: str = "none") -> None:
        self.name, self.layer, self.adapter_name = name, layer, adapter_name
        self.experts = int(layer.num_experts) if isinstance(layer, ParamWrapper) else 1
        self._bias = bias
        self._embedding = adapter_name in layer.lora_embedding_A
        self._removed: dict[str, Any] = {}

    @property
    def present(self) -> bool:
        """Whether the layer carries the adapter."""
        return self.adapter_name in (self.layer.lora_embedding_A if self._embedding else self.layer.lora_A)

    @property
    def A(self) -> nn.Parameter:
        """The factor A as PEFT stores it."""
        layer, name = self.layer, self.adapter_name
        factor: nn.Parameter = layer.lora_embedding_A[name] if self._embedding else layer.lora_A[name].weight
        return factor

    @property
    def B(self) -> nn.Parameter:
        """The factor B as PEFT stores it."""
        layer, name = self.layer, self.adapter_name
        factor: nn.Parameter = layer.lora_embedding_B[name] if self._embedding else layer.lora_B[name].weight
        return factor

    @property
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """A and B as PEFT stores them."""
        return self.A, self.B

    @property
    def factors_by_rank(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A as (E, r, d_in) and B as (d_out, r, E), detached."""
        E, r = self.experts, self.rank
        return by_rank_A(self.A.detach(), E, r), by_rank_B(self.B.detach(), E, r)

    @property
    def random_factor(self) -> nn.Parameter:
        """The factor that LoRA starts at random: A, or an embedding's B."""
        return self.B if self._embedding else self.A

    @property
    def zero_factor(self) -> nn.Parameter:
        """The factor that LoRA starts at zero: B, or an embedding's A."""
        return self.A if self._embedding else self.B

    @property
    def rank(self) -> int:
        """r; 0 where the adapter was taken out."""
        return int(self.layer.r[self.adapter_name]) if self.present else 0

    @property
    def scaling(self) -> float:
        """S."""
        return float(self.layer.scaling[self.adapter_name])

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the weight matrix, or of each expert's."""
        return self.B.shape[0], math.prod(self.A.shape[1:])

    @property
    def cost(self) -> int:
        """Parameters of one rank: E·(d_in + d_out)."""
        return self.experts * sum(self.shape)

    @property
    def min_supported_rank(self) -> tuple[int, str]:
        """The smallest rank that the matrix can have, and the reason if it is not 0.

        With DoRA, lora_bias or bias="lora_only" the adapter is more than B·A, which rank 0 would drop as well; and PEFT's
        configuration cannot leave out one parameter of a stack of experts.
        """
        if self.adapter_name in self.layer.lora_variant:
            return 1, "DoRA's magnitude"
        if self.layer.lora_bias.get(self.adapter_name):
            return 1, "lora_bias"
        if isinstance(self.layer, ParamWrapper):
            return 1, "target_parameters"
        if self._bias == "lora_only" and getattr(self.layer.get_base_layer(), "bias", None) is not None:
            return 1, 'bias="lora_only"'
        return 0, ""

    def check_supported(self) -> None:
        """Refuse a layer that glora cannot resize.

        Raises:
            ValueError: the factors are not stored as an ordinary LoRA layer stores them (multi-head attention, for example),
                the layer's class is not PEFT's, it uses a variant other than DoRA, is a grouped convolution, is merged, or has
                weights in float64 or float8.
        """
        layer, base = self.layer, self.layer.get_base_layer()
        remedy = "leave it out of target_modules"
        variant = layer.lora_variant.get(self.adapter_name)
        ordinary = isinstance(layer, Embedding) or isinstance(
            layer.lora_A[self.adapter_name], nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
        )
        if not class_of(layer).__module__.startswith("peft."):
            reason = f"{type(layer).__name__}, a LoRA layer that is not PEFT's own,"
        elif variant is not None and not isinstance(variant, SUPPORTED_VARIANTS):
            reason = (
                f"the LoRA variant {type(variant).__name__.removesuffix('Variant')}, which is more than a trained B·A,"
            )
            remedy = "use plain LoRA or DoRA"
        elif not ordinary or isinstance(base, nn.MultiheadAttention):
            reason = f"LoRA on {type(base).__name__} ({type(layer).__name__})"
        elif getattr(base, "groups", 1) != 1:
            reason = f"a convolution with groups={base.groups}"
        elif self.adapter_name in layer.merged_adapters:
            reason, remedy = "a merged adapter", "call model.unmerge_adapter() first"
        elif wrong := {factor.dtype for factor in self.factors} - set(SUPPORTED_DTYPES):
            reason = f"adapter weights in {str(wrong.pop()).removeprefix('torch.')}"
            remedy = (
                "load the model in float32 or bfloat16 (PEFT keeps the adapter in float32 with autocast_adapter_dtype)"
            )
        else:
            return
        raise ValueError(f"{self.name}: {reason} is not supported by glora; {remedy}")

    def singular_values(self) -> torch.Tensor:
        """Return σ_1 ≥ ... ≥ σ_r of Δ = s·B·A, shape (r,), float32, on the layer's device.

        With B = Q_B·R_B and Aᵀ = Q_A·R_A they are those of s·R_B·R_Aᵀ, which is r × r; no d_out × d_in matrix is made. A rank
        above min(d_in, d_out) ends in zeros. For a stack of experts, √(Σ_e σ_{e,i}²). Sharded factors are gathered, so every
        process has to call it.
        """
        E, r = self.experts, self.rank
        tall_A = by_rank_A(whole(self.A.detach()), E, r).float().transpose(1, 2)  # (E, d_in, r)
        tall_B = by_rank_B(whole(self.B.detach()), E, r).float().permute(2, 0, 1)  # (E, d_out, r)
        core = torch.linalg.qr(tall_B).R @ torch.linalg.qr(tall_A).R.transpose(1, 2)
        values = torch.linalg.svdvals(core).square().sum(0).sqrt() * abs(self.scaling)
        return nn.functional.pad(values, (0, r - len(values)))

    def resize(
        self,
        rank: int,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        keep: Keep = "norm",
        init_lora_weights: bool | str = True,
        generator: torch.Generator | None = None,
    ) -> None:
        """Give the matrix another rank, in place; see `resize_lora_layer`.

        At rank 0 the adapter's parts go out of the layer and into this object; `restore` puts them back.
        """
        if not self.present:
            base = type(self.layer.get_base_layer()).__name__
            raise ValueError(
                f"this LoRA layer on {base} has no adapter {self.adapter_name!r}; it has {sorted(self.layer.lora_A)}"
            )
        self.check_supported()
        if keep not in get_args(Keep):
            raise ValueError(f"keep={keep!r} is unknown; choose one of {', '.join(map(repr, get_args(Keep)))}")
        largest, (smallest, why) = min(self.shape), self.min_supported_rank
        if isinstance(rank, bool) or not isinstance(rank, int) or not smallest <= rank <= largest:
            because = f" ({why} does not allow 0)" if smallest else ""
            raise ValueError(
                f"rank={rank!r} must be an integer from {smallest} to min(d_in, d_out) = {largest}{because}"
            )
        E = self.experts
        if keep == "svd" and E > 1:
            raise ValueError(f'keep="svd" is for one matrix, and this adapter updates {E} experts; use keep="norm"')
        A, B, old_rank = self.A, self.B, self.rank
        if optimizer is not None:
            check_optimizer(optimizer, (A, B))
        if rank == old_rank:
            return
        if rank == 0:
            if optimizer is not None:
                replace_parameter(optimizer, A, None)
                replace_parameter(optimizer, B, None)
            self._remove()
            return

        with torch.no_grad():

            def new_columns(count: int) -> tuple[torch.Tensor, torch.Tensor]:
                return self._new_columns(count, rank, init_lora_weights, generator)

            columns = columns_at(*self.factors_by_rank, rank, keep, new_columns)
            new_A = nn.Parameter(columns.A.reshape(E * rank, *A.shape[1:]), requires_grad=A.requires_grad)
            new_B = nn.Parameter(columns.B.reshape(B.shape[0], rank * E, *B.shape[2:]), requires_grad=B.requires_grad)
            if optimizer is not None:
                replace_parameter(optimizer, A, new_A, carry_state(columns.of_A, new_A, 0, E, old_rank))
                replace_parameter(optimizer, B, new_B, carry_state(columns.of_B, new_B, 1, E, old_rank))
        self.set_factors(new_A, new_B)
        self._set_alpha(rank, old_rank)

    def set_factors(self, A: nn.Parameter, B: nn.Parameter) -> None:
        """Put factors of another rank into the layer; the modules that hold them stay the same objects."""
        layer, name = self.layer, self.adapter_name
        if self._embedding:
            layer.lora_embedding_A[name], layer.lora_embedding_B[name] = A, B
            return
        down, up = layer.lora_A[name], layer.lora_B[name]
        down.weight, up.weight = A, B
        if isinstance(down, nn.Linear):
            down.out_features = up.in_features = A.shape[0]
        else:
            down.out_channels = up.in_channels = A.shape[0]

    def restore(self) -> None:
        """Put back what rank 0 took out of the layer, with factors of rank 0 to grow from."""
        for attribute, entry in self._removed.items():
            getattr(self.layer, attribute)[self.adapter_name] = entry
        self._removed = {}
        A, B = self.factors
        self.set_factors(
            nn.Parameter(A.detach()[:0], requires_grad=A.requires_grad),
            nn.Parameter(B.detach()[:, :0], requires_grad=B.requires_grad),
        )
        self.layer.r[self.adapter_name] = 0
        # outside the tree the layer has missed what happened to the model
        self.layer.train(self.layer.get_base_layer().training)
        self.layer._move_adapter_to_device_of_base_layer(self.adapter_name)

    def _remove(self) -> None:
        """Take the adapter out of the layer; the layer's other adapters, and which of them are active, stay.

        PEFT's own `delete_adapter` is for a whole model: it makes another adapter of the layer active in this one's place.
        """
        _ = self.shape  # remembered, since it is read from the factors
        for attribute in (*self.layer.adapter_layer_names, *self.layer.other_param_names, "lora_variant"):
            container = getattr(self.layer, attribute, None)
            if container is not None and self.adapter_name in container:
                self._removed[attribute] = container[self.adapter_name]
                del container[self.adapter_name]

    def _set_alpha(self, rank: int, old_rank: int) -> None:
        layer, name = self.layer, self.adapter_name
        root = bool(layer.use_rslora.get(name))
        if old_rank == 0:
            alpha = self.scaling * (math.sqrt(rank) if root else rank)
        elif root:
            alpha = layer.lora_alpha[name] * math.sqrt(rank / old_rank)
        else:
            alpha = layer.lora_alpha[name] * rank / old_rank
        layer.r[name] = rank
        layer.lora_alpha[name] = int(alpha) if float(alpha).is_integer() else alpha

    def _new_columns(
        self, count: int, rank: int, init_lora_weights: bool | str, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # On the CPU and in float32, so that every device and dtype gets the same numbers.
        d_out, d_in = self.shape
        new_A, new_B = torch.zeros(self.experts, count, d_in), torch.zeros(d_out, count, self.experts)
        if self._embedding:
            new_B.normal_(generator=generator)
        elif init_lora_weights == "gaussian":
            new_A.normal_(std=1 / rank, generator=generator)
        else:
            new_A.uniform_(-1 / math.sqrt(d_in), 1 / math.sqrt(d_in), generator=generator)
        return new_A.to(self.A), new_B.to(self.B)


def resize_lora_layer(
    layer: LoraLayer,
    rank: int,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    adapter_name: str = "default",
    keep: Keep = "norm",
    init_lora_weights: bool | str = True,
    generator: torch.Generator | None = None,
) -> None:
    """Give a LoRA layer another rank, in place.

    Call it between an optimizer step and the next forward pass: the gradients of the old factors are dropped.

    Args:
        layer: A LoRA layer of any kind that glora supports, with A of shape (r, d_in) and B of shape (d_out, r).
        rank: The new rank, from 0 to min(d_in, d_out). 0 takes the adapter out of this layer, which then computes what the
            base layer computes.
        optimizer: The optimizer that holds A and B. The new factors take their places and, for kept columns, their state;
            see glora.lora.optimizer_state for the state of new columns.
        adapter_name: The adapter to resize; other adapters of the layer stay as they are.
        keep: Columns that stay when the rank shrinks: "norm" the largest ‖A_i‖·‖B_i‖, "svd" the best approximation of
            B·A, "first" the first ones.
        init_lora_weights: Initialization of new rows of A: "gaussian" as PEFT's option of that name, N(0, 1/rank²); anything
            else as LoRA's default, uniform in ±1/√d_in. (An embedding's new columns of B are N(0, 1), as PEFT's.)
        generator: A CPU generator for the new rows. Default: torch's global one.

    Raises:
        ValueError: the rank is out of range, `keep` is unknown, the layer does not carry the adapter or is of a kind that is
            not supported, or the optimizer's state cannot be carried over. The layer is then as it was.
    """
    matrix = LoraMatrix(type(layer.get_base_layer()).__name__, layer, adapter_name)
    matrix.resize(rank, optimizer=optimizer, keep=keep, init_lora_weights=init_lora_weights, generator=generator)

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

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import torch
from peft.tuners.lora import variants
from peft.tuners.lora.layer import Embedding, LoraLayer, ParamWrapper
from torch import nn

from glora.config import Keep, one_of, plain_number
from glora.lora.layout import class_of
from glora.lora.optimizer_state import carried_state, check_optimizer, per_element, set_state
from glora.lora.resize import as_stored, by_rank_A, by_rank_B, carry_state, columns_at

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
        """True if the layer carries the adapter."""
        return self.adapter_name in (self.layer.lora_embedding_A if self._embedding else self.layer.lora_A)

    @property
    def deleted(self) -> bool:
        """True if the layer has lost the adapter otherwise than by rank 0, as by `model.delete_adapter`."""
        return not self.present and not self._removed

    def _entry(self, attribute: str) -> Any:
        """Return the adapter's part of one of the layer's containers, which this object has while the adapter is out."""
        if attribute in self._removed:
            return self._removed[attribute]
        return getattr(self.layer, attribute)[self.adapter_name]

    @property
    def A(self) -> nn.Parameter:
        """The factor A as PEFT stores it; the same object at every rank (except under FSDP2), (0, d_in) at rank 0."""
        factor: nn.Parameter = self._entry("lora_embedding_A") if self._embedding else self._entry("lora_A").weight
        return factor

    @property
    def B(self) -> nn.Parameter:
        """The factor B as PEFT stores it; the same object at every rank (except under FSDP2), (d_out, 0) at rank 0."""
        factor: nn.Parameter = self._entry("lora_embedding_B") if self._embedding else self._entry("lora_B").weight
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
        """The scaling s in Δ = s·B·A."""
        return float(self._entry("scaling"))

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
        """Check that glora can resize the layer.

        Raises:
            ValueError: the factors are not stored as an ordinary LoRA layer stores them (multi-head attention, for example),
                the layer's class is not PEFT's, it uses a variant other than DoRA, is a grouped convolution, is merged, or has
                weights in float64 or float8.
        """
        layer, base = self.layer, self.layer.get_base_layer()
        remedy = "leave it out of target_modules"
        variant = layer.lora_variant.get(self.adapter_name)
        ordinary = isinstance(layer, Embedding) or isinstance(
            self._entry("lora_A"), nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
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
            reason, remedy = f"a merged adapter ({self.adapter_name!r})", "call model.unmerge_adapter() first"
        elif wrong := {factor.dtype for factor in self.factors} - set(SUPPORTED_DTYPES):
            reason = f"adapter weights in {str(wrong.pop()).removeprefix('torch.')}"
            remedy = (
                "load the model in float32 or bfloat16 (PEFT keeps the adapter in float32 with autocast_adapter_dtype)"
            )
        else:
            return
        raise ValueError(f"{self.name}: {reason} is not supported by glora; {remedy}")

    def resized(
        self,
        rank: int,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        keep: Keep = "norm",
        init_lora_weights: bool | str = True,
        generator: torch.Generator | None = None,
    ) -> Resized:
        """Return the matrix at another rank, without changing anything yet; see `resize_lora_layer` for the arguments."""
        if not (self.present or self._removed):
            base = type(self.layer.get_base_layer()).__name__
            raise ValueError(
                f"this LoRA layer on {base} has no adapter {self.adapter_name!r}; it has {sorted(self.layer.lora_A)}"
            )
        self.check_supported()
        if keep not in get_args(Keep):
            raise ValueError(f"keep={keep!r} must be {one_of(Keep, keep)}")
        rank = plain_number(rank)
        largest, (smallest, why) = min(self.shape), self.min_supported_rank
        if isinstance(rank, bool) or not isinstance(rank, int) or not smallest <= rank <= largest:
            because = f" ({why} does not allow 0)" if smallest else ""
            raise ValueError(
                f"rank={rank!r} must be an integer from {smallest} to min(d_in, d_out) = {largest}{because}"
            )
        E, old_rank = self.experts, self.rank
        A, B = self.factors
        if optimizer is not None:
            check_optimizer(optimizer, (A, B))
        if rank == 0:
            return Resized(self, 0, A.detach()[:0].clone(), B.detach()[:, :0].clone(), optimizer)

        def new_columns(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            return self._new_columns(count, rank, init_lora_weights, generator)

        with torch.no_grad():
            columns = columns_at(*self.factors_by_rank, rank, keep, new_columns)
            new_A, new_B = as_stored(columns.A, columns.B, like=(A, B))
            resized = Resized(self, rank, new_A, new_B, optimizer)
            if optimizer is not None and rank != old_rank:
                resized.state_of_A = carried_state(optimizer, A, carry_state(columns.of_A, new_A, 0, E, old_rank))
                resized.state_of_B = carried_state(optimizer, B, carry_state(columns.of_B, new_B, 1, E, old_rank))
        return resized

    def set_factors(self, A: nn.Parameter, B: nn.Parameter) -> None:
        """Put other parameters into the layer, as FSDP2 needs; the modules that hold them stay the same objects."""
        layer, name = self.layer, self.adapter_name
        if self._embedding:
            layer.lora_embedding_A[name], layer.lora_embedding_B[name] = A, B
        else:
            layer.lora_A[name].weight, layer.lora_B[name].weight = A, B
        self.note_rank()

    def note_rank(self) -> None:
        """Tell the modules that hold the factors their widths."""
        if not self._embedding:
            down, up = self._entry("lora_A"), self._entry("lora_B")
            if isinstance(down, nn.Linear):
                down.out_features = up.in_features = self.A.shape[0]
            else:
                down.out_channels = up.in_channels = self.A.shape[0]

    def restore(self, layer: LoraLayer) -> None:
        """Put back what `remove` took out, at rank 0; into this layer, which may have been made since for another adapter."""
        self.layer = layer
        for attribute, entry in self._removed.items():
            getattr(layer, attribute)[self.adapter_name] = entry
        self._removed = {}
        # outside the tree the layer has missed what happened to the model
        layer.train(layer.get_base_layer().training)
        layer._move_adapter_to_device_of_base_layer(self.adapter_name)

    def remove(self) -> None:
        """Take the adapter out of the layer; the layer's other adapters, and which of them are active, stay.

        PEFT's own `delete_adapter` is for a whole model: it makes another adapter of the layer active in this one's place.
        """
        _ = self.shape  # remembered, since it is read from the factors
        for attribute in self.containers(self.layer):
            container = getattr(self.layer, attribute)
            if self.adapter_name in container:
                self._removed[attribute] = container[self.adapter_name]
                del container[self.adapter_name]

    @staticmethod
    def containers(layer: LoraLayer) -> list[str]:
        """Return the attributes in which a layer keeps the parts of its adapters, by their names."""
        names = (*layer.adapter_layer_names, *layer.other_param_names, "lora_variant")
        return [name for name in names if getattr(layer, name, None) is not None]

    def set_rank(self, rank: int) -> None:
        """Write the rank and the α that holds the scaling into the layer."""
        layer, name = self.layer, self.adapter_name
        alpha = self.alpha_at(rank) if rank else layer.lora_alpha[name]
        layer.r[name] = rank
        self.note_rank()
        layer.lora_alpha[name] = alpha

    def alpha_at(self, rank: int) -> float:
        """Return the α that holds the scaling s at a rank r: s·r, or s·√r with rsLoRA; an int where it is whole."""
        layer, name = self.layer, self.adapter_name
        old_rank, root = int(layer.r[name]), bool(layer.use_rslora.get(name))
        if old_rank == 0:
            return alpha_holding(self.scaling, 1, rank, root=root)
        return alpha_holding(layer.lora_alpha[name], old_rank, rank, root=root)  # exact where s is not

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


def alpha_holding(alpha: float, old_rank: int, rank: int, *, root: bool) -> float:
    """Return the α by which α/r, or α/√r, is as it was; an int where it is whole."""
    alpha = alpha * math.sqrt(rank / old_rank) if root else alpha * rank / old_rank
    return int(alpha) if float(alpha).is_integer() else alpha


@dataclass
class Resized:
    """A matrix at another rank: all tensors are made, and the model is as it was until `commit`."""

    matrix: LoraMatrix
    rank: int
    A: torch.Tensor
    B: torch.Tensor
    optimizer: torch.optim.Optimizer | None = None
    state_of_A: dict[str, Any] = field(default_factory=dict)
    state_of_B: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The factors and the state of each of their elements."""
        if self.optimizer is None:
            return [self.A, self.B]
        return [
            self.A,
            self.B,
            *per_element(self.optimizer, self.state_of_A),
            *per_element(self.optimizer, self.state_of_B),
        ]

    def commit(self) -> None:
        """Put it in place. The parameters stay the same objects, because anybody may hold them; their gradients go.

        `set_` gives a parameter another shape whether or not a gradient accumulator is alive, and keeps its hooks;
        `parameter.data = ...` needs the old shape, and torch.utils.swap_tensors loses the hooks.
        """
        if self.rank == self.matrix.rank:
            return
        parts = ((self.matrix.A, self.A, self.state_of_A), (self.matrix.B, self.B, self.state_of_B))
        with torch.no_grad():
            for factor, tensor, state in parts:
                factor.grad = None
                factor.set_(tensor)  # type: ignore[call-overload]
                if self.optimizer is not None:
                    set_state(self.optimizer, factor, state)
        self.matrix.set_rank(self.rank)


def generator_of(seed: str, name: str) -> torch.Generator:
    """New columns depend on the seed and the module's name alone, not on the order of modules or any global state."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

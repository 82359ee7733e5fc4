"""One LoRA adapter of one model: its matrices by name, their ranks, and how the ranks change under a live model.

Every change of ranks goes through `RankedAdapter.set_ranks`, so that the layers, the optimizer, PEFT's configuration and the
module tree always agree: the allocator's reallocation, and the loading of a checkpoint with other ranks than the model's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from glora.config import Keep
from glora.lora.discovery import adapted_model, base_model, find_matrices, peft_configs
from glora.lora.input_gradients import asked_by_user
from glora.lora.layout import is_unit
from glora.lora.matrix import LoraMatrix, Resized, generator_of
from glora.lora.peft_config import configured_scaling, describe_ranks
from glora.lora.rollback import undone_if_it_fails, uninterrupted

# (matrix, optimizer) -> a context within which the matrix's factors and their state are whole, and may change shape
Gather = Callable[[LoraMatrix, "torch.optim.Optimizer | None"], AbstractContextManager[None]]

# (name of a matrix, its tensors): makes the tensors the same on all processes
Share = Callable[[str, Iterable[torch.Tensor]], None]


class Layout:
    """A model in one process: nothing has to follow when its ranks change.

    glora.distributed has the layouts of DistributedDataParallel and FSDP2.
    """

    one_by_one = False  # all matrices whole at once may take too much memory

    @contextmanager
    def resizing(self, returning: Sequence[str]) -> Iterator[Gather]:
        """Change ranks within this context.

        Args:
            returning: The matrices that come back from rank 0.
        """
        yield lambda *_: nullcontext()


class RankedAdapter:
    """The matrices of one adapter and their ranks.

    Args:
        model: A PeftModel, a transformers model with an adapter, or a module that holds one such model; may be wrapped for
            parallel training.
        adapter_name: The adapter. Default: the active one.
        trainable: Reject an adapter that is frozen.

    Attributes:
        name: The adapter's name.
        model: The model as it was given.
        root: The base model, which module names are relative to.
        matrices: The matrices by name, those at rank 0 included.
        initial_ranks: The ranks when this object was made, or when the run that it resumes began.
        layout: How processes hold the model; changes of rank go through it. `glora.distributed` sets it.
        adapted: The model that PEFT has adapted.
        paths: The path of each matrix's LoRA layer in the base model, by the matrix's name.
        input_hooks: Keys of the hooks by which the user made the embedding's output require a gradient.

    Raises:
        ValueError: for what `find_matrices` rejects.
    """

    def __init__(self, model: nn.Module, adapter_name: str | None = None, *, trainable: bool = True) -> None:
        self.name, self.matrices = find_matrices(model, adapter_name, trainable=trainable)
        self.model = model
        adapted = adapted_model(model)
        self.root = base_model(adapted)
        self.initial_ranks = self.ranks
        self.input_hooks = asked_by_user(self.root)
        self.layout = Layout()
        self._configs = peft_configs(adapted)
        self._config = self._configs.get(self.name)
        self._exclude_modules = getattr(self._config, "exclude_modules", None)
        self.adapted = adapted
        paths = {module: path for path, module in self.root.named_modules()}
        self.paths = {name: paths[matrix.layer] for name, matrix in self.matrices.items()}

    def describes(self, model: nn.Module, adapter_name: str | None = None) -> bool:
        """Return whether the model still has this adapter, in these layers: it may have been merged, or replaced."""
        try:
            name, found = find_matrices(model, adapter_name)
        except ValueError:
            return False
        layers = {name: matrix.layer for name, matrix in found.items()}
        there = {matrix.name: matrix.layer for matrix in self.matrices.values() if matrix.present}  # some at rank 0
        return name == self.name and layers == there

    @property
    def ranks(self) -> dict[str, int]:
        """r_k by name; 0 where the adapter was taken out."""
        return {name: matrix.rank for name, matrix in self.matrices.items()}

    @property
    def present(self) -> list[LoraMatrix]:
        """The matrices that have an adapter."""
        return [matrix for matrix in self.matrices.values() if matrix.rank > 0]

    @property
    def factors(self) -> list[nn.Parameter]:
        """A and B of every matrix that has an adapter."""
        return [factor for matrix in self.present for factor in matrix.factors]

    @property
    def scalings(self) -> dict[str, float]:
        """s_k of each matrix that has an adapter."""
        return {matrix.name: matrix.scaling for matrix in self.present}

    def resume_from(self, initial_ranks: Mapping[str, int]) -> None:
        """Take over the ranks that the resumed run began with."""
        self.initial_ranks = {name: initial_ranks[name] for name in self.matrices}

    def scalings_beside(self, config: PeftConfig | None) -> dict[str, float]:
        """Return the scalings that a configuration beside saved weights gives the matrices that have an adapter."""
        names = [matrix.name for matrix in self.present] if isinstance(config, LoraConfig) else []
        return {name: configured_scaling(config, name) for name in names}

    @property
    def initialization(self) -> bool | str:
        """PEFT's init_lora_weights."""
        how: bool | str = getattr(self._config, "init_lora_weights", True)
        return how

    @property
    def costs(self) -> dict[str, int]:
        """Parameters of a rank of each matrix: d_in + d_out."""
        return {name: matrix.cost for name, matrix in self.matrices.items()}

    @property
    def parameters(self) -> int:
        """Parameters at the present ranks: Σ r_k·(d_in + d_out)."""
        return sum(matrix.rank * matrix.cost for matrix in self.matrices.values())

    def set_ranks(
        self,
        ranks: Mapping[str, int],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        keep: Keep = "norm",
        seed: str = "0",
        share: Share | None = None,
        keep_places: bool = False,
    ) -> None:
        """Give every matrix its rank: layers, optimizer, module tree and PEFT's configuration.

        All matrices change or none: every tensor is made first, Ctrl-C waits while they are put in place, and what fails
        there is undone. (Under FSDP2 one matrix changes after another.)

        Args:
            ranks: The rank of each matrix, by name. At 0 the LoRA layer is taken out of the model.
            optimizer: The optimizer that trains the adapter, if there is one yet.
            keep: Columns that a shrinking matrix keeps.
            seed: Seeds the new rows of A, together with the matrix's name.
            share: Makes the factors of a resized matrix, and their moments, the same on all processes.
            keep_places: Leave the LoRA layers at rank 0 in the model until `take_out_empty`.
        """
        changing = [matrix for name, matrix in self.matrices.items() if ranks[name] != matrix.rank]
        returning = [matrix.name for matrix in changing if matrix.rank == 0]
        steps = [[matrix] for matrix in changing] if self.layout.one_by_one else [changing]
        how: dict[str, Any] = dict(optimizer=optimizer, keep=keep, init_lora_weights=self.initialization)
        try:
            with self.layout.resizing(returning) as gather:
                for matrices in steps:
                    with ExitStack() as stack:
                        for matrix in matrices:
                            stack.enter_context(gather(matrix, optimizer))
                        resized = []
                        for matrix in matrices:
                            rank, generator = ranks[matrix.name], generator_of(seed, matrix.name)
                            resized.append(matrix.resized(rank, generator=generator, **how))
                            if share is not None and rank > 0:
                                share(matrix.name, resized[-1].tensors)
                        with uninterrupted():
                            self.put_in_place(resized, keep_places=keep_places)
        finally:
            if self.layout.one_by_one:  # interrupted, too, so that the matrices that are changed can be saved
                self._describe()

    def put_in_place(self, resized: Iterable[Resized], *, keep_places: bool = False) -> None:
        """Commit matrices at other ranks: the layers, the optimizer's state, the module tree and PEFT's configuration."""
        resized = list(resized)
        optimizer = next((one.optimizer for one in resized), None)
        with undone_if_it_fails([one.matrix for one in resized], optimizer, self.root):
            for one in resized:
                if not one.matrix.present:
                    self._take_in(one.matrix)
                one.commit()
                if one.rank == 0 and not keep_places:
                    self._take_out(one.matrix)
            if not self.layout.one_by_one:
                self._describe()

    def _take_in(self, matrix: LoraMatrix) -> None:
        """Put a matrix's adapter back into the model, as it is now: other adapters may have come to this module since."""
        there = self.root.get_submodule(matrix.name)
        if isinstance(there, LoraLayer):
            layer = there
        else:
            layer = matrix.layer
            layer.base_layer = there
            self._put_into_tree(matrix, layer)
        matrix.restore(layer)
        if (other := next((m for m in self.present if m is not matrix), None)) is not None:
            # Another adapter may have been made active, or all of them disabled.
            layer._active_adapter = copy.copy(other.layer._active_adapter)
            layer._disable_adapters = other.layer._disable_adapters
            if self.name not in layer.active_adapters:
                for factor in matrix.factors:
                    factor.requires_grad_(False)

    def _take_out(self, matrix: LoraMatrix) -> None:
        layer = matrix.layer
        matrix.remove()
        # it may serve other adapters, or gather the shards of its base
        serves_others = len(layer.lora_A) + len(layer.lora_embedding_A) > 0 or is_unit(layer)
        if not serves_others and self.root.get_submodule(matrix.name) is layer:
            self._put_into_tree(matrix, cast(nn.Module, layer.base_layer))

    def take_out_empty(self) -> None:
        """Take the adapters of rank 0 out that `set_ranks(..., keep_places=True)` has left in the model."""
        for matrix in self.matrices.values():
            if matrix.present and matrix.rank == 0:
                self._take_out(matrix)

    def _describe(self) -> None:
        if self.name in self._configs:
            # PEFT keeps the very object that it was given; other adapters and models with the same one keep it as it is
            config = copy.deepcopy(self._configs[self.name])
            alphas = {matrix.name: matrix.layer.lora_alpha[self.name] for matrix in self.present}
            describe_ranks(config, self.ranks, alphas, self._exclude_modules)
            self._configs[self.name] = config

    def _put_into_tree(self, matrix: LoraMatrix, module: nn.Module) -> None:
        parent, _, child = matrix.name.rpartition(".")
        setattr(self.root.get_submodule(parent), child, module)

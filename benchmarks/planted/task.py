"""The task whose best ranks are known: a teacher that differs from the student's base by updates of known rank.

The base is a small random encoder. The teacher is the base with an update U_k added to each of its n matrices: rank U_k is 0,
1, 2, 8 or 16, dealt out evenly and at random, and all updates that are not zero have the same Frobenius norm, so that size
says nothing about rank. U_k = c·P_k·Q_kᵀ with orthonormal P_k and Q_k: its directions are equally large.

The student is the base with LoRA on the same matrices. It is trained to the hidden states of all the teacher's layers on
2,400 sequences of random tokens, over and over. The loss that counts is the mean squared difference on held-out tokens,
without noise.
"""

from __future__ import annotations

import dataclasses

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel

PLANTED_RANKS = (0, 1, 2, 8, 16)
TARGETS = ("query", "key", "value", "dense")
VOCABULARY, TOKENS, HEADS = 256, 8, 4
BATCH, STEPS_PER_EPOCH, HELD_OUT = 16, 150, 256


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings that a cell of the benchmark has in common over its variants and seeds.

    Attributes:
        width: d of the encoder; its feed-forward matrices are d × 4d.
        layers: Layers of the encoder, six matrices each.
        rank: r of uniform LoRA; the budget is that of n·r ranks.
        budget: "rank" or "parameters", as in RankAllocationConfig.
        steps: Optimizer steps.
        warmup: Share of the steps with uniform ranks.
        noise: Standard deviation of the noise on the teacher's states in the training data; they have 1 themselves.
        update: ‖U_k‖_F / ‖W_k‖_F of a square matrix; a feed-forward matrix gets the same ‖U_k‖_F.
        learning_rate: AdamW's; it rises over 5 % of the steps and falls linearly to 0.
    """

    width: int = 64
    layers: int = 3
    rank: int = 4
    budget: str = "rank"
    steps: int = 600
    warmup: float = 0.25
    noise: float = 0.0
    update: float = 0.25
    learning_rate: float = 1e-2

    @property
    def warmup_steps(self) -> int:
        """T_warmup."""
        return max(1, round(self.warmup * self.steps))


class PlantedTask:
    """A base, a teacher and the tokens, all from one seed.

    Args:
        setting, seed: What and which.
        adapter: The student's adapter. Default: LoRA of the setting's rank.

    Attributes:
        student: The base with the adapter.
        planted: rank U_k by module name.
        updates: U_k by module name, shape (d_out, d_in).
        held_out: Tokens that are not trained on, shape (256, 8).
        targets: The teacher's states for them, shape (layers, 256, 8, d).
        training_tokens, training_targets: The training data, likewise.
    """

    def __init__(self, setting: Setting, seed: int, adapter: PeftConfig | None = None) -> None:
        self.setting = setting
        torch.manual_seed(seed)
        base = _encoder(setting)
        teacher = _encoder(setting)
        teacher.load_state_dict(base.state_dict())
        self._generator = generator = torch.Generator().manual_seed(seed)

        matrices = {name: m for name, m in teacher.named_modules() if isinstance(m, nn.Linear)}
        order = torch.randperm(len(matrices), generator=generator).tolist()
        self.planted = {name: PLANTED_RANKS[place % len(PLANTED_RANKS)] for name, place in zip(matrices, order)}
        norm = setting.update * setting.width**0.5
        self.updates = {name: _update(m.weight, self.planted[name], norm, generator) for name, m in matrices.items()}
        with torch.no_grad():
            for name, matrix in matrices.items():
                matrix.weight += self.updates[name]

        self.held_out = self._tokens(HELD_OUT)
        self.training_tokens = self._tokens(BATCH * STEPS_PER_EPOCH)
        with torch.no_grad():
            self.targets, targets = _states(teacher, self.held_out), _states(teacher, self.training_tokens)
        self.training_targets = targets + setting.noise * torch.randn(targets.shape, generator=generator)
        self.student: PeftModel = get_peft_model(base, adapter or lora_of(setting.rank))
        self._order: list[torch.Tensor] = []

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next tokens to train on and their targets; every epoch in an order of its own."""
        if not self._order:
            self._order = list(torch.randperm(len(self.training_tokens), generator=self._generator).split(BATCH))
        index = self._order.pop()
        return self.training_tokens[index], self.training_targets[:, index]

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean squared difference between the student's states and the teacher's."""
        return (self.states(tokens) - targets).square().mean()

    def states(self, tokens: torch.Tensor) -> torch.Tensor:
        """The student's states, shape (layers, batch, 8, d)."""
        return _states(self.student.get_base_model(), tokens)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The loss on the held-out tokens."""
        return float(self.loss(self.held_out, self.targets))

    def _tokens(self, count: int) -> torch.Tensor:
        return torch.randint(VOCABULARY, (count, TOKENS), generator=self._generator)


def lora_of(rank: int) -> LoraConfig:
    """LoRA of this rank on every matrix; the scaling is 2 at every rank."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS))


def _states(encoder: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return torch.stack(encoder(input_ids=tokens, output_hidden_states=True).hidden_states[1:])


def _encoder(setting: Setting) -> BertModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * setting.width,
        max_position_embeddings=TOKENS,
        initializer_range=setting.width**-0.5,  # so that what a matrix gives is as large as what it gets
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def _update(weight: torch.Tensor, rank: int, norm: float, generator: torch.Generator) -> torch.Tensor:
    if rank == 0:
        return torch.zeros_like(weight)
    left, right = (torch.linalg.qr(torch.randn(d, rank, generator=generator))[0] for d in weight.shape)
    return norm / rank**0.5 * left @ right.T

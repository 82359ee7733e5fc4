"""What docs/support.md says of models and adapters, one case a line: it is walked through an adapter's life, or refused.

The tests run the cases; tests/unit/test_support_table.py compares them with the document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from peft import AdaLoraConfig, EvaConfig, LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, CordaConfig, KasaConfig, MontecloraConfig, VeloraConfig
from torch import nn

from integration.adapter_life import Setup
from integration.layer_kinds import (
    ATTENTION,
    TARGETS,
    WIDTH,
    Attention,
    Mixture,
    ThreeLayers,
    add_adapter,
    causal,
    conv1d,
    conv2d,
    conv3d,
    gpt2,
    in_a_copied_module,
    indices,
    linear,
    llama,
    load_adapter,
    lora,
    loraplus,
    of,
    seeded,
    tables,
    text,
    tied_llama,
    two_adapted,
    with_corda,
    with_eva,
    with_lora_ga,
    with_own_layer,
)
from integration.model_families import FAMILIES


@dataclass(frozen=True)
class Works:
    """Works, as a walk through an adapter's life shows, or a test of its own, "folder/file.py::test"."""

    thing: str
    shown_by: Setup | str
    how: str = ""
    outcome: str = "works"


@dataclass(frozen=True)
class Refused:
    """Refused when the allocator is made, with an error that says why and what to do instead."""

    thing: str
    make: Callable[[], nn.Module]
    error: str
    how: str
    allocation: dict[str, Any] = field(default_factory=dict)
    outcome: str = "refused"


def _adapted(base: Callable[[], nn.Module], config: Callable[[], Any], adapt: Any = get_peft_model) -> Any:
    return lambda: adapt(base(), config())


def _from_the_base(name: str, init: str, make: Callable[[], nn.Module]) -> Refused:
    error = f"init_lora_weights='{init}' moves a part of the base weights into the adapter, .* Get the ranks first"
    return Refused(name, make, error, FROM_THE_BASE)


def _variant(name: str, **fields: Any) -> Refused:
    error = "q_proj: the LoRA variant .*, which is more than a trained B·A, is not supported by glora; use plain LoRA or DoRA"
    return Refused(name, _adapted(llama, causal(**fields)), error, "use plain LoRA or DoRA")


def _without_exact_signal(kind: str, make: Callable[[], nn.Module]) -> Refused:
    error = 'signal="delta_exact" measures linear layers only, and this is LoRA on .*; use signal="delta"'
    return Refused(f'`signal="delta_exact"` on {kind}', make, error, 'use `signal="delta"`', {"signal": "delta_exact"})


def _merged() -> nn.Module:
    model = get_peft_model(linear(), lora()())
    model.merge_adapter()
    return model


def _frozen() -> nn.Module:
    return get_peft_model(linear(), lora()()).requires_grad_(False)


def _two_active() -> nn.Module:
    model = get_peft_model(linear(), lora()())
    model.add_adapter("second", lora()())
    model.base_model.set_adapter(["default", "second"])
    return model


def _loftq() -> nn.Module:
    """As if by LoftQ, which PEFT makes only where bitsandbytes is installed."""
    model = get_peft_model(linear(), lora()())
    model.peft_config["default"].init_lora_weights = "loftq"
    return model


def _in_bfloat16(base: nn.Module, config: LoraConfig) -> nn.Module:
    return get_peft_model(base.bfloat16(), config, autocast_adapter_dtype=False)


def _load_in_bfloat16(base: nn.Module, folder: Any) -> nn.Module:
    return PeftModel.from_pretrained(base.bfloat16(), folder, autocast_adapter_dtype=False)


def _inputs_in_bfloat16() -> dict[str, Any]:
    return {"x": of(6, WIDTH)()["x"].bfloat16()}


QUANTISED = "integration/test_layer_kinds.py::test_quantised_bases"
RANK_ONE = "keeps at least rank 1"
FROM_THE_BASE = "get the ranks with `suggest_ranks` and initialise with that `rank_pattern`; or initialise as usual"
VECTORS, IMAGES = of(6, WIDTH), of(6, WIDTH, 5, 5)
MIXTURE = lora(target_modules=[], target_parameters=["experts.up_proj", "experts.down_proj", "router.weight"])

LAYERS: list[Works | Refused] = [
    Works("`nn.Linear`", Setup(linear, lora(), VECTORS)),
    Works(
        "transformers' `Conv1D` (GPT-2)",
        Setup(gpt2, causal(["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True), text),
    ),
    Works("`nn.Embedding`", Setup(tables, lora(), indices)),
    Works("`nn.Conv1d`", Setup(conv1d, lora(), of(6, WIDTH, 5))),
    Works("`nn.Conv2d`", Setup(conv2d, lora(), IMAGES)),
    Works("`nn.Conv3d`", Setup(conv3d, lora(), of(6, WIDTH, 3, 3, 3))),
    Refused(
        "grouped convolutions",
        _adapted(lambda: ThreeLayers(lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=4)), lora()),
        "first: a convolution with groups=4 is not supported by glora; leave it out of target_modules",
        "leave them out of `target_modules`",
    ),
    Works(
        "experts by `target_parameters`, (E, d_out, d_in)",
        Setup(seeded(lambda: Mixture(False)), MIXTURE, VECTORS),
        "all experts of a parameter share one rank, at least 1; PEFT warns on loading that the patterns of parameters were "
        "ignored, and follows them",
    ),
    Works(
        "experts by `target_parameters`, (E, d_in, d_out)",
        Setup(seeded(lambda: Mixture(True)), MIXTURE, VECTORS),
        "the same",
    ),
    Works(
        "bitsandbytes 4-bit (NF4)",
        "integration/test_layer_kinds.py::test_quantised_bases",
        "tested on a CPU; PEFT rounds when it merges",
    ),
    Works(
        "bitsandbytes 8-bit",
        "integration/test_layer_kinds.py::test_quantised_bases",
        "tested on a CPU; PEFT rounds when it merges",
    ),
    Works(
        "a layer that a forward pass uses more than once",
        Setup(seeded(lambda: ThreeLayers(lambda: nn.Linear(WIDTH, WIDTH), times=2)), lora(), VECTORS),
    ),
    Refused(
        "`nn.MultiheadAttention`",
        _adapted(Attention, lora(target_modules=["attention"])),
        "attention: LoRA on MultiheadAttention .* leave it out of target_modules",
        "leave it out of `target_modules`",
    ),
    Works(
        "`out_proj` inside `nn.MultiheadAttention`",
        "integration/test_layer_kinds.py::test_lora_that_never_gets_a_gradient_is_named",
        "gets no gradient in PEFT; is named in a warning, and its rank goes to others",
    ),
    Refused(
        "a LoRA layer class of one's own",
        with_own_layer,
        "first: OwnLora, a LoRA layer that is not PEFT's own, is not supported by glora; leave it out of target_modules",
        "leave it out of `target_modules`",
    ),
    Refused(
        "adapter weights in float64 or float8",
        lambda: get_peft_model(linear(), lora()()).double(),
        "first: adapter weights in float64 is not supported by glora; load the model in float32 or bfloat16",
        "load the model in float32 or bfloat16",
    ),
    _without_exact_signal("embeddings", _adapted(tables, lora())),
    _without_exact_signal("convolutions", _adapted(conv2d, lora())),
    _without_exact_signal("experts", _adapted(seeded(lambda: Mixture(False)), MIXTURE)),
]

ADAPTERS: list[Works | Refused] = [
    Works(
        "bfloat16 weights",
        Setup(linear, lora(), _inputs_in_bfloat16, adapt=_in_bfloat16, load=_load_in_bfloat16, rounding=2e-2),
    ),
    Works("rsLoRA", Setup(linear, lora(use_rslora=True), VECTORS)),
    Works("DoRA on linear layers", Setup(linear, lora(use_dora=True), VECTORS), RANK_ONE),
    Works("DoRA on embeddings", Setup(tables, lora(use_dora=True), indices), RANK_ONE),
    Works("DoRA on `nn.Conv1d`", Setup(conv1d, lora(use_dora=True), of(6, WIDTH, 5)), RANK_ONE),
    Works("DoRA on `nn.Conv2d`", Setup(conv2d, lora(use_dora=True), IMAGES), RANK_ONE),
    Works("DoRA on `nn.Conv3d`", Setup(conv3d, lora(use_dora=True), of(6, WIDTH, 3, 3, 3)), RANK_ONE),
    Works("`lora_bias`", Setup(linear, lora(lora_bias=True), VECTORS), RANK_ONE),
    Works('`bias="all"`', Setup(linear, lora(bias="all"), VECTORS)),
    Works(
        '`bias="lora_only"`',
        Setup(linear, lora(bias="lora_only"), VECTORS),
        f"{RANK_ONE} where there is a bias",
    ),
    Works("dropout", Setup(linear, lora(lora_dropout=0.3), VECTORS)),
    Works(
        "LoRA+ parameter groups",
        Setup(llama, causal([*ATTENTION, "embed_tokens"]), text, optimizer=loraplus),
        "new factors go into the groups of the old ones",
    ),
    Works("`modules_to_save`", Setup(linear, lora(modules_to_save=["head"]), VECTORS)),
    Works("`trainable_token_indices`", Setup(llama, causal(trainable_token_indices=[3, 4]), text)),
    Works(
        "`trainable_token_indices`, tied embeddings",
        Setup(tied_llama, causal(trainable_token_indices=[3, 4]), text),
    ),
    Works(
        "LoRA on input and output embedding",
        Setup(llama, causal([*ATTENTION, "embed_tokens", "lm_head"]), text),
    ),
    Works(
        "LoRA on tied embeddings",
        Setup(tied_llama, causal([*ATTENTION, "embed_tokens", "lm_head"]), text, merges=False),
        "each has a rank of its own; PEFT cannot merge into the shared weight",
    ),
    Works(
        "`ensure_weight_tying` with `modules_to_save`",
        Setup(tied_llama, causal(modules_to_save=["embed_tokens"], ensure_weight_tying=True), text),
    ),
    Refused(
        "`ensure_weight_tying` with LoRA on the embedding",
        _adapted(tied_llama, causal([*ATTENTION, "embed_tokens"], ensure_weight_tying=True)),
        "an adapter tied to the embedding's .* set ensure_weight_tying=False, or leave the embedding out",
        "set it to False, or leave the embedding out of `target_modules`",
    ),
    Works(
        "`rank_pattern` and `alpha_pattern` to begin with",
        Setup(linear, lora(rank_pattern={"second": 5}, alpha_pattern={"second": 3}), VECTORS),
        "each layer's scaling is held",
    ),
    Works(
        "`target_modules` as a regular expression",
        Setup(linear, lora(target_modules="first|second|third"), VECTORS),
    ),
    Works(
        "`exclude_modules`",
        Setup(llama, causal([*ATTENTION, "o_proj"], exclude_modules=["o_proj"]), text),
        "matrices at rank 0 are added to it",
    ),
    Works("`layers_to_transform`", Setup(lambda: llama(layers=2), causal(layers_to_transform=[1]), text)),
    Works(
        "`layer_replication`",
        Setup(lambda: llama(layers=2), causal(layer_replication=[(0, 2), (0, 2)]), text, merges=False),
        "PEFT cannot merge it",
    ),
    Works(
        "`model.add_adapter`",
        Setup(llama, lora(target_modules=ATTENTION), text, adapt=add_adapter, load=load_adapter, merges=False),
    ),
    Works(
        "an adapted model inside a module of one's own",
        "integration/test_layer_kinds.py::test_an_adapted_model_inside_another",
        "names are relative to the adapted model; save that one",
    ),
    Refused(
        "several adapted models inside one",
        two_adapted,
        "2 modules of this ModuleDict have adapters of their own .*; allocate the ranks of each by itself",
        "make a `RankAllocator` for each, in a loop of your own",
    ),
    Refused(
        "`get_peft_model(mixed=True)`",
        lambda: get_peft_model(linear(), lora()(), mixed=True),
        "PEFT cannot save a PeftMixedModel; make the model with get_peft_model",
        "PEFT cannot save it: leave out `mixed=True`",
    ),
    Works("several adapters, one active", "integration/test_layer_kinds.py::test_other_adapters_stay_as_they_are"),
    Refused(
        "several active adapters",
        _two_active,
        "2 adapters are active at once .*; name the one to allocate",
        "name one with `adapter_name`",
    ),
    Works(
        "one `LoraConfig` for several adapters or models",
        "integration/test_layer_kinds.py::test_a_configuration_that_others_share_stays_as_it_was",
    ),
    Refused(
        "LoRA inside a module that another adapter has in `modules_to_save`",
        in_a_copied_module,
        "head.*: LoRA inside a module that another adapter copies by modules_to_save is not saved by PEFT",
        "PEFT does not save it: leave it out of `target_modules`",
    ),
    Refused(
        "a merged adapter",
        _merged,
        "first: a merged adapter .* call model.unmerge_adapter",
        "call `unmerge_adapter` first",
    ),
    Refused(
        "a frozen adapter",
        _frozen,
        "adapter 'default' is frozen: .* Load it with is_trainable=True",
        "load it with `is_trainable=True`",
    ),
    Refused(
        "AdaLoRA and other tuners",
        _adapted(linear, lambda: AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=TARGETS)),
        "adapter 'default' is of type ADALORA; .* Make the model with peft.LoraConfig",
        "use `LoraConfig`",
    ),
    _variant("aLoRA", alora_invocation_tokens=[5, 6]),
    _variant("BD-LoRA", use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj", "k_proj", "v_proj"], nblocks=2)),
    _variant("KaSA", kasa_config=KasaConfig()),
    _variant("MonteCLoRA", monteclora_config=MontecloraConfig(num_samples=2)),
    _variant("VeLoRA", velora_config=VeloraConfig(num_groups=4)),
]

INITIALISATIONS: list[Works | Refused] = [
    Works("the default, and `False`", Setup(linear, lora(init_lora_weights=False), VECTORS)),
    Works(
        "`gaussian`",
        Setup(linear, lora(init_lora_weights="gaussian"), VECTORS),
        "new columns are drawn so too",
    ),
    Works(
        "`orthogonal`",
        Setup(linear, lora(init_lora_weights="orthogonal"), VECTORS),
        "new columns are drawn as by default",
    ),
    Works(
        "EVA",
        Setup(
            llama,
            causal([*ATTENTION, "o_proj"], init_lora_weights="eva", eva_config=EvaConfig(rho=2.0)),
            text,
            adapt=with_eva,
        ),
        'begins with the ranks that EVA gave; its A follows the inputs, so use `signal="delta_exact"`',
    ),
    Works(
        "EVA with rsLoRA",
        Setup(
            llama,
            causal([*ATTENTION, "o_proj"], init_lora_weights="eva", eva_config=EvaConfig(rho=2.0), use_rslora=True),
            text,
            adapt=with_eva,
        ),
        "the layers' scalings differ, as EVA leaves them",
    ),
    _from_the_base("PiSSA", "pissa", _adapted(linear, lora(init_lora_weights="pissa"))),
    _from_the_base("PiSSA by iterations", "pissa_niter_4", _adapted(linear, lora(init_lora_weights="pissa_niter_4"))),
    _from_the_base("OLoRA", "olora", _adapted(linear, lora(init_lora_weights="olora"))),
    _from_the_base(
        "CorDA", "corda", _adapted(linear, lora(init_lora_weights="corda", corda_config=CordaConfig()), with_corda)
    ),
    _from_the_base("LoftQ", "loftq", _loftq),
    _from_the_base(
        "LoRA-GA",
        "lora_ga",
        _adapted(linear, lora(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()), with_lora_ga),
    ),
    Refused(
        "MiCA",
        _adapted(linear, lora(init_lora_weights="mica")),
        "first: the LoRA variant MiCALinear, which is more than a trained B·A, is not supported",
        "use plain LoRA: MiCA freezes B, so a new column would never learn",
    ),
]

MODELS = [
    Works(
        family.name, Setup(family.base, partial(LoraConfig, r=4, lora_alpha=8, **family.lora), family.batch), family.how
    )
    for family in FAMILIES
]

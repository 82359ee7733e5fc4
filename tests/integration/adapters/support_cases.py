"""Rows of docs/support.md on models and adapters: each case works through an adapter's whole life, or is not supported.

test_layer_kinds.py runs the cases; tests/published/test_support_table.py compares them with the document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from peft import AdaLoraConfig, EvaConfig, LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, CordaConfig, KasaConfig, MontecloraConfig, VeloraConfig
from torch import nn

from integration.adapters.adapter_life import Setup
from integration.adapters.layer_kinds import (
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
    with_custom_layer,
    with_eva,
    with_lora_ga,
)
from integration.adapters.model_families import FAMILIES


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        thing: The row's name.
        setup: What walks through an adapter's life; None where another test shows that it works, or where nothing does.
        shown_by: That other test, "folder/file.py::test".
        make: Makes a model for which the allocator raises a ValueError.
        error: The ValueError, as a regular expression: the matrix or the value, and the fix.
        allocation: Fields of the allocation with which it does.
    """

    thing: str
    setup: Setup | None = None
    shown_by: str = ""
    make: Callable[[], nn.Module] | None = None
    error: str = ""
    allocation: dict[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        return "not supported" if self.make else "works"


def works(thing: str, base: Callable[[], nn.Module], config: Any, inputs: Any, **fields: Any) -> Case:
    return Case(thing, Setup(base, config, inputs, **fields))


def shown(thing: str, test: str) -> Case:
    return Case(thing, shown_by=f"integration/adapters/test_layer_kinds.py::test_{test}")


def not_supported(thing: str, make: Callable[[], nn.Module], error: str, **allocation: Any) -> Case:
    return Case(thing, make=make, error=error, allocation=allocation)


def _adapted(base: Callable[[], nn.Module], config: Callable[[], Any], adapt: Any = get_peft_model) -> Any:
    return lambda: adapt(base(), config())


def _initialised(thing: str, init: str, make: Callable[[], nn.Module] | None = None) -> Case:
    make = make or _adapted(linear, lora(init_lora_weights=init))
    return not_supported(thing, make, f"init_lora_weights='{init}'.*suggest_ranks")


def _variant(thing: str, **fields: Any) -> Case:
    return not_supported(
        thing, _adapted(llama, causal(**fields)), "q_proj: the LoRA variant .*; use plain LoRA or DoRA"
    )


def _without_exact_signal(kind: str, make: Callable[[], nn.Module]) -> Case:
    thing, error = f'`signal="delta_exact"` on {kind}', 'signal="delta_exact" .* linear layers.*; use signal="delta"'
    return not_supported(thing, make, error, signal="delta_exact")


def _merged() -> nn.Module:
    model = get_peft_model(linear(), lora()())
    model.merge_adapter()
    return model


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


VECTORS, SIGNALS, IMAGES, VOLUMES = of(6, WIDTH), of(6, WIDTH, 5), of(6, WIDTH, 5, 5), of(6, WIDTH, 3, 3, 3)
MIXTURE = lora(target_modules=[], target_parameters=["experts.up_proj", "experts.down_proj", "router.weight"])
EMBEDDED = [*ATTENTION, "embed_tokens"]
EVA = partial(causal, [*ATTENTION, "o_proj"], init_lora_weights="eva", eva_config=EvaConfig(rho=2.0))
grouped = seeded(lambda: ThreeLayers(lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=4)))
twice = seeded(lambda: ThreeLayers(lambda: nn.Linear(WIDTH, WIDTH), times=2))
mixture, transposed_mixture = seeded(lambda: Mixture(False)), seeded(lambda: Mixture(True))
two_layers = partial(llama, layers=2)

LAYERS = [
    works("`nn.Linear`", linear, lora(), VECTORS),
    works("transformers' `Conv1D` (GPT-2)", gpt2, causal(["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True), text),
    works("`nn.Embedding`", tables, lora(), indices),
    works("`nn.Conv1d`", conv1d, lora(), SIGNALS),
    works("`nn.Conv2d`", conv2d, lora(), IMAGES),
    works("`nn.Conv3d`", conv3d, lora(), VOLUMES),
    not_supported("grouped convolutions", _adapted(grouped, lora()), "first: .* groups=4 .*out of target_modules"),
    works("experts by `target_parameters`, (E, d_out, d_in)", mixture, MIXTURE, VECTORS),
    works("experts by `target_parameters`, (E, d_in, d_out)", transposed_mixture, MIXTURE, VECTORS),
    shown("bitsandbytes 4-bit (NF4)", "quantised_bases"),
    shown("bitsandbytes 8-bit", "quantised_bases"),
    works("a layer that a forward pass uses more than once", twice, lora(), VECTORS),
    not_supported(
        "`nn.MultiheadAttention`",
        _adapted(Attention, lora(target_modules=["attention"])),
        "attention: LoRA on MultiheadAttention .*out of target_modules",
    ),
    shown("`out_proj` inside `nn.MultiheadAttention`", "lora_that_never_gets_a_gradient_is_named"),
    not_supported("a custom LoRA layer class", with_custom_layer, "first: CustomLora.*out of target_modules"),
    not_supported(
        "adapter weights in float64 or float8",
        lambda: get_peft_model(linear(), lora()()).double(),
        "first: .* float64 .* float32 or bfloat16",
    ),
    _without_exact_signal("embeddings", _adapted(tables, lora())),
    _without_exact_signal("convolutions", _adapted(conv2d, lora())),
    _without_exact_signal("experts", _adapted(mixture, MIXTURE)),
]

ADAPTERS = [
    works(
        "bfloat16 weights",
        linear,
        lora(),
        _inputs_in_bfloat16,
        adapt=_in_bfloat16,
        load=_load_in_bfloat16,
        rounding=2e-2,
    ),
    works("rsLoRA", linear, lora(use_rslora=True), VECTORS),
    works("DoRA on linear layers", linear, lora(use_dora=True), VECTORS),
    works("DoRA on embeddings", tables, lora(use_dora=True), indices),
    works("DoRA on `nn.Conv1d`", conv1d, lora(use_dora=True), SIGNALS),
    works("DoRA on `nn.Conv2d`", conv2d, lora(use_dora=True), IMAGES),
    works("DoRA on `nn.Conv3d`", conv3d, lora(use_dora=True), VOLUMES),
    works("`lora_bias`", linear, lora(lora_bias=True), VECTORS),
    works('`bias="all"`', linear, lora(bias="all"), VECTORS),
    works('`bias="lora_only"`', linear, lora(bias="lora_only"), VECTORS),
    works("dropout", linear, lora(lora_dropout=0.3), VECTORS),
    works("LoRA+ parameter groups", llama, causal(EMBEDDED), text, optimizer=loraplus),
    works("`modules_to_save`", linear, lora(modules_to_save=["head"]), VECTORS),
    works("`trainable_token_indices`", llama, causal(trainable_token_indices=[3, 4]), text),
    works("`trainable_token_indices`, tied embeddings", tied_llama, causal(trainable_token_indices=[3, 4]), text),
    works("LoRA on input and output embedding", llama, causal([*EMBEDDED, "lm_head"]), text),
    works("LoRA on tied embeddings", tied_llama, causal([*EMBEDDED, "lm_head"]), text, merges=False),
    works(
        "`ensure_weight_tying` with `modules_to_save`",
        tied_llama,
        causal(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        text,
    ),
    not_supported(
        "`ensure_weight_tying` with LoRA on the embedding",
        _adapted(tied_llama, causal(EMBEDDED, ensure_weight_tying=True)),
        "ensure_weight_tying=False",
    ),
    works(
        "`rank_pattern` and `alpha_pattern` to begin with",
        linear,
        lora(rank_pattern={"second": 5}, alpha_pattern={"second": 3}),
        VECTORS,
    ),
    works("`target_modules` as a regular expression", linear, lora(target_modules="first|second|third"), VECTORS),
    works("`exclude_modules`", llama, causal([*ATTENTION, "o_proj"], exclude_modules=["o_proj"]), text),
    works("`layers_to_transform`", two_layers, causal(layers_to_transform=[1]), text),
    works("`layer_replication`", two_layers, causal(layer_replication=[(0, 2), (0, 2)]), text, merges=False),
    works(
        "`model.add_adapter`",
        llama,
        lora(target_modules=ATTENTION),
        text,
        adapt=add_adapter,
        load=load_adapter,
        merges=False,
    ),
    shown("an adapted model inside your own module", "an_adapted_model_inside_another"),
    not_supported("several adapted models inside one", two_adapted, "2 modules .* RankAllocator"),
    not_supported(
        "`get_peft_model(mixed=True)`", lambda: get_peft_model(linear(), lora()(), mixed=True), "without mixed=True"
    ),
    shown("several adapters, one active", "other_adapters_stay_as_they_are"),
    not_supported("several active adapters", _two_active, "2 adapters .*adapter_name="),
    shown("one `LoraConfig` for several adapters or models", "a_configuration_that_others_share_stays_as_it_was"),
    not_supported(
        "LoRA inside a module that another adapter has in `modules_to_save`",
        in_a_copied_module,
        "head.*: .*modules_to_save.*target_modules",
    ),
    not_supported("a merged adapter", _merged, "first: a merged adapter .*unmerge_adapter"),
    not_supported(
        "a frozen adapter",
        lambda: get_peft_model(linear(), lora()()).requires_grad_(False),
        "'default' is frozen.*is_trainable=True",
    ),
    not_supported(
        "AdaLoRA and other tuners",
        _adapted(linear, lambda: AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=TARGETS)),
        "'default' is of type ADALORA.*LoraConfig",
    ),
    _variant("aLoRA", alora_invocation_tokens=[5, 6]),
    _variant("BD-LoRA", use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj", "k_proj", "v_proj"], nblocks=2)),
    _variant("KaSA", kasa_config=KasaConfig()),
    _variant("MonteCLoRA", monteclora_config=MontecloraConfig(num_samples=2)),
    _variant("VeLoRA", velora_config=VeloraConfig(num_groups=4)),
]

INITIALISATIONS = [
    works("the default, and `False`", linear, lora(init_lora_weights=False), VECTORS),
    works("`gaussian`", linear, lora(init_lora_weights="gaussian"), VECTORS),
    works("`orthogonal`", linear, lora(init_lora_weights="orthogonal"), VECTORS),
    works("EVA", llama, EVA(), text, adapt=with_eva),
    works("EVA with rsLoRA", llama, EVA(use_rslora=True), text, adapt=with_eva),
    _initialised("PiSSA", "pissa"),
    _initialised("PiSSA by iterations", "pissa_niter_4"),
    _initialised("OLoRA", "olora"),
    _initialised(
        "CorDA",
        "corda",
        _adapted(linear, lora(init_lora_weights="corda", corda_config=CordaConfig()), with_corda),
    ),
    _initialised("LoftQ", "loftq", _loftq),
    _initialised(
        "LoRA-GA",
        "lora_ga",
        _adapted(linear, lora(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()), with_lora_ga),
    ),
    not_supported("MiCA", _adapted(linear, lora(init_lora_weights="mica")), "first: the LoRA variant MiCALinear"),
]

MODELS = [
    works(family.name, family.base, partial(LoraConfig, r=4, lora_alpha=8, **family.lora), family.batch)
    for family in FAMILIES
]

"""What docs/support.md says of training, checkpoints and tools: one test a line, and one line for a group of optimisers.

numerical/test_trainer_optimizers.py runs every optimiser; unit/test_support_table.py compares all of it with the document.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """Works, is refused or is told, as a test of its own shows: "folder/file.py::test"."""

    thing: str
    shown_by: str
    how: str = ""
    outcome: str = "works"


@dataclass(frozen=True)
class Optimizers:
    """Values of TrainingArguments(optim=...) with which the same happens.

    Attributes:
        names: The values.
        how: What the table says.
        error: What the training of the test ends with, as a regular expression; empty where it runs to its end.
        outcome: "works"; "refused", by glora before the first step or right after it; or "not tested", where Trainer cannot
            make or use it on a CPU.
    """

    names: tuple[str, ...]
    how: str = ""
    error: str = ""
    outcome: str = "works"

    @property
    def thing(self) -> str:
        return ", ".join(f"`{name}`" for name in self.names)


def _named(names: str) -> tuple[str, ...]:
    return tuple(names.split())


USE_ANOTHER = "use an optimiser of `torch.optim`, such as `adamw_torch`"

OPTIMIZERS = [
    Optimizers(_named("adamw_torch adamw_torch_fused adafactor sgd adagrad rmsprop")),
    Optimizers(_named("adamw_torch_4bit adamw_torch_8bit"), "torchao; states are carried in float32"),
    Optimizers(
        _named(
            "adamw_bnb_8bit adamw_8bit ademamix ademamix_8bit lion_8bit lion_32bit rmsprop_bnb rmsprop_bnb_8bit "
            "rmsprop_bnb_32bit paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit "
            "paged_lion_32bit paged_lion_8bit"
        ),
        "bitsandbytes; states are carried in float32",
    ),
    Optimizers(_named("schedule_free_radam schedule_free_adamw schedule_free_sgd"), "schedulefree"),
    Optimizers(_named("stable_adamw"), "torch-optimi"),
    Optimizers(
        _named("galore_adamw galore_adafactor apollo_adamw"),
        f"it projects gradients to a shape of its own; LoRA needs none of that, {USE_ANOTHER}",
        r"keeps 'projector' \(a \w+\) for a parameter, which glora cannot carry to another shape",
        "refused",
    ),
    Optimizers(
        _named("galore_adamw_layerwise galore_adamw_8bit_layerwise apollo_adamw_layerwise lomo"),
        f"steps within `backward()`; {USE_ANOTHER}",
        "steps within backward",
        "refused",
    ),
    Optimizers(
        _named("grokadamw"),
        f"keeps its state where glora cannot follow; {USE_ANOTHER}",
        r"keeps its state in param_groups\[...\]\['state'\] and not in optimizer.state",
        "refused",
    ),
    Optimizers(_named("galore_adamw_8bit adalomo"), "for a GPU only", "Torch not compiled with CUDA", "not tested"),
    Optimizers(
        _named("galore_adafactor_layerwise"),
        "transformers makes it with arguments that exclude each other",
        "Cannot combine manual `lr` and `relative_step=True`",
        "not tested",
    ),
    Optimizers(
        _named("adamw_torch_xla adamw_torch_npu_fused"),
        "for other devices",
        "Trainer failed to import .* from torch_(xla|npu)",
        "not tested",
    ),
    Optimizers(
        _named("adamw_anyprecision"),
        "its package torchdistx is not on PyPI",
        "Please install https://github.com/pytorch/torchdistx",
        "not tested",
    ),
]

LOOPS, SHARDED, TOGETHER = (f"integration/test_{name}processes.py::test_" for name in ("", "sharded_", "trainer_"))
TRAINER, MODES, LOOP = (f"integration/test_{name}.py::test_" for name in ("trainer", "training_modes", "own_loop"))
EXACT, RESUME, RESTARTS = (
    "numerical/test_delta_exact.py::test_",
    "integration/test_resume.py::test_",
    "integration/test_restarts.py::test_",
)

TRAINING = [
    Shown("Trainer", TRAINER + "one_line_reallocates_after_one_epoch", "one line"),
    Shown("TRL's SFTTrainer and DPOTrainer", "integration/test_trl.py::test_trained_saved_and_resumed"),
    Shown(
        "DPOTrainer with a PeftModel",
        "integration/test_trl.py::test_the_reference_adapter_of_dpo_keeps_its_ranks",
        "the adapter that TRL adds as the reference keeps its ranks",
    ),
    Shown("a loop of one's own", LOOP + "resumed_with_the_same_bits"),
    Shown("accelerate", LOOP + "accelerate"),
    Shown(
        "gradient accumulation",
        TRAINER + "accumulated_micro_batches_give_the_norms_of_the_whole_batch",
        "the norms are those of the large batch",
    ),
    Shown("gradient clipping", MODES + "clipping", "a clipped step weighs less, its shares stay"),
    Shown("bfloat16 autocast", MODES + "bfloat16_autocast"),
    Shown(
        "float16 with a gradient scaler",
        LOOP + "steps_that_a_scaler_skips_do_not_count",
        "skipped steps are not counted; tested on a CPU, in a loop of one's own: Trainer's `fp16=True` needs a GPU",
    ),
    Shown("gradient checkpointing, reentrant or not", MODES + "gradient_checkpointing"),
    Shown(
        "`torch.compile` of the model",
        LOOP + "compiled_once_more_after_the_reallocation",
        "compiled once more after the reallocation",
    ),
    Shown(
        "`torch.compile` of each block",
        LOOP + "blocks_that_are_compiled_one_by_one_need_a_higher_limit",
        "blocks with other ranks are compiled anew, and after 8 PyTorch gives up, with a warning: set "
        "`torch._dynamo.config.recompile_limit` above the number of blocks",
    ),
    Shown(
        '`torch.compile` with `signal="delta_exact"`',
        EXACT + "compiled_models_are_refused",
        'use `signal="delta"`, or train without it',
        "refused",
    ),
    Shown(
        "PEFT's LoRA-FA optimiser",
        "unit/guards/test_first_step.py::test_state_under_names_is_refused_at_the_first_step",
        f"keeps its state under names: {USE_ANOTHER}",
        "refused",
    ),
    Shown(
        "an optimiser that steps by another, with groups of its own (`ZeroRedundancyOptimizer`)",
        "unit/guards/test_first_step.py::test_another_optimizer_within_must_have_the_same_groups",
        USE_ANOTHER,
        "refused",
    ),
    Shown('`signal="delta_exact"` with DoRA', EXACT + "exact_with_dora"),
    Shown('`signal="delta_exact"`', EXACT + "hooks_on_every_mth_step_only_and_none_afterwards", "linear layers"),
    Shown("`reallocate_every`", LOOP + "reallocating_again_keeps_the_total"),
    Shown("bounds for all matrices and by name", LOOP + "bounds_for_all_and_for_each_module"),
    Shown(
        "a data set without a length, `warmup_steps=None`",
        TRAINER + "a_stream_needs_a_number_of_warmup_steps",
        "give a number of steps, or a share below 1",
        "refused",
    ),
]

PROCESSES = [
    Shown("DistributedDataParallel in Trainer (torchrun, accelerate launch)", TOGETHER + "two_processes_end_as_one"),
    Shown(
        "DistributedDataParallel in a loop of one's own, with accelerate or without",
        LOOPS + "two_processes_end_as_one",
        "`find_unused_parameters`, `static_graph`, `no_sync`, `gradient_as_bucket_view`, `torch.compile`",
    ),
    Shown("its communication hooks", LOOPS + "communication_hooks_go_on", "fp16, and PowerSGD, which begins anew"),
    Shown(
        "its `join()`",
        LOOPS + "within_join",
        "a process that runs out of batches before the reallocation is an error in every process",
    ),
    Shown("an uneven last batch", LOOPS + "accelerate_with_an_uneven_last_batch"),
    Shown(
        "its `mixed_precision`, `delay_all_reduce_named_params`, the Python reducer",
        "unit/distributed/test_agreement.py::test_settings_that_lie_in_the_parameters_are_refused",
        "use autocast; leave the others out",
        "refused",
    ),
    Shown(
        "FSDP2 (`fully_shard`) in a loop of one's own",
        SHARDED + "two_processes_end_as_one",
        "linear layers; replicas of shards (HSDP) too",
    ),
    Shown(
        "FSDP2 in Trainer",
        TOGETHER + "sharded",
        "tested on a CPU, where accelerate has to be told that it may; to resume after the reallocation, "
        "`callback.take_ranks_from(checkpoint)` first",
    ),
    Shown(
        'FSDP2 with `signal="delta_exact"`, `relative_to="weight"`, CPU offload, another dimension than the first',
        SHARDED + "what_is_refused",
        'use `signal="delta"`, `relative_to="size"`; leave the others out',
        "refused",
    ),
    Shown(
        "FSDP1",
        TRAINER + "engines_that_leave_nothing_to_allocate_are_refused",
        "use FSDP2 (`fsdp_version: 2`)",
        "refused",
    ),
    Shown(
        "DeepSpeed, ZeRO 1 to 3",
        TRAINER + "engines_that_leave_nothing_to_allocate_are_refused",
        "use DistributedDataParallel or FSDP2; or give it a `rank_pattern` from `suggest_ranks`",
        "refused",
    ),
    Shown(
        "DataParallel",
        TRAINER + "engines_that_leave_nothing_to_allocate_are_refused",
        "start one process for each GPU, or make one visible",
        "refused",
    ),
    Shown(
        "tensor parallelism (`tp_plan`)",
        SHARDED + "what_is_refused",
        "use FSDP2 or DistributedDataParallel",
        "refused",
    ),
    Shown(
        "resumed by another number of processes",
        TOGETHER + "resumed_by_more_and_by_fewer_processes",
        "the same global batch",
    ),
    Shown(
        "a process that is killed, or stops",
        LOOPS + "a_process_that_is_killed_ends_the_others",
        "the others end with an error within the process group's timeout",
    ),
    Shown(
        "a model that is not wrapped, or called past its wrapper",
        LOOPS + "mistakes_are_errors_in_every_process",
        "wrap it, and call the wrapper: an error before the first update",
        "refused",
    ),
]

CHECKPOINTS = [
    Shown(
        "resumed before, at and after the reallocation", RESUME + "same_bits", "in a new process, with the same bits"
    ),
    Shown("killed with SIGKILL at any step", "integration/test_kill.py::test_killed_at_random_steps", "the same bits"),
    Shown(
        "killed while a checkpoint is written",
        "integration/test_kill.py::test_killed_while_each_file_of_a_checkpoint_is_written",
        "the same bits, with `last_complete_checkpoint`",
    ),
    Shown("a checkpoint of plain LoRA, the callback added", RESUME + "plain_lora_goes_on_with_the_callback"),
    Shown("`load_best_model_at_end`", RESTARTS + "the_best_model_has_its_own_ranks", "across the reallocation"),
    Shown("`hyperparameter_search`", RESTARTS + "every_trial_of_a_search_starts_clean"),
    Shown("`auto_find_batch_size`", RESTARTS + "a_smaller_batch_starts_clean"),
    Shown(
        "`auto_find_batch_size` that starts again after resuming",
        RESTARTS + "out_of_memory_after_resuming",
        "once the reallocation was passed: resume in a new process",
        "refused",
    ),
    Shown(
        "a checkpoint of another `RankAllocationConfig`",
        RESUME + "another_configuration_is_refused",
        "go on with the old values, or start anew",
        "refused",
    ),
    Shown(
        "a mixture of two checkpoints",
        RESUME + "a_mixture_of_two_checkpoints_is_refused",
        "take another, see `last_complete_checkpoint`",
        "refused",
    ),
    Shown(
        "`model_init`, resumed after the reallocation",
        RESTARTS + "a_model_that_trainer_makes_itself",
        "size mismatch: give Trainer the model",
        "refused",
    ),
    Shown(
        "`model.add_adapter`, resumed",
        RESTARTS + "trainer_resumes_no_model_with_an_added_adapter",
        "Trainer finds no weights, with or without glora: use `get_peft_model`",
        "refused",
    ),
]

TROUBLE = [
    Shown(
        "a step with inf or NaN gradients",
        MODES + "bad_steps_are_left_out_and_told",
        "counted and left out of the average; the matrices are named",
        "told",
    ),
    Shown(
        "a warm-up without one finite step",
        LOOP + "a_warmup_without_one_finite_step_is_told",
        "goes on as plain LoRA",
        "told",
    ),
    Shown(
        "a gradient scaler that skips every step",
        MODES + "a_scaler_that_skips_every_step_is_told",
        "goes on as plain LoRA; the matrices are named",
        "told",
    ),
    Shown(
        "weights with inf or NaN",
        MODES + "a_training_that_diverges_goes_on_as_plain_lora",
        "the ranks stay as they are; the matrices are named",
        "told",
    ),
    Shown(
        "a matrix that never gets a gradient",
        MODES + "matrices_without_gradient_are_named_and_lose_their_adapter",
        "named; gets `min_rank`, by default 0",
        "told",
    ),
    Shown(
        "no gradient anywhere",
        MODES + "gradients_of_zero_leave_plain_lora",
        "goes on as plain LoRA; the matrices are named",
        "told",
    ),
    Shown(
        "a gradient scale or a clipping after the norms were read",
        LOOP + "forgetting_to_unscale_is_told_at_the_first_step",
        "at the first step, with the factor and the right place of the call",
        "told",
    ),
    Shown(
        "a training that ends before its warm-up",
        TRAINER + "training_that_ends_early_says_that_it_was_plain_lora",
        "it was plain LoRA",
        "told",
    ),
]

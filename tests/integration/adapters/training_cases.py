"""Rows of docs/support.md on training, checkpoints and trouble: the outcome, the thing, and the test that shows it.

numerical/test_trainer_optimizers.py runs every optimizer; published/test_support_table.py compares all of it with the document.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """A row that another test shows: "folder/file.py::test"."""

    thing: str
    outcome: str
    shown_by: str


@dataclass(frozen=True)
class Optimizers:
    """Values of TrainingArguments(optim=...) with the same outcome.

    Attributes:
        names: The values.
        outcome: "works"; "not supported", by an error at the first step at the latest; or "not tested", where Trainer cannot
            make or use it on a CPU.
        error: The error of the training, as a regular expression; empty where it works.
    """

    names: tuple[str, ...]
    outcome: str = "works"
    error: str = ""

    @property
    def thing(self) -> str:
        return ", ".join(f"`{name}`" for name in self.names)


def _optimizers(names: str, *outcome: str) -> Optimizers:
    return Optimizers(tuple(names.split()), *outcome)


OPTIMIZERS = [
    _optimizers("adamw_torch adamw_torch_fused adafactor sgd adagrad rmsprop"),
    _optimizers("adamw_torch_4bit adamw_torch_8bit"),
    _optimizers(
        "adamw_bnb_8bit adamw_8bit ademamix ademamix_8bit lion_8bit lion_32bit rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit "
        "paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit"
    ),
    _optimizers("schedule_free_radam schedule_free_adamw schedule_free_sgd"),
    _optimizers("stable_adamw"),
    _optimizers("galore_adamw galore_adafactor apollo_adamw", "not supported", r"'projector' \(a \w+\)"),
    _optimizers(
        "galore_adamw_layerwise galore_adamw_8bit_layerwise apollo_adamw_layerwise lomo",
        "not supported",
        "steps within backward",
    ),
    _optimizers("grokadamw", "not supported", r"param_groups\[...\]\['state'\]"),
    _optimizers("galore_adamw_8bit adalomo", "not tested", "Torch not compiled with CUDA"),
    _optimizers("galore_adafactor_layerwise", "not tested", "manual `lr` and `relative_step=True`"),
    _optimizers("adamw_torch_xla adamw_torch_npu_fused", "not tested", "failed to import .* from torch_(xla|npu)"),
    _optimizers("adamw_anyprecision", "not tested", "torchdistx"),
]


def _shown(rows: str) -> list[Shown]:
    """Rows of "outcome | thing | test"; a test is "file::test" of integration/training, or "folder/file::test"."""
    shown = []
    for row in rows.strip().splitlines():
        outcome, thing, test = (cell.strip() for cell in row.split("|"))
        place, _, name = test.partition("::")
        folder, _, file = place.rpartition("/")
        if not folder.startswith(("unit", "numerical")):
            folder = f"integration/{folder or 'training'}"
        shown.append(Shown(thing, outcome, f"{folder}/test_{file}.py::test_{name}"))
    return shown


TRAINING = _shown("""
works | Trainer | trainer::one_line_reallocates_after_one_epoch
works | TRL's SFTTrainer and DPOTrainer | trl::trained_saved_and_resumed
works | DPOTrainer with a PeftModel | trl::the_reference_adapter_of_dpo_keeps_its_ranks
works | your own training loop | training_loop_resumed::resumed_with_the_same_bits
works | accelerate | training_loop::accelerate
works | gradient accumulation | trainer::accumulated_micro_batches_give_the_norms_of_the_whole_batch
works | gradient clipping | training_modes::clipping
works | bfloat16 autocast | training_modes::bfloat16_autocast
works | float16 with a gradient scaler | training_loop::steps_that_a_scaler_skips_do_not_count
works | gradient checkpointing, reentrant or not | training_modes::gradient_checkpointing
works | `torch.compile` of the model | training_loop::compiled_once_more_after_the_reallocation
works | `torch.compile` of each block | training_loop::blocks_that_are_compiled_one_by_one_need_a_higher_limit
not supported | `torch.compile` with `signal="delta_exact"` | numerical/delta_exact::compiled_models_are_refused
not supported | PEFT's LoRA-FA optimizer | unit/guards/training_loop::state_under_names_is_refused_at_the_first_step
not supported | `ZeroRedundancyOptimizer` | unit/guards/training_loop::another_optimizer_within_must_have_the_same_groups
works | `signal="delta_exact"` with DoRA | numerical/delta_exact::exact_with_dora
works | `signal="delta_exact"` | numerical/delta_exact::hooks_on_every_mth_step_only_and_none_afterwards
works | `reallocate_every` | training_loop::reallocating_again_keeps_the_total
works | bounds for all matrices and by name | training_loop::bounds_for_all_and_for_each_module
works | a data set without a length, `warmup_steps=None` | trainer::a_stream_has_no_epoch
""")

PROCESSES = _shown("""
works | DistributedDataParallel in Trainer (torchrun, accelerate launch) | processes/trainer::two_processes_end_as_one
works | DistributedDataParallel in your own training loop, with or without accelerate | processes/ddp::two_processes_end_as_one
works | its communication hooks | processes/ddp::communication_hooks_go_on
works | its `join()` | processes/ddp::within_join
works | an uneven last batch | processes/ddp::accelerate_with_an_uneven_last_batch
not supported | its `mixed_precision`, `delay_all_reduce_named_params`, Python reducer | unit/distributed/agreement::settings
works | FSDP2 (`fully_shard`) in your own training loop | processes/fsdp::two_processes_end_as_one
works | FSDP2 in Trainer | processes/trainer::sharded
not supported | FSDP2 with `signal="delta_exact"`, CPU offload, another dimension than the first | processes/fsdp::refused
not supported | FSDP1 | trainer::engines_that_leave_nothing_to_allocate_are_refused
not supported | DeepSpeed, ZeRO 1 to 3 | trainer::engines_that_leave_nothing_to_allocate_are_refused
not supported | DataParallel | trainer::engines_that_leave_nothing_to_allocate_are_refused
not supported | tensor parallelism (`tp_plan`) | processes/fsdp::refused
works | resumed by another number of processes | processes/trainer::resumed_by_more_and_by_fewer_processes
works | a process that is killed, or stops | processes/ddp::a_process_that_is_killed_ends_the_others
not supported | a model that is not wrapped, or called past its wrapper | processes/ddp::mistakes_are_errors_in_every_process
""")

CHECKPOINTS = _shown("""
works | resumed before, at and after the reallocation | resume::same_bits
works | killed with SIGKILL at any step | kill::killed_at_random_steps
works | killed while a checkpoint is written | kill::killed_while_each_file_of_a_checkpoint_is_written
works | a checkpoint of plain LoRA, the callback added | resume::plain_lora_goes_on_with_the_callback
works | `load_best_model_at_end` | restarts::the_best_model_has_its_own_ranks
works | `hyperparameter_search` | restarts::every_trial_of_a_search_starts_clean
works | `auto_find_batch_size` | restarts::a_smaller_batch_starts_clean
not supported | `auto_find_batch_size` that starts again after resuming | restarts::out_of_memory_after_resuming
not supported | a checkpoint of another `RankAllocationConfig` | resume::another_configuration_is_refused
not supported | a checkpoint of another rank or α | resume::another_rank_or_scaling_is_refused
not supported | a mixture of two checkpoints | resume::a_mixture_of_two_checkpoints_is_refused
not supported | `model_init`, resumed after the reallocation | restarts::a_model_that_trainer_makes_itself
not supported | `model.add_adapter`, resumed | restarts::trainer_resumes_no_model_with_an_added_adapter
""")

TROUBLE = _shown("""
reported | a step with inf or NaN gradients | unit/scoring/recorder::non_finite_steps_stay_out_of_the_average
reported | a warm-up without one finite step | training_loop::a_warmup_without_one_finite_step_is_reported
reported | a gradient scaler that skips every step | training_modes::a_scaler_that_skips_every_step_is_reported
reported | weights with inf or NaN | training_loop::weights_that_are_not_finite_keep_their_ranks
reported | a matrix that never gets a gradient | unit/allocator::a_silent_matrix_is_named
reported | no gradient anywhere | unit/allocator::no_gradient_anywhere_leaves_plain_lora
reported | a gradient scale or a clipping after the norms were read | training_loop::gradients_changed_after_they_were_read
reported | a training that ends before its warm-up | trainer::training_that_ends_early_says_that_it_was_plain_lora
""")

"""A run that is resumed, in a new process, ends with the same bits as one that was not interrupted."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import TrainerCallback, TrainerState

from glora import RankAllocationCallback, last_complete_checkpoint
from glora.checkpoints import CHECKSUMS
from integration.training import resume_case
from integration.training.resume_case import STEPS, WARMUP, Job, differences, make_trainer, outcome, run
from integration.training.trainer_case import TAKEN_OUT, callback_of, lora_config

VARIANTS = {
    "default": {},
    "callbacks restored by Trainer": dict(arguments=dict(restore_callback_states_from_checkpoint=True)),
    "a custom optimizer, two cuts": dict(
        custom_optimizer=True, config=dict(rule="spectrum", average_rank=1.5, reallocate_every=3, max_reallocations=2)
    ),
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_same_bits(job: Job, tmp_path: Path, fields: dict) -> None:
    fields = fields | dict(config=dict(max_rank={TAKEN_OUT: 0}) | fields.get("config", {}))
    job = job.replace(**fields)
    whole = run(job)
    assert whole["allocation"]["allocated"]
    assert whole["allocation"]["ranks"][TAKEN_OUT] == 0
    assert len(whole["optimizer"]["param_groups"]) == (3 if job.custom_optimizer else 2)
    for step in (WARMUP - 1, WARMUP):
        again = run(job.replace(output=tmp_path / f"from-{step}", resume=job.checkpoint(step)))
        assert not differences(whole, again), step


@pytest.fixture(scope="module")
def finished(tiny_deberta: Path, glue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run with a checkpoint of every step."""
    job = Job(tiny_deberta, glue_folder, tmp_path_factory.mktemp("finished"))
    run(job)
    return job


def test_in_the_same_trainer_too(job: Job) -> None:
    """As in a notebook: after a training that ended and after one that was broken off, from before and after the ranks."""
    job = job.replace(config=dict(max_rank={TAKEN_OUT: 0}))
    trainer = make_trainer(job)
    trainer.train()
    whole = outcome(trainer)
    begun: list[dict[str, int]] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs) -> None:
            begun.append(callback_of(trainer).allocator.ranks)

        def on_step_begin(self, args, state, control, **kwargs) -> None:
            if len(begun) == 2 and state.global_step == STEPS - 1:
                raise KeyboardInterrupt

    trainer.add_callback(Watch())
    for step in (1, WARMUP + 1, WARMUP - 1):
        resume = str(job.checkpoint(step))
        if step == WARMUP + 1:
            with pytest.raises(KeyboardInterrupt):
                trainer.train(resume_from_checkpoint=resume)
            continue
        trainer.train(resume_from_checkpoint=resume)
        assert not differences(whole, outcome(trainer)), step
    assert [ranks[TAKEN_OUT] for ranks in begun] == [4, 0, 4]
    assert [set(ranks.values()) == {4} for ranks in begun] == [True, False, True]


def test_a_run_that_has_ended_is_reported(finished: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trainer looks at max_steps only after a step. What docs/checkpoints.md says to ask first is right."""
    assert (finished.checkpoint(STEPS) / CHECKSUMS).exists()
    for step in (STEPS - 1, STEPS):
        checkpoint = finished.checkpoint(step)
        assert last_complete_checkpoint(checkpoint.parent) == str(finished.checkpoint(STEPS))
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        assert (state.global_step < state.max_steps) == (step < STEPS)
        trainer = make_trainer(finished.replace(output=tmp_path))
        trainer.train(resume_from_checkpoint=str(checkpoint))
        assert trainer.state.global_step == step + 1
        assert ("step 9 of 9: " in caplog.text) == (step == STEPS)


def test_plain_lora_goes_on_with_the_callback(finished: Job, plain: Job, tmp_path: Path) -> None:
    job = finished.replace(output=tmp_path / "added", resume=plain.checkpoint(2))
    whole = run(job)
    assert whole["allocation"]["reallocation"]["step"] == WARMUP, "a warm-up of its own, from the second step on"
    assert json.loads((job.checkpoint(3) / "trainer_state.json").read_text())["stateful_callbacks"][
        "RankAllocationCallback"
    ]
    again = job.replace(output=tmp_path / "again", resume=job.checkpoint(2 + WARMUP))
    assert not differences(whole, run(again))


@pytest.mark.parametrize("restored", [False, True])
def test_another_configuration_is_refused(finished: Job, tmp_path: Path, restored: bool) -> None:
    """Also where Trainer puts the old one in its place."""
    fields, arguments = dict(beta=0.5, warmup_steps=WARMUP + 1), dict(restore_callback_states_from_checkpoint=restored)
    changed = finished.replace(output=tmp_path, config=fields, arguments=arguments)
    with pytest.raises(ValueError, match="beta .*0.9, .*0.5; warmup_steps .*4, .*5|warmup_steps.*beta .*0.9"):
        make_trainer(changed).train(resume_from_checkpoint=str(finished.checkpoint(WARMUP)))


@pytest.fixture(scope="module")
def plain(finished: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two steps of plain LoRA."""
    job = finished.replace(output=tmp_path_factory.mktemp("plain"), config=None)
    trainer = make_trainer(job)
    trainer.args.max_steps = 2
    trainer.train()
    return job


OTHER_ADAPTERS = {
    "rank": (dict(r=8), "scaling 1, .* 2; .*LoraConfig"),
    "rank and α": (dict(r=8, lora_alpha=16), "rank 8, .* rank 4"),
    "α": (dict(lora_alpha=16), "scaling 4, .* 2"),
    "rsLoRA": (dict(use_rslora=True), "scaling 4, .* 2"),
    "α of some": (dict(alpha_pattern={"query_proj": 16}), "query_proj .*scaling 4, .* 2"),
}


@pytest.mark.parametrize(("fields", "message"), OTHER_ADAPTERS.values(), ids=OTHER_ADAPTERS.keys())
def test_another_rank_or_scaling_is_refused(
    finished: Job, plain: Job, tmp_path: Path, fields: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints from before the reallocation, from after it, and of a run without the callback."""
    monkeypatch.setattr(resume_case, "lora_config", functools.partial(lora_config, **fields))
    for checkpoint in (finished.checkpoint(WARMUP - 1), finished.checkpoint(WARMUP + 2), plain.checkpoint(2)):
        trainer = make_trainer(finished.replace(output=tmp_path))
        with pytest.raises(ValueError, match=message):
            trainer.train(resume_from_checkpoint=str(checkpoint))


class AnotherCallback(RankAllocationCallback):
    """A custom rule."""


def test_a_callback_of_another_class_is_refused(finished: Job, tmp_path: Path) -> None:
    """Trainer keeps states by the name of the class: it would look like a checkpoint of plain LoRA."""
    trainer = make_trainer(finished.replace(output=tmp_path))
    old = callback_of(trainer)
    trainer.add_callback(AnotherCallback(old.config))
    trainer.remove_callback(old)
    with pytest.raises(ValueError, match="RankAllocationCallback.* AnotherCallback"):
        trainer.train(resume_from_checkpoint=str(finished.checkpoint(WARMUP - 1)))


@pytest.mark.parametrize(("second", "resumed"), [(RankAllocationCallback, True), (AnotherCallback, False)])
def test_two_callbacks_are_refused(
    finished: Job, tmp_path: Path, second: type[RankAllocationCallback], resumed: bool
) -> None:
    """Trainer's state names only the first of two callbacks, and neither in a resumed run."""
    trainer = make_trainer(finished.replace(output=tmp_path))
    trainer.add_callback(second())
    with pytest.raises(ValueError, match=f"RankAllocationCallback and {second.__name__}; give one"):
        trainer.train(resume_from_checkpoint=str(finished.checkpoint(WARMUP)) if resumed else None)


def test_a_half_written_checkpoint_is_never_used_silently(
    finished: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "checkpoint-6"
    shutil.copytree(finished.checkpoint(6), broken)
    job = finished.replace(output=tmp_path)
    state = (broken / "trainer_state.json").read_text()
    (broken / "trainer_state.json").write_text(state[: len(state) // 2])
    with pytest.raises(json.JSONDecodeError):
        make_trainer(job).train(resume_from_checkpoint=str(broken))
    (broken / "trainer_state.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"trainer_state\.json"):
        make_trainer(job).train(resume_from_checkpoint=True)

    (broken / "trainer_state.json").write_text(state)
    (broken / "optimizer.pt").unlink()
    make_trainer(job).train(resume_from_checkpoint=str(broken))
    assert re.search("checkpoint of step 6 .* optimizer .*last_complete_checkpoint", caplog.text)


def test_a_mixture_of_two_checkpoints_is_refused(finished: Job, tmp_path: Path) -> None:
    mixed = tmp_path / "checkpoint-6"
    shutil.copytree(finished.checkpoint(6), mixed)
    for name in ("adapter_model.safetensors", "adapter_config.json", "optimizer.pt"):
        shutil.copy(finished.checkpoint(WARMUP - 1) / name, mixed / name)
    with pytest.raises(ValueError, match="last_complete_checkpoint"):
        make_trainer(finished.replace(output=tmp_path)).train(resume_from_checkpoint=str(mixed))


def test_without_the_callback_other_ranks_do_not_load(finished: Job, tmp_path: Path) -> None:
    plain = finished.replace(output=tmp_path, config=None)
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_trainer(plain).train(resume_from_checkpoint=str(finished.checkpoint(WARMUP)))

"""GLoRA in TRL's GRPO: a tiny causal model, made here, learns to name a place, from a reward alone.

GRPOTrainer takes the same callback as Trainer, and wraps the model itself when it is given a `peft_config`. Needs `trl`.

    python examples/grpo.py [FOLDER]      the adapter is saved in FOLDER (default: a temporary one)
"""

import sys
import tempfile

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer

from glora import RankAllocationCallback

PLACES = ["barn", "garden", "forest", "river"]
WORDS = ["<pad>", "<eos>", "where", "is", "the", "fox", "owl", "cat", "hen", *PLACES]


def names_a_place(completions, **_):
    return [sum(word in PLACES for word in text.split()) / 4 for text in completions]


def main(folder):
    set_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    size = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.1
    )
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, **size))
    trainer = GRPOTrainer(
        model=base,
        processing_class=tokenizer,
        reward_funcs=names_a_place,
        train_dataset=Dataset.from_list(
            [{"prompt": f"where is the {name}"} for name in ("fox", "owl", "cat", "hen")] * 16
        ),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        args=GRPOConfig(
            output_dir=folder,
            learning_rate=1e-2,
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=4,
            max_steps=80,
            logging_steps=8,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
        ),
        callbacks=[RankAllocationCallback(rule="spectrum", average_rank=2)],
    )
    trainer.train()
    trainer.save_model(folder)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(f"reward: {rewards[0]:.2f} at first, {rewards[-1]:.2f} at last")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else temporary)

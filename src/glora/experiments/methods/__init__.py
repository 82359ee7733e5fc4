"""Methods: LoRA, AdaLoRA, GLoRA and the others, each applied to a model through one interface (`base`).

The entries (`registry`) import nothing heavy; `applied` holds the implementations. All of `experiments` may import the entries
and `AdaptedModel`; methods import neither data, models nor training.
"""

"""Methods: LoRA, AdaLoRA, GLoRA and the others, each applied to a model through one interface (`base`).

`registry`, `entries` and `limits` import nothing heavy; an implementation is imported when its method is applied. To add one,
write its function and list its entry. Methods import neither data, models nor training.
"""

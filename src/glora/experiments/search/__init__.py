"""Search: tuning every method alike, and sharing runs between processes, by Optuna."""

"""Search: tune every method alike, and share runs between processes, by Optuna.

The command line and `plan_view` import it. `experiments.experiment` imports `ranges`, and the report imports `record`; both do
without Optuna.
"""

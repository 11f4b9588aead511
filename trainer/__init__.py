"""The training package of sea-pipeline: from label shards to a trained model, with SEA's and BASIC's losses.

`stages.train_stages` runs a recipe, `train.train` one stage of it; `evaluate_run.evaluate_model` measures a model,
`init.init_model` makes one of parts. The losses are in `losses`, what BASIC's learn from in `supervision`.
"""

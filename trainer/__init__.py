"""The training package of sea-pipeline: from label shards to a trained model, with SEA's and BASIC's losses.

`training.run.train_stages` runs a recipe and `training.run.train` one stage of it; `evaluation.run.evaluate_model`
measures a model, `model.assemble.init_model` makes one of parts. What a user imports is `losses`, `sampling`, `words`
and `towers`.
"""

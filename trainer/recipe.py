"""The old name of `trainer.recipes.recipe`, for one more version."""

from sea_pipeline.core.renamed import renamed

__getattr__ = renamed(__name__, "trainer.recipes.recipe")

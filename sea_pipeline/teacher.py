"""The old name of `trainer.targets.store`, for one more version."""

from sea_pipeline.core.renamed import renamed

__getattr__ = renamed(__name__, "trainer.targets.store")

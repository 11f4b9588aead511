"""The old name of `sea_pipeline.labels.format`, for one more version."""

from sea_pipeline.core.renamed import renamed

__getattr__ = renamed(__name__, "sea_pipeline.labels.format")

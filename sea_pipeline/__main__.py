"""`python -m sea_pipeline` is `sea-pipeline`."""

from sea_pipeline.cli import main

main()

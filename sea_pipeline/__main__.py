"""`python -m sea_pipeline` is `sea-pipeline`."""

from sea_pipeline.core.own_trainer import leave_working_folder

leave_working_folder()  # before anything else is imported: a user's datasets.py would be, too

from sea_pipeline.cli import main  # noqa: E402

main()

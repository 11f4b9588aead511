"""The ground: errors, settings, extras, devices, threads and progress. It imports nothing else of ours."""

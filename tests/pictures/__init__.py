"""The pictures of the README and of docs/: `python -m tests.pictures` draws all of them."""

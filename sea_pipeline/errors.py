"""What a person can mend, said in one line."""

import importlib
from types import ModuleType


class UserError(ValueError):
    """A problem that the user can mend.

    The message is one line: the file or setting, what was expected, what was found, what to do. Commands print
    it without a traceback and exit with 1.
    """


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional module.

    Raises:
        UserError: it is not installed, or does not load; the message holds the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a GPU wheel without its CUDA libraries raises RuntimeError and worse, not ImportError
        raise UserError(
            f"the Python module {module!r} cannot be imported ({type(error).__name__}: {error}); "
            f"install it with: pip install 'sea-pipeline[{extra}]'"
        ) from error

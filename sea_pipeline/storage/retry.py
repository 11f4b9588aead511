"""Tell which faults of a network may pass, and try again after one."""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sea_pipeline.core.errors import UserError, one_line

_Result = TypeVar("_Result")

WAITS = (0.2, 1.0, 4.0)
"""Seconds between attempts, each times 0.5 to 1.5, so that many workers do not come back at the same moment."""
RIGHTS = "give this user the right to read it"
_OF_THE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What is wrong with a file itself, such as that it is a folder; other errors say nothing about it."""
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_NETWORK = {
    "aiohttp", "aiobotocore", "botocore", "http", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "ssl",
    "urllib3",
}  # fmt: skip
_CREDENTIALS = {
    "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "NoCredentialsError",
    "PartialCredentialsError", "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
_AT_ONCE = {"ConditionalRequestConflict", "OperationAborted"}
"""Codes of a store for one of two that write a file at the same moment; their status is 409, but they pass."""


class PassingError(OSError):
    """The network or a service failed repeatedly, and the image is not at fault."""


class StoreError(UserError):
    """A store elsewhere, or a file of this machine, cannot be read or written now, which says nothing about the file.

    A store fails for long, refuses us, or does not exist; of a file the rights are missing, or its disk fails.
    """


def refuse_unreadable(path: object, error: Exception) -> None:
    """Refuse a file if an error of reading it says nothing about the file, which then is neither lost nor damaged.

    Raises:
        StoreError: the rights are missing, or the system or the disk fails.
    """
    if isinstance(error, StoreError):
        raise error
    code = error.errno if isinstance(error, OSError) else None
    if code is None or code in _OF_THE_FILE:  # libraries set none if the content is at fault
        return
    is_forbidden = code in (errno.EACCES, errno.EPERM)
    advice = RIGHTS if is_forbidden else "run the same command again later; if it stays so, restore it from a copy"
    raise StoreError(f"{path}: cannot be read: {os.strerror(code)}; {advice}") from error


def patiently(action: Callable[[], _Result], shown: str) -> _Result:
    """Call `action`, a few times if the network or the service fails, and return its result.

    Raises:
        PassingError: it failed every time.
        UserError: the service refuses the credentials.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except Exception as error:
            if refused := _CREDENTIALS & error_codes(error):
                raise UserError(
                    f"{shown}: the credentials are missing or refused ({min(refused)}); set them as "
                    "the service's own tools do, and run the same command again"
                ) from error
            if not may_pass(error):
                raise
            if wait is None:
                fault = at_fault(error)
                raise PassingError(errno.EIO, f"{shown}: {type(fault).__name__}: {reason_of(fault)}") from error
            time.sleep(wait * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def may_pass(error: BaseException) -> bool:
    """Tell whether an error is the network's or the service's and may pass.

    Timeouts, resets, throttling and status 5xx may.
    """
    statuses = error_statuses(error)
    if any(status in (408, 425, 429) or status >= 500 for status in statuses) or _AT_ONCE & error_codes(error):
        return True  # before the types below, because some packages raise FileNotFoundError for these, too
    if any(400 <= status < 500 for status in statuses):
        return False
    if (fault := at_fault(error)) is not error:
        return may_pass(fault)
    if isinstance(error, _LASTING):
        return False
    of_the_network = type(error).__module__.partition(".")[0] in _NETWORK
    return isinstance(error, OSError | EOFError) or (of_the_network and "Validation" not in type(error).__name__)


def at_fault(error: BaseException) -> BaseException:
    """Return what is behind a FileNotFoundError, or else the error itself.

    fsspec raises that error for every fault of a web server.
    """
    return error.__cause__ or error if isinstance(error, FileNotFoundError) else error


def reason_of(error: BaseException) -> str:
    """Write what is at fault in one line, without a request's URL, whose query may hold a signature.

    Advice of fsspec that is for its callers is left out.
    """
    fault: Any = at_fault(error)
    if hasattr(fault, "request_info"):
        return f"{fault.status}, {fault.message}"
    text = one_line(fault)
    if "block_size=0" in text:  # fsspec's own option
        return "the server sends whole files alone, and parts of this one are needed; download it, and name the copy"
    return text


def is_absent(error: FileNotFoundError) -> bool:
    """Tell whether an error says that there is no file, see `at_fault`."""
    return not error_statuses(error) - {404, 410}


def is_refusal(error: BaseException) -> bool:
    """Tell whether an error that `patiently` raised is a service's last word about one thing, such as status 404."""
    if isinstance(error, PassingError | UserError):
        return False
    return not may_pass(error) and (isinstance(error, _LASTING) or bool(error_statuses(error)))


def error_codes(error: BaseException) -> set[str]:
    """Collect the names of an error and its causes, which are their classes and the codes of an S3 service."""
    codes = set()
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        codes |= {type(cause).__name__} | ({str(code)} if code else set())
    return codes


def error_statuses(error: BaseException) -> set[int]:
    """Collect the HTTP statuses of an error and its causes."""
    return {status for cause in _causes(error) if (status := _status(cause))}


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    while id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    for holder in (error, response):
        found = found or getattr(holder, "status", None) or getattr(holder, "status_code", None)
    return found if isinstance(found, int) else None

"""Tell which faults of a network may pass, and try again after one."""

import errno
import ftplib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sea_pipeline.core.errors import UserError, one_line

_Result = TypeVar("_Result")

WAITS = (0.2, 1.0, 4.0)
"""Seconds between attempts, each times 0.5 to 1.5, so that many workers do not come back at the same moment."""
RIGHTS = "give this user the right to read it"
_OF_THE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What is wrong with a file itself, such as that it is a folder; other errors say nothing about it."""
_LASTING_CODES = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
_LASTING = tuple({type(OSError(code, "")) for code in _LASTING_CODES})
"""Python's types of errors with these codes. Packages have classes of their own for them, such as smbprotocol."""
_NETWORK = {
    "aiohttp", "aiobotocore", "asyncssh", "azure", "botocore", "ftplib", "gcsfs", "http", "httpcore", "httpcore2",
    "httpx", "httpx2", "paramiko", "requests", "smbprotocol", "ssl", "urllib3",
}  # fmt: skip
_LASTING_NAMES = re.compile(
    "AccessDenied|Auth|BadNetworkName|HostKey|Invalid(URL|Url|Schema|Filename)|Logon|MissingSchema|NameInvalid|NoSuch|"
    "Password|PermissionDenied|Unsupported|Validation|error_perm"
)
"""Parts of the names of those packages' classes of errors that do not pass."""
_SMB_CODES = {
    0xC000000F: errno.ENOENT,
    0xC0000022: errno.EACCES,
    0xC0000033: errno.ENOENT,  # Windows forbids such a name
    0xC0000043: None,  # another process has the file open now, for which smbprotocol gives EPERM
}
"""Statuses of SMB that smbprotocol has no `errno` for, or another."""
_GCS = "Invalid Credentials"
_CREDENTIALS = {
    "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "NoCredentialsError",
    "PartialCredentialsError", "SignatureDoesNotMatch", "TokenRefreshRequired",
    "400",  # S3's, whose answer to HEAD has no body that says more
    "ClientAuthenticationError",  # Azure's
    "RefreshError", _GCS,
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

    If the rights are missing to a folder above it, the message names that folder.

    Raises:
        StoreError: the rights are missing, or the system or the disk fails.
    """
    if isinstance(error, StoreError):
        raise error
    code = error.errno if isinstance(error, OSError) else None
    if code is None or code in _OF_THE_FILE:  # libraries set none if the content is at fault
        return
    is_forbidden = code in (errno.EACCES, errno.EPERM)
    if is_forbidden and isinstance(path, Path):
        path = next((folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK)), path)
    advice = RIGHTS if is_forbidden else "run the same command again later; if it stays so, restore it from a copy"
    raise StoreError(f"{path}: cannot be read: {os.strerror(code)}; {advice}") from error


@contextmanager
def looking(folder: object) -> Iterator[None]:
    """Refuse a folder if this block finds that this user may not look into it.

    Raises:
        StoreError: the rights are missing.
    """
    try:
        yield
    except PermissionError as error:
        refuse_unreadable(folder if error.filename is None else Path(os.fsdecode(error.filename)), error)
        raise


def patiently(action: Callable[[], _Result], shown: str) -> _Result:
    """Call `action`, a few times if the network or the service fails, and return its result.

    Raises:
        PassingError: it failed every time.
        StoreError: the service refuses the credentials.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except Exception as error:
            if not _is_overloaded(error) and (refused := _CREDENTIALS & error_codes(error)):
                raise StoreError(
                    f"{shown}: the credentials are missing, expired or refused ({min(refused)}); set them as "
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
    if _is_overloaded(error) or _AT_ONCE & error_codes(error):
        return True  # before the types below, because some packages raise FileNotFoundError for these, too
    if any(400 <= status < 500 for status in statuses):
        return False
    if (fault := at_fault(error)) is not error:
        return may_pass(fault)
    if isinstance(error, _LASTING) or lasting_code(error):
        return False
    names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__ if _of_the_network(kind)}
    if any(_LASTING_NAMES.search(name) for name in names):
        return False
    return isinstance(error, OSError | EOFError) or _of_the_network(type(error))


def _is_overloaded(error: BaseException) -> bool:
    return any(status in (408, 425, 429) or status >= 500 for status in error_statuses(error))


def lasting_code(error: BaseException) -> int | None:
    """Return the `errno` of an error that says in a class of its own that a file is absent or refused, else None."""
    if not isinstance(error, OSError) or isinstance(error, _LASTING) or not error.filename:  # or it is of a connection
        return None
    code = _SMB_CODES.get(getattr(error, "ntstatus", 0), error.errno)
    return code if code in _LASTING_CODES else None


def _of_the_network(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _NETWORK


def at_fault(error: BaseException) -> BaseException:
    """Return what is behind a FileNotFoundError, or else the error itself.

    fsspec raises that error for every fault of a web server, and for a file that is not in a listing that FTP refused.
    """
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    if isinstance(cause, StopIteration):
        cause = cause.__context__ if isinstance(cause.__context__, ftplib.error_temp) else None
    return cause or error


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
    """Collect the names of an error and its causes, which are their classes and the codes of an S3 service.

    Of Google's service, which has no codes, `_GCS` stands for a login that it refuses.
    """
    codes = set()
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        codes |= {kind.__name__ for kind in type(cause).__mro__} | ({str(code)} if code else set())
        if type(cause).__module__ == "gcsfs.retry" and _GCS in str(cause):  # anonymous callers are told otherwise
            codes.add(_GCS)
    return codes


def error_statuses(error: BaseException) -> set[int]:
    """Collect the HTTP statuses of an error and its causes.

    Numbers that other protocols call a status are none.
    """
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
    found = found or vars(error).get("code")  # gcsfs's; aiohttp's is a property, which warns
    return found if isinstance(found, int) and 100 <= found < 600 else None

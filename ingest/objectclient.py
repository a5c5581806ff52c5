"""How an object store is reached, how long it is waited for, and what its errors become.

Credentials come from the environment: AWS_ACCESS_KEY_ID and its like, web identities, the roles of machines and
containers, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and _KEY. Beyond what obstore looks up itself:
keys and region of AWS_PROFILE (or `default`) in ~/.aws. A profile that assumes a role or signs on needs
`eval "$(aws configure export-credentials --format env)"`.
"""

import configparser
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from manifests.errors import InputError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

T = TypeVar("T")

AZURE_SCHEMES = ("az", "azure", "adl", "abfs", "abfss")
SCHEMES = ("s3", "s3a", "gs", *AZURE_SCHEMES)
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": (),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_STATUS = re.compile(r"status code: (\d{3})")
_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)</Code>")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
# The process that used a store first: obstore's threads don't live on in one that is forked from it.
_user_pid = 0


@dataclass(frozen=True)
class Patience:
    """How long a store is waited for. Requests are for parts of files, so a big file may take longer than this."""

    # One request, until its answer is complete.
    request_s: float = 45.0
    # All attempts at it, with pauses that grow.
    total_s: float = 180.0

    def __post_init__(self) -> None:
        if self.total_s <= 2 * self.request_s:
            raise ValueError("there must be time for two requests")


def connect(root: str, patience: Patience, prefix: str | None = None) -> ObjectStore:
    """The store of a bucket, SCHEME://BUCKET, or of a prefix in it. Raises InputError when its settings are wrong."""
    scheme, _, container = root.partition("://")
    kind = "az" if scheme in AZURE_SCHEMES else scheme.removesuffix("a")
    max_pause_s = min(5.0, patience.total_s / 20)
    retry: RetryConfig = {
        "max_retries": 1000,
        # Two rounds, each with a last request that takes its full time, end within the total: see `attempt`.
        "retry_timeout": timedelta(seconds=patience.total_s / 2 - patience.request_s),
        "backoff": {"init_backoff": timedelta(seconds=max_pause_s / 50), "max_backoff": timedelta(seconds=max_pause_s)},
    }
    client: ClientConfig = {"timeout": timedelta(seconds=patience.request_s), "allow_http": _allows_http(kind)}
    try:
        if kind == "s3":
            return S3Store(container, prefix=prefix, config=_profile(), client_options=client, retry_config=retry)
        if kind == "gs":
            return GCSStore(container, prefix=prefix, client_options=client, retry_config=retry)
        # Given explicitly, since obstore can't print a store whose account it found itself.
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        named: dict[str, Any] = {"account_name": account} if account and "@" not in container else {}
        return AzureStore.from_url(f"{root}/{quote(prefix or '')}", client_options=client, retry_config=retry, **named)
    except (BaseError, ValueError) as error:
        # Only the first words: what follows may quote settings.
        reason = str(error).partition("\n")[0][:120]
        raise InputError(f"{root} can't be opened with the settings in the environment: {reason}") from None


def _allows_http(kind: str) -> bool:
    given = [os.environ.get(name, "") for name in _ENDPOINTS[kind]]
    allowed = os.environ.get("AWS_ALLOW_HTTP", "") if kind == "s3" else ""
    return allowed.lower() in ("1", "true") or any(endpoint.startswith("http://") for endpoint in given)


def _profile() -> "S3Config":
    """The static keys and the region of a profile in ~/.aws, where the environment itself names none."""
    if any(os.environ.get(f"AWS_{name}") for name in ("ACCESS_KEY_ID", "WEB_IDENTITY_TOKEN_FILE", "SKIP_SIGNATURE")):
        return {}
    profile = os.environ.get("AWS_PROFILE") or "default"
    paths = {
        Path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")).expanduser(): f"profile {profile}",
        Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser(): profile,
    }
    found: dict[str, str] = {}
    for path, section in paths.items():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path)
        except (configparser.Error, UnicodeDecodeError):
            raise InputError(f"{path} is not a file of profiles as the AWS command line writes them") from None
        for name in (section, profile):
            found |= dict(parser[name]) if parser.has_section(name) else {}
    config: S3Config = {}
    if "aws_access_key_id" in found and "aws_secret_access_key" in found:
        config["access_key_id"] = found["aws_access_key_id"]
        config["secret_access_key"] = found["aws_secret_access_key"]
        if "aws_session_token" in found:
            config["session_token"] = found["aws_session_token"]
    if "region" in found and not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        config["region"] = found["region"]
    return config


def attempt(operation: Callable[[], T], doing: str, patience: Patience) -> T:
    """What `operation` returns; repeated while what goes wrong may pass, which obstore does for most but not all of it.

    Raises OSError whose text begins with `doing`; AlreadyExistsError and PreconditionError come out as they are.
    """
    _refuse_forked()
    started = time.monotonic()
    for number in itertools.count():
        with os_errors(doing):
            try:
                return operation()
            except (BaseError, FileNotFoundError) as error:
                late = number > 0 and time.monotonic() - started > patience.total_s / 2
                if late or not may_pass(error):
                    raise
        time.sleep(min(0.1 * 2**number, patience.total_s / 20))
    raise AssertionError("unreachable")


def _refuse_forked() -> None:
    global _user_pid
    if _user_pid not in (0, os.getpid()):
        raise OSError("a process forked from one that has used an object store can't use it: start it by spawn")
    _user_pid = os.getpid()


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Makes obstore's errors OSErrors with a short text: theirs quote requests and answers at length."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except (BaseError, FileNotFoundError, ValueError) as error:
        raise _os_error(error, doing) from None


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error of obstore tells of."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    text, status = str(error), status_of(error)
    if "NoSuchUpload" in text:  # the answer to a completed upload was lost, and it was completed again
        return True
    lasting = "builder error" in text or "redirect" in text
    return isinstance(error, GenericError) and not lasting and (status is None or status >= 500 or status in (408, 429))


def _os_error(error: Exception, doing: str) -> OSError:
    text, status, code = str(error), status_of(error), _CODE.search(str(error))
    answer = f"HTTP {status}{' ' + code[1] if code else ''}"
    if "169.254.169.254" in text or "metadata.google" in text:
        return PermissionError(f"{doing}: no credentials in the environment, and this machine has no role")
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(f"{doing}: no such {'bucket' if _NO_BUCKET.search(text) else 'file'}")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        return PermissionError(f"{doing}: denied ({answer}); check the credentials and what they allow")
    if "redirect" in text:
        return OSError(f"{doing}: the bucket is in another region; set AWS_REGION")
    if isinstance(error, ValueError):
        return OSError(f"{doing}: not a name that object stores take")
    if status is not None:
        return OSError(f"{doing}: the store answered {answer}")
    kinds = ("Timeout", "timed out"), ("Connect", "no connection"), ("Body", "the answer was cut off")
    brief = (what for kind, what in kinds if f"kind: {kind}" in text)
    return OSError(f"{doing}: {next(brief, 'the connection was lost')} ({type(error).__name__})")

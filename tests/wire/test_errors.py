import asyncio

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from peat_p2p.core import errors as domain
from peat_p2p.wire.errors import (
    RemoteError,
    UnsupportedCallError,
    cancellation_in,
    code_for,
    from_connect,
    to_connect,
)


def subclasses(kind):
    for sub in kind.__subclasses__():
        yield sub
        yield from subclasses(sub)


@pytest.mark.parametrize(
    ("error", "code", "back"),
    [
        (domain.InvalidInputError, Code.INVALID_ARGUMENT, domain.InvalidInputError),
        (domain.ConfigError, Code.INVALID_ARGUMENT, domain.InvalidInputError),
        (domain.TooLargeError, Code.RESOURCE_EXHAUSTED, domain.ExhaustedError),
        (domain.NotFoundError, Code.NOT_FOUND, domain.NotFoundError),
        (domain.ConflictError, Code.FAILED_PRECONDITION, domain.ConflictError),
        (domain.DeniedError, Code.PERMISSION_DENIED, domain.DeniedError),
        (domain.UntrustedError, Code.PERMISSION_DENIED, domain.DeniedError),
        (domain.UnavailableError, Code.UNAVAILABLE, domain.UnavailableError),
        (domain.ExhaustedError, Code.RESOURCE_EXHAUSTED, domain.ExhaustedError),
        (domain.CorruptError, Code.DATA_LOSS, domain.CorruptError),
        (UnsupportedCallError, Code.UNIMPLEMENTED, UnsupportedCallError),
        (RemoteError, Code.INTERNAL, RemoteError),
    ],
)
def test_each_error_has_a_code_and_comes_back_as_what_the_code_can_mean(error, code, back):
    wire = to_connect(error("it is so"))
    assert wire.code is code
    assert "it is so" in wire.message
    assert type(from_connect(wire, "there")) is back
    assert "it is so" in str(from_connect(wire, "there"))


@pytest.mark.parametrize("kind", [k for k in subclasses(domain.PeatError) if k.__module__ == domain.__name__])
def test_no_error_of_the_project_is_internal(kind):
    assert code_for(kind("x")) is not Code.INTERNAL


@pytest.mark.parametrize("code", list(Code))
def test_every_code_becomes_an_error_of_the_project(code):
    error = from_connect(ConnectError(code, ""), "sidecar at http://h:1")
    assert isinstance(error, domain.PeatError)
    assert str(error)


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNKNOWN, Code.UNIMPLEMENTED])
def test_errors_about_the_other_side_name_it(code):
    assert "sidecar at http://h:1" in str(from_connect(ConnectError(code, "x"), "sidecar at http://h:1"))


def test_cancellation_is_found_in_the_error_that_hides_it():
    error = ConnectError(Code.CANCELED, "Request was cancelled")
    assert cancellation_in(error) is None
    error.__cause__ = hidden = asyncio.CancelledError()
    assert cancellation_in(error) is hidden


def test_a_deadline_that_passed_is_no_cancellation():
    error = ConnectError(Code.DEADLINE_EXCEEDED, "Request timed out")
    error.__cause__ = TimeoutError()
    error.__cause__.__cause__ = asyncio.CancelledError()
    assert cancellation_in(error) is None

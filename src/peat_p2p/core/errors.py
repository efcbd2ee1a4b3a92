"""The errors of the project.

Owns the hierarchy every room raises from. An error says whose fault it is (its class) and what the caller can do (its
text). It is translated into a Connect code or an exit status once, at the edge (`wire/errors.py`, `cli/`). It must not
know about any protocol.
"""

from __future__ import annotations


class PeatError(Exception):
    """Any failure this project reports on purpose. The text is for a person: what, where, and the way out."""


class InvalidInputError(PeatError):
    """The caller gave something malformed: it must change its request."""


class NotFoundError(PeatError):
    """What was asked for is not known here (it may appear later)."""


class ConflictError(PeatError):
    """What was asked for contradicts what is already there."""


class TooLargeError(InvalidInputError):
    """The input is over a limit; the text names the limit and the setting that raises it."""


class DeniedError(PeatError):
    """The caller's identity or role does not allow this."""


class UntrustedError(DeniedError):
    """A certificate, signature or digest did not verify."""


class UnavailableError(PeatError):
    """Something that is needed is out of reach now; trying again later may work."""


class ExhaustedError(PeatError):
    """A resource ran out: disk, budget, memory, a rate limit."""


class CorruptError(PeatError):
    """Data of our own is damaged; the text names the file."""


class ConfigError(InvalidInputError):
    """A flag, an environment variable or a key of the configuration file is wrong; the text names it."""

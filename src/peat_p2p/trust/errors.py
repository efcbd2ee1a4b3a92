"""Why something is not trusted.

Owns one class per reason, so that callers, logs and tests tell them apart without reading text.
"""

from __future__ import annotations

from peat_p2p.core.errors import UntrustedError


class ForeignFormationError(UntrustedError):
    """The certificate was not issued by this formation's CA, or names another formation."""


class MalformedError(UntrustedError):
    """The certificate or envelope cannot be read, or is not of the shape this project issues."""


class ExpiredError(UntrustedError):
    """The certificate is no longer valid."""


class NotYetValidError(UntrustedError):
    """The certificate is not valid yet: most often a clock is wrong."""


class MissingRoleError(UntrustedError):
    """The identity is genuine but its certificate does not give the role that is needed."""


class UnsignedError(UntrustedError):
    """There is no signature or no certificate where one is required."""


class BadSignatureError(UntrustedError):
    """The signature does not match: the content was changed or signed by another key."""


class RevokedError(UntrustedError):
    """The identity or the content was revoked by the formation."""

"""The formation: certificates, roles, signatures, revocation."""

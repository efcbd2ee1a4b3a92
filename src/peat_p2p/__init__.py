"""Peer-to-peer package distribution for fleets of edge sites."""

__version__ = "0.1.0"

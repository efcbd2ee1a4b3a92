"""The SDK: what an agent or a tool imports to talk to its sidecar."""

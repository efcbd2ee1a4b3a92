"""Links between sidecars: handshake, state exchange, priorities, discovery."""

"""Generated protobuf and Connect code, and the translations at that edge."""

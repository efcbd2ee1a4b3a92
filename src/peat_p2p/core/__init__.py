"""What every room needs and no room owns: errors, addresses, durable files, time, logs, lifecycle, configuration."""

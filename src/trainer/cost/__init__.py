"""What a separator costs: parameters, operations, memory, size on disk and time."""

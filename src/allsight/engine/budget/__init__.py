"""What a step takes: memory and arithmetic, counted on tensors that have shapes and no contents."""

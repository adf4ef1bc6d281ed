"""The same result for less: the lean form for training, folding for inference, cached frozen prefixes."""

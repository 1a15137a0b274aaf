"""Generation of text: requests, batches, streams, and `Llama`, which users hold."""

"""Other libraries' interfaces over `llama2q`."""

"""The commands `llama2q` and `llama2q-convert`: results on stdout, all else on stderr."""

"""A `.l2q` file's model in the forms of other programs, without loss.

`gguf` writes a file for llama.cpp, `mlx` a folder for Apple's MLX. The numbers of the weights stay
what they are, only their order changes; what the other form cannot hold is refused by name.
"""

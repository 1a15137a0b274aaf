"""What the quantizers that look at activations need: texts to run the model on."""

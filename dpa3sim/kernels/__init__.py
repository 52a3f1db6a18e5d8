"""What runs: the layers, forward and backward, by tensor operations, C++ and Triton."""

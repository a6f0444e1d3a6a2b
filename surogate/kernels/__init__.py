"""Number formats of stored weights: what each code means (reference.py), torch operators (ops.py), Triton kernels."""

"""The CUDA library: its build, its loading and its ops."""

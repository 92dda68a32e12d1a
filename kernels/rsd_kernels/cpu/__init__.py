"""The CPU library: its build, its loading and its ops."""

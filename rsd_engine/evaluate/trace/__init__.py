"""Shows answers of `rsd eval` and `rsd generate` in a page of HTML: `rsd trace`."""

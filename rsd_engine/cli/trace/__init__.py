"""`rsd trace`: a page of HTML of answers and their steps."""

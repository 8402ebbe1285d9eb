"""A bundle over HTTP, and the page that runs it in a browser. Neither loads torch."""

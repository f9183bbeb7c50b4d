"""Live generation behind a web page and an HTTP interface: a queue, and a process that holds the models."""

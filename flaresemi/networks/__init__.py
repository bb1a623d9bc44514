"""From a network plan to a module, what it costs, and the file that carries its weights."""

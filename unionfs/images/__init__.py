"""Images: their names, documents, archives and registries."""

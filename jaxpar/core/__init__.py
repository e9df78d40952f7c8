"""Core: errors, catalogues, meshes, roles, the hooks of a model, and what of JAX may change."""
